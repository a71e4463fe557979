use super::render::seconds;
use super::*;

fn leg(outcome: &'static str, attested_ms: Option<u64>) -> LegRow {
    LegRow {
        outcome,
        outdated: false,
        attested_ms,
        probed_ms: None,
    }
}

fn listing(out: LegRow, into: LegRow, state: State) -> Listing {
    let row = Row {
        protocol: "tcp",
        pod: [10, 244, 1, 2].into(),
        pod_port: 40312,
        remote: [10, 244, 200, 203].into(),
        remote_port: 80,
        state,
        out,
        into,
    };
    Listing {
        mode: "flow",
        revalidate_ms: 2000,
        stale_ms: 2500,
        remembered: 131_072,
        matching: 7,
        flows: vec![row],
        notes: vec!["stale: idle".into()],
    }
}

#[test]
fn columns_are_aligned_and_the_rest_is_counted() {
    let text = table(&listing(
        leg("fast", Some(412)),
        leg("stale", Some(75_000)),
        State::OneLeg,
    ));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "fast path flow: 131072 flows remembered, 7 match; asked again after 2.0 s, slow without an answer after 2.5 s",
            "",
            "PROTO POD                   REMOTE                STATE    OUT, SINCE ATTESTED IN, SINCE ATTESTED",
            "tcp   10.244.1.2:40312      10.244.200.203:80     one leg  fast 0.4 s          stale 1 min",
            "and 6 more: --limit 0 shows all",
            "",
            "stale: idle",
        ]
    );
}

#[test]
fn ipv6_addresses_widen_their_columns() {
    let mut listing = listing(leg("fast", Some(412)), leg("fast", Some(9)), State::Fast);
    listing.flows[0].pod = [0xfd00, 0x10, 0x244, 1, 0, 0, 0, 2].into();
    listing.flows[0].remote = [0xfd00, 0x10, 0x244, 2, 0, 0, 0, 0x1003].into();
    let text = table(&listing);
    let lines: Vec<_> = text.lines().skip(2).take(2).collect();
    assert_eq!(
        lines,
        [
            "PROTO POD                      REMOTE                   STATE    OUT, SINCE ATTESTED IN, SINCE ATTESTED",
            "tcp   [fd00:10:244:1::2]:40312 [fd00:10:244:2::1003]:80 fast     fast 0.4 s          fast 0.0 s",
        ]
    );
}

#[test]
fn json_names_each_direction() {
    let listing = listing(leg("fast", Some(412)), leg("no-flow", None), State::OneLeg);
    let json = serde_json::to_value(&listing).expect("plain data");
    let row = &json["flows"][0];
    assert_eq!(row["state"], "one-leg");
    assert_eq!(row["out"]["attested_ms"], 412);
    assert_eq!(row["in"]["outcome"], "no-flow");
    assert_eq!(row["in"]["attested_ms"], serde_json::Value::Null);
    assert_eq!(json["matching"], 7);
}

#[test]
fn the_state_sums_up_both_directions() {
    use Outcome::{Closing, Fast, NoFlow, NoPeer, Stale};
    for (legs, expected) in [
        ([Fast, Fast], State::Fast),
        ([Fast, NoFlow], State::OneLeg),
        ([Stale, Fast], State::OneLeg),
        ([Fast, Closing], State::Closing),
        ([Stale, NoFlow], State::Stale),
        ([NoPeer, NoPeer], State::Kernel),
    ] {
        assert_eq!(State::of(legs), expected, "{legs:?}");
    }
}

#[test]
fn each_reason_that_is_shown_is_explained() {
    let outdated = LegRow {
        outdated: true,
        ..leg("no-flow", Some(5))
    };
    assert_eq!(outdated.text(), "outdated 0.0 s");
    assert_eq!(leg("no-flow", None).text(), "not attested");
    for slow in [
        outdated,
        leg("no-flow", None),
        leg("stale", Some(9)),
        leg("closing", None),
        leg("draining", None),
        leg("tcp-strict", None),
        leg("no-heartbeat", None),
    ] {
        assert!(meaning(&slow).is_some(), "{slow:?}");
    }
    assert_eq!(meaning(&leg("fast", Some(1))), None);
}

#[test]
fn times_keep_to_their_column() {
    let shown = [0, 949, 9_949, 9_950, 59_999, 60_000, 3_599_999, 90_000_000].map(seconds);
    assert_eq!(
        shown,
        [
            "0.0 s", "0.9 s", "9.9 s", "9 s", "59 s", "1 min", "59 min", "25 h"
        ]
    );
}

#[test]
fn absent_pins_are_explained_by_the_agent_if_it_answers() {
    let error = Error::NoPins("/sys/fs/bpf/flannel".into());
    let line = explain(&error, None);
    assert!(
        line.contains("/sys/fs/bpf/flannel") && line.contains("flannel-agent run"),
        "{line}"
    );
    let mut status = Status::default();
    status.fast_path.mode = "off".into();
    assert!(explain(&error, Some(&status)).contains("the fast path is off"));
    status.fast_path.mode = "flow".into();
    status.fast_path.reason = Some("no BPF file system".into());
    assert!(explain(&error, Some(&status)).ends_with("no BPF file system"));
}

//! Each hook's decision, on packets of the fixtures.

use divan::{Bencher, black_box};
use flannel_common::decide::attest::{Verdict, attest};
use flannel_common::decide::egress::{self, Port};
use flannel_common::decide::{Frame, L3, Meta, frame, ingress};
use flannel_common::flow::Leg;
use flannel_common::outcome::{Hook, Outcome};
use flannel_common::testing::fixtures::{self, Fixture, attested};
use flannel_common::wire::ethernet::Ethernet;
use flannel_common::wire::{Be32, vxlan};

use crate::maps::{Arrays, OneFlow, YOUNG, ask_for_flows, headers};

/// The fixture of that name.
fn fixture(hook: Hook, name: &str) -> Fixture {
    let mut all = fixtures::all().into_iter();
    all.find(|row| row.hook == hook && row.name == name)
        .unwrap_or_else(|| panic!("no fixture {name:?} at {hook:?}"))
}

/// The same packet in the mode that the agent starts in: its flow is remembered, and asked for.
fn remembered(mut fixture: Fixture) -> Fixture {
    let (offset, leg) = match fixture.hook {
        Hook::PodEgress => (L3, Leg::Out),
        Hook::NicIngress => (L3 + vxlan::OVERHEAD, Leg::In),
        _ => (L3, Leg::In),
    };
    let (_, _, key) = headers(&fixture.frame, offset, leg);
    fixture.tables.flows.insert(key, attested(YOUNG));
    ask_for_flows(&mut fixture.tables.config);
    fixture
}

/// Why the kernel gets the packet, if it does.
fn declined(fixture: &Fixture) -> Option<Outcome> {
    let outcome = fixture.outcome();
    (!matches!(outcome, Outcome::Fast | Outcome::Decapsulated)).then_some(outcome)
}

/// Measures a decision, once it has said what the fixture says.
macro_rules! measure {
    ($bencher:ident, $fixture:expr, |$frame:ident, $meta:ident, $maps:ident, $flows:ident| $decision:expr) => {{
        let fixture = $fixture;
        let meta = fixture.meta();
        let maps = Arrays::new(&fixture.tables);
        let flows = OneFlow::of(&fixture.tables);
        let frame = &fixture.frame[..];
        let run = || {
            let ($frame, $meta) = (black_box(frame), black_box(&meta));
            let ($maps, $flows) = (black_box(&maps), black_box(&flows));
            $decision
        };
        assert_eq!(run().err(), declined(&fixture), "{}", fixture.name);
        $bencher.bench_local(run);
    }};
}

/// What hooks ask first.
#[inline(always)]
fn ethernet(packet: &[u8], meta: &Meta, maps: &Arrays) -> Result<Ethernet, Outcome> {
    match frame(packet, meta, maps)? {
        Frame::V4(ethernet) => Ok(ethernet),
        Frame::V6(_) => panic!("a fixture of IPv4"),
    }
}

fn from_pod(bencher: Bencher<'_, '_>, fixture: Fixture) {
    measure!(bencher, fixture, |frame, meta, maps, flows| {
        egress::decide::<Be32, _, _, _>(
            frame,
            meta,
            &ethernet(frame, meta, maps)?,
            Port::Pod,
            maps,
            flows,
        )
    });
}

fn from_wire(bencher: Bencher<'_, '_>, fixture: Fixture) {
    measure!(bencher, fixture, |frame, meta, maps, flows| {
        ingress::from_wire(frame, meta, &ethernet(frame, meta, maps)?, maps, flows)
    });
}

fn from_vtep(bencher: Bencher<'_, '_>, fixture: Fixture) {
    measure!(bencher, fixture, |frame, meta, maps, flows| {
        let ethernet = ethernet(frame, meta, maps)?;
        ingress::from_vtep::<Be32, _, _, _>(frame, meta, &ethernet, maps, flows)
    });
}

#[divan::bench(args = [
    "encap udp",
    "encap tcp",
    "encap of an aggregate",
    "encap through a gateway",
    "direct tcp",
    "arp",
    "icmp",
    "to the outside",
    "from an address without a pod",
    "strict: from the outside",
    "flow of datagrams",
    "stale flow",
    "datagram of no flow",
])]
fn pod_egress(bencher: Bencher<'_, '_>, name: &str) {
    from_pod(bencher, fixture(Hook::PodEgress, name));
}

#[divan::bench(args = ["encap udp", "encap tcp", "encap of an aggregate", "direct tcp"])]
fn pod_egress_remembered(bencher: Bencher<'_, '_>, name: &str) {
    from_pod(bencher, remembered(fixture(Hook::PodEgress, name)));
}

#[divan::bench(args = [
    "decap udp",
    "decap tcp",
    "decap of an aggregate",
    "decap takes over ce",
    "direct tcp",
    "arp",
    "to nobody here",
    "another network identifier",
    "inner packet from another node's pod",
    "strict: honest",
    "strict: vxlan of a stranger",
    "decap of a flow behind packets in the device",
])]
fn nic_ingress(bencher: Bencher<'_, '_>, name: &str) {
    from_wire(bencher, fixture(Hook::NicIngress, name));
}

#[divan::bench(args = ["decap udp", "decap tcp", "decap of an aggregate"])]
fn nic_ingress_remembered(bencher: Bencher<'_, '_>, name: &str) {
    from_wire(bencher, remembered(fixture(Hook::NicIngress, name)));
}

#[divan::bench(args = ["decap tcp", "another network identifier"])]
fn nic_xdp(bencher: Bencher<'_, '_>, name: &str) {
    measure!(
        bencher,
        fixture(Hook::NicXdp, name),
        |frame, meta, maps, flows| {
            ingress::from_driver(frame, meta, &ethernet(frame, meta, maps)?, maps, flows)
        }
    );
}

#[divan::bench(args = ["udp", "tcp", "aggregate", "icmp", "from the outside"])]
fn vtep_ingress(bencher: Bencher<'_, '_>, name: &str) {
    from_vtep(bencher, fixture(Hook::VtepIngress, name));
}

#[divan::bench(args = ["udp", "tcp", "aggregate"])]
fn vtep_ingress_remembered(bencher: Bencher<'_, '_>, name: &str) {
    from_vtep(bencher, remembered(fixture(Hook::VtepIngress, name)));
}

fn learn(bencher: Bencher<'_, '_>, fixture: &Fixture, leg: Leg) {
    let meta = fixture.meta();
    let maps = Arrays::new(&fixture.tables);
    let flows = OneFlow::of(&fixture.tables);
    let run = || -> (Verdict, Outcome) {
        attest::<Be32, _, _, _>(
            black_box(&fixture.frame[..]),
            black_box(&meta),
            leg,
            black_box(&maps),
            black_box(&flows),
            || black_box(fixture.attested),
        )
    };
    assert_eq!(run().1, fixture.outcome(), "{}", fixture.name);
    bencher.bench_local(run);
}

/// Names of what the hooks that attest are shown.
const LEARNED: [&str; 6] = [
    "first of a flow",
    "later one of a flow",
    "not attested",
    "not attested, of a known flow",
    "one of our own",
    "probe",
];

#[divan::bench(args = LEARNED)]
fn attest_out(bencher: Bencher<'_, '_>, name: &str) {
    learn(bencher, &fixture(Hook::AttestOut, name), Leg::Out);
}

#[divan::bench(args = LEARNED)]
fn attest_in(bencher: Bencher<'_, '_>, name: &str) {
    learn(bencher, &fixture(Hook::AttestIn, name), Leg::In);
}

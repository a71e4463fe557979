//! Probes reach nobody, wherever the kernel sends them and whatever is missing on their way.

use super::v4::life::Lab;
use super::v4::{attest, from_vtep};
use crate::decide::attest::{PROBE_TTL, Verdict};
use crate::decide::permit::{PROBE_INTERVAL, Permit};
use crate::decide::{L3, Meta, Tag};
use crate::flow::{Clock as _, Flow, FlowKey, Flows as _, Leg, LegTimes};
use crate::maps::{FLAG_ACTIVE, FLAG_FLOWS};
use crate::outcome::Outcome;
use crate::testing::frame::Frame;
use crate::testing::memory::NOW;
use crate::testing::node::{BRIDGE, POD, POD_VIA, PORT, UPLINK, VTEP, VXLAN};
use crate::wire::{Be16, Packet, ipv4, udp::Udp};

/// Offset of the time to live in a frame.
const TTL: usize = L3 + 8;

/// What becomes of a probe at a hook behind the kernel, which it reached from `came_from`.
fn probe(lab: &Lab, leg: Leg, frame: &[u8], came_from: u32) -> (Verdict, Outcome) {
    let meta = Meta {
        len: frame.len() as u32,
        ingress_ifindex: came_from,
        tag: Tag::Probe,
        ..Meta::default()
    };
    attest(frame, &meta, leg, &lab.tables, &lab.flows, || true)
}

fn out() -> Frame {
    Frame::udp(POD, VXLAN.pod).ttl(PROBE_TTL - 1)
}

#[test]
fn a_probe_is_dropped_wherever_the_kernel_has_sent_it() {
    let lab = Lab::new();
    let to_sibling = Frame::udp(VXLAN.pod, POD_VIA).ttl(PROBE_TTL - 1).build();
    for came_from in [0, BRIDGE.index, UPLINK.index, VTEP.index, PORT.index] {
        for leg in [Leg::Out, Leg::In] {
            for frame in [&out().build(), &to_sibling] {
                let (verdict, outcome) = probe(&lab, leg, frame, came_from);
                assert_eq!(
                    verdict,
                    Verdict::Drop,
                    "{leg:?} from {came_from}: {outcome:?}"
                );
            }
        }
    }
}

#[test]
fn a_probe_is_dropped_whatever_rules_have_made_of_it() {
    let lab = Lab::new();
    let mut changed = vec![
        out().ttl(64),
        out().ttl(PROBE_TTL),
        out().tos(0xb8),
        out().fragment(0x2000),
        out().options(&[1; 4]),
        out().ethertype(0x86dd),
        Frame::other(POD, VXLAN.pod, 1),
    ];
    changed.push(out().payload(0));
    for frame in changed {
        let (verdict, _) = probe(&lab, Leg::Out, &frame.build(), BRIDGE.index);
        assert_eq!(verdict, Verdict::Drop, "{frame:?}");
    }
    let (verdict, _) = probe(&lab, Leg::Out, &out().build()[..20], BRIDGE.index);
    assert_eq!(verdict, Verdict::Drop, "half a packet");
}

#[test]
fn a_probe_is_dropped_when_all_is_switched_off_meanwhile() {
    for flag in [FLAG_ACTIVE, FLAG_FLOWS] {
        let mut lab = Lab::new();
        lab.tables.config.flags &= !flag;
        let end = probe(&lab, Leg::Out, &out().build(), BRIDGE.index);
        assert_eq!(end, (Verdict::Drop, Outcome::Inactive));
    }
}

#[test]
fn only_the_tag_makes_a_probe() {
    let lab = Lab::new();
    let frame = out().build();
    for tag in [Tag::None, Tag::Fast] {
        let meta = Meta {
            len: frame.len() as u32,
            ingress_ifindex: BRIDGE.index,
            tag,
            ..Meta::default()
        };
        let (verdict, _) = attest(&frame, &meta, Leg::Out, &lab.tables, &lab.flows, || true);
        assert_eq!(verdict, Verdict::Pass, "{tag:?}");
    }
}

#[test]
fn a_probe_that_got_out_goes_no_further_than_the_next_node() {
    // There it has one hop left, which no hook and no kernel spends on a pod.
    let mut lab = Lab::new();
    let mut frame = Frame::udp(VXLAN.pod, POD)
        .link(VXLAN.vtep_mac, VTEP.mac)
        .build();
    frame[TTL] = PROBE_TTL - 1;
    lab.tables.config.flags &= !FLAG_FLOWS;
    let meta = Meta {
        len: frame.len() as u32,
        ifindex: VTEP.index,
        to_us: true,
        ..Meta::default()
    };
    let end = from_vtep(&frame, &meta, &lab.tables, &lab.flows);
    assert_eq!(end.err(), Some(Outcome::Ttl));
}

/// A flow of `frame`, whose leg in is due for a probe.
fn due(lab: &Lab, frame: &[u8], protocol: u8) -> FlowKey {
    let ports: Udp = frame.read(L3 + ipv4::LEN).expect("a whole header");
    let port = |port: Be16| Be16::new(port.get());
    let key = FlowKey {
        pod: POD.into(),
        remote: VXLAN.pod.into(),
        pod_port: port(ports.destination),
        remote_port: port(ports.source),
        protocol: protocol.into(),
    };
    let leg = LegTimes {
        attested: NOW,
        ..LegTimes::default()
    };
    let flow = Flow {
        legs: [leg; 2],
        ..Flow::default()
    };
    lab.flows.create(&key, &flow);
    lab.pass(lab.tables.config.revalidate_after + 1);
    key
}

#[test]
fn an_unanswered_datagram_to_a_pod_is_not_sent_again() {
    for (frame, protocol, again) in [
        (Frame::udp(VXLAN.pod, POD), ipv4::UDP, false),
        (Frame::tcp(VXLAN.pod, POD), ipv4::TCP, true),
    ] {
        let lab = Lab::new();
        let frame = frame.link(VXLAN.vtep_mac, VTEP.mac).build();
        let key = due(&lab, &frame, protocol);
        let meta = Meta {
            len: frame.len() as u32,
            ifindex: VTEP.index,
            to_us: true,
            ..Meta::default()
        };
        let arrive =
            || from_vtep(&frame, &meta, &lab.tables, &lab.flows).map(|deliver| deliver.permit);
        let fast = |probe| {
            Ok(Permit {
                probe,
                queue: false,
            })
        };
        assert_eq!(arrive(), fast(true));
        lab.pass(PROBE_INTERVAL);
        assert_eq!(arrive(), fast(again), "protocol {protocol}");
        // Once it is answered, the next is due when the answer is old.
        lab.flows
            .find(&key)
            .expect("an entry")
            .set_attested(Leg::In, lab.flows.now());
        assert_eq!(arrive(), fast(false));
        lab.pass(lab.tables.config.revalidate_after + 1);
        assert_eq!(arrive(), fast(true));
    }
}

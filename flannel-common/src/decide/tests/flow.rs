//! What only IPv4 has in the life of a flow: tunnels that BPF and XDP take packets out of. And what conntrack attests.

use super::v4::life::Lab;
use crate::addr::Mac;
use crate::decide::conntrack::{self, Tuples};
use crate::decide::permit::Permit;
use crate::decide::{Meta, ingress};
use crate::flow::{Clock as _, Flows as _, Leg};
use crate::outcome::Outcome;
use crate::testing::frame::Frame;
use crate::testing::node::{POD, UPLINK, VTEP, VXLAN};
use crate::wire::ethernet::Ethernet;

use super::v4::from_wire;

const ACK: u8 = 1 << 4;

#[test]
fn what_xdp_wants_is_what_the_hook_behind_it_does() {
    let lab = Lab::new();
    for (probe, queue) in [(false, false), (true, false), (false, true), (true, true)] {
        let permit = Permit { probe, queue };
        let source = ingress::xdp_source(&lab.tables.config, permit);
        let frame = Frame::tcp(VXLAN.pod, POD).link(source, UPLINK.mac).build();
        let meta = Meta {
            len: frame.len() as u32,
            ifindex: UPLINK.index,
            to_us: true,
            ..Meta::default()
        };
        // No flow, and no node without a tunnel: XDP has seen to all that.
        let deliver =
            from_wire(&frame, &meta, &lab.tables, &lab.flows).expect("XDP has let it through");
        assert_eq!((deliver.permit, deliver.decapsulated), (permit, true));
        assert_eq!(deliver.ip.ttl, 64, "XDP has counted the hop");
    }
    let permit = Permit::default();
    let mut without = lab.tables.config;
    let ethernet = Ethernet {
        source: ingress::xdp_source(&without, permit),
        ..Ethernet::default()
    };
    assert_eq!(ingress::carried_by_xdp(&ethernet, &without), Some(permit));
    without.xdp_mac = Mac::default();
    assert_eq!(ingress::carried_by_xdp(&ethernet, &without), None);
    assert_eq!(
        ingress::carried_by_xdp(&Ethernet::default(), &without),
        None
    );
}

#[test]
fn packets_in_the_tunnel_device_are_waited_for() {
    let lab = Lab::new();
    let inner = Lab::frame(Leg::In, ACK);
    let mut outer = Frame::tcp(VXLAN.pod, POD)
        .link(VXLAN.vtep_mac, VTEP.mac)
        .vxlan(&VXLAN.tunnel())
        .build();
    let start = outer.len() - inner.len();
    outer[start..].copy_from_slice(&inner);
    outer[..6].copy_from_slice(&UPLINK.mac.0);
    let meta = Meta {
        len: outer.len() as u32,
        ifindex: UPLINK.index,
        to_us: true,
        ..Meta::default()
    };
    let arrive =
        || from_wire(&outer, &meta, &lab.tables, &lab.flows).map(|deliver| deliver.permit.queue);
    lab.attest(Leg::Out);
    assert_eq!(arrive(), Err(Outcome::NoFlow));
    lab.pass(1);
    lab.attest(Leg::In);
    assert_eq!(
        arrive(),
        Ok(true),
        "the device is empty, the veth may not be"
    );
    // A packet that the kernel had to carry: nothing of the flow may overtake it.
    let flow = lab.flows.find(&Lab::key()).expect("an entry");
    lab.pass(1);
    flow.set_queued(lab.flows.now(), 0, true);
    flow.set_acknowledged(u32::MAX);
    assert_eq!(arrive(), Err(Outcome::Draining));
    lab.pass(1);
    lab.attest(Leg::In);
    assert!(arrive().is_ok());
}

#[test]
fn conntrack_attests_established_assured_and_untouched_only() {
    const SEEN: u64 = 1 << 1;
    const GOOD: u64 = SEEN | 1 << 2 | 1 << 3;
    let mut tuples = Tuples::default();
    tuples.original.source[0] = 1;
    tuples.original.destination[0] = 2;
    tuples.original.source_port = 3;
    tuples.original.destination_port = 4;
    tuples.reply.source[0] = 2;
    tuples.reply.destination[0] = 1;
    tuples.reply.source_port = 4;
    tuples.reply.destination_port = 3;
    let attests = conntrack::attests;
    assert!(attests(0, GOOD, &tuples) && attests(3, GOOD, &tuples));
    for info in [1, 2, 4, 7] {
        assert!(!attests(info, GOOD, &tuples), "info {info}");
    }
    for missing in [1 << 2, 1 << 3] {
        assert!(
            !attests(0, GOOD & !missing, &tuples),
            "without {missing:#x}"
        );
    }
    for added in [1 << 4, 1 << 5, 1 << 6, 1 << 9, 1 << 13] {
        assert!(!attests(0, GOOD | added, &tuples), "with {added:#x}");
    }
    let changes: [fn(&mut Tuples); 4] = [
        |tuples| tuples.reply.source[0] = 9,
        |tuples| tuples.reply.destination[0] = 9,
        |tuples| tuples.reply.source_port = 9,
        |tuples| tuples.reply.destination_port = 9,
    ];
    for change in changes {
        let mut rewritten = tuples;
        change(&mut rewritten);
        assert!(!attests(0, GOOD, &rewritten));
    }
}

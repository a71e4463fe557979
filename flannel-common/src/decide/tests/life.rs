//! The life of a flow: attested behind the kernel, fast in front of it, and everything that ends either. For the address
//! family of the module around it.

use super::{
    Key, L4, MEMBERS, NODE, OUTSIDE, POD, POD_VIA, REMOTE, TTL, VTEP, attest, egress, from_vtep,
    key,
};
use crate::decide::attest::{PROBE_TTL, Verdict};
use crate::decide::egress::Port;
use crate::decide::permit::{PROBE_INTERVAL, Permit, QUIET};
use crate::decide::{Meta, Tag};
use crate::flow::{Flows as _, Leg};
use crate::maps::{FLAG_ACTIVE, FLAG_BOTH_LEGS, FLAG_FLOWS, FLAG_STRICT, FLAG_TCP};
use crate::outcome::Outcome;
use crate::testing::frame::Frame;
use crate::testing::memory::{Memory, NOW};
use crate::testing::node::{BRIDGE, POD_MAC, PORT, Tables, UPLINK, VXLAN_PORT};
use crate::wire::tcp::{FIN, RST, SYN};
use crate::wire::{Be16, ip};

const REVALIDATE: u64 = 2_000_000_000;
const STALE: u64 = 2_500_000_000;
/// Offset of the TCP flags in a frame, and the bit of an acknowledgment.
const FLAGS: usize = L4 + 13;
const ACK: u8 = 1 << 4;
/// Offset of the acknowledgment number.
const ACKNOWLEDGMENT: usize = L4 + 8;

/// A node, its flows, and what passes by its hooks.
pub(crate) struct Lab {
    pub(crate) tables: Tables,
    pub(crate) flows: Memory<Key>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let mut tables = Tables::node();
        tables.config.flags |= FLAG_FLOWS | FLAG_TCP;
        tables.config.revalidate_after = REVALIDATE;
        tables.config.stale_after = STALE;
        let flows = Memory::new(&Default::default());
        Self { tables, flows }
    }

    pub(crate) fn pass(&self, nanoseconds: u64) {
        self.flows.now.set(self.flows.now.get() + nanoseconds);
    }

    /// A frame between the pod and its peer's, as it is in front of the kernel (`leg` out) or behind its tunnel (in).
    pub(crate) fn frame(leg: Leg, flags: u8) -> Vec<u8> {
        let frame = match leg {
            Leg::Out => Frame::tcp(POD, REMOTE.pod).link(POD_MAC, BRIDGE.mac),
            Leg::In => Frame::tcp(REMOTE.pod, POD).link(REMOTE.vtep_mac, VTEP.mac),
        };
        let mut bytes = frame.build();
        if leg == Leg::In {
            // Ports are the builder's, from the sender's side: replies swap them.
            for byte in 0..2 {
                bytes.swap(L4 + byte, L4 + 2 + byte);
            }
        }
        bytes[FLAGS] = flags;
        bytes
    }

    fn ask(&self, leg: Leg, frame: &[u8]) -> Result<Permit, Outcome> {
        let device = if leg == Leg::Out { PORT } else { VTEP };
        let meta = Meta {
            len: frame.len() as u32,
            ifindex: device.index,
            to_us: true,
            ..Meta::default()
        };
        match leg {
            Leg::Out => egress(frame, &meta, Port::Pod, &self.tables, &self.flows)
                .map(|forward| forward.permit),
            Leg::In => {
                from_vtep(frame, &meta, &self.tables, &self.flows).map(|deliver| deliver.permit)
            }
        }
    }

    fn send(&self, leg: Leg, flags: u8) -> Result<Permit, Outcome> {
        self.ask(leg, &Self::frame(leg, flags))
    }

    /// A packet of `leg` behind the kernel.
    fn forwarded(&self, leg: Leg, flags: u8, tag: Tag, attested: bool) -> (Verdict, Outcome) {
        let mut frame = Self::frame(leg, flags);
        let ttl = if tag == Tag::Probe { PROBE_TTL - 1 } else { 63 };
        frame[TTL] = ttl;
        let (device, from) = match leg {
            Leg::Out => (VTEP, BRIDGE),
            Leg::In => (PORT, VTEP),
        };
        let meta = Meta {
            len: frame.len() as u32,
            ifindex: device.index,
            ingress_ifindex: from.index,
            tag,
            ..Meta::default()
        };
        attest(&frame, &meta, leg, &self.tables, &self.flows, || attested)
    }

    /// Both legs attested, and long enough ago that nothing is queued.
    fn established() -> Self {
        let lab = Self::new();
        assert_eq!(lab.attest(Leg::Out), Outcome::Created);
        assert_eq!(lab.attest(Leg::In), Outcome::Attested);
        lab.pass(QUIET + 1);
        lab
    }

    pub(crate) fn attest(&self, leg: Leg) -> Outcome {
        self.forwarded(leg, ACK, Tag::None, true).1
    }

    pub(crate) fn key() -> Key {
        let frame = Self::frame(Leg::Out, ACK);
        let port = |at: usize| Be16::new(u16::from_be_bytes([frame[at], frame[at + 1]]));
        key(POD, REMOTE.pod, port(L4), port(L4 + 2), ip::TCP)
    }
}

const FAST: Result<Permit, Outcome> = Ok(Permit {
    probe: false,
    queue: false,
});

#[test]
fn each_leg_is_fast_when_it_is_attested_itself() {
    let lab = Lab::new();
    assert_eq!(lab.send(Leg::Out, ACK), Err(Outcome::NoFlow));
    assert_eq!(lab.attest(Leg::Out), Outcome::Created);
    assert_eq!(lab.send(Leg::Out, ACK), FAST);
    assert_eq!(lab.send(Leg::In, ACK), Err(Outcome::NoFlow));
    assert_eq!(lab.attest(Leg::In), Outcome::Attested);
    lab.pass(QUIET + 1);
    assert_eq!(lab.send(Leg::In, ACK), FAST);
}

#[test]
fn where_the_mark_attests_both_legs_must_be() {
    let mut lab = Lab::new();
    lab.tables.config.flags |= FLAG_BOTH_LEGS;
    lab.attest(Leg::Out);
    assert_eq!(lab.send(Leg::Out, ACK), Err(Outcome::NoFlow));
    lab.attest(Leg::In);
    assert_eq!(lab.send(Leg::Out, ACK), FAST);
}

#[test]
fn a_packet_that_conntrack_does_not_attest_ends_the_flow() {
    let lab = Lab::established();
    let killed = lab.forwarded(Leg::In, ACK, Tag::None, false);
    assert_eq!(killed, (Verdict::Pass, Outcome::Killed));
    assert_eq!(lab.send(Leg::Out, ACK), Err(Outcome::NoFlow));
    let again = lab.forwarded(Leg::In, ACK, Tag::None, false);
    assert_eq!(again, (Verdict::Pass, Outcome::Refused));
}

#[test]
fn our_own_redirected_packets_teach_nothing() {
    let lab = Lab::established();
    let own = lab.forwarded(Leg::In, ACK, Tag::Fast, false);
    assert_eq!(own, (Verdict::Pass, Outcome::Redirected));
    assert_eq!(lab.send(Leg::In, ACK), FAST);
}

#[test]
fn what_was_not_forwarded_from_a_pod_to_a_node_teaches_nothing() {
    let lab = Lab::new();
    let frame = Lab::frame(Leg::Out, ACK);
    for ingress_ifindex in [0, PORT.index, UPLINK.index] {
        let meta = Meta {
            len: frame.len() as u32,
            ingress_ifindex,
            ..Meta::default()
        };
        let learned = attest(&frame, &meta, Leg::Out, &lab.tables, &lab.flows, || true);
        assert_eq!(learned, (Verdict::Pass, Outcome::Elsewhere));
    }
    assert!(lab.flows.find(&Lab::key()).is_none());
}

#[test]
fn an_old_attestation_is_probed_and_then_not_believed() {
    let lab = Lab::established();
    lab.pass(REVALIDATE);
    let probing = Ok(Permit {
        probe: true,
        queue: false,
    });
    assert_eq!(lab.send(Leg::Out, ACK), probing);
    assert_eq!(lab.send(Leg::Out, ACK), FAST, "one probe at a time");
    assert_eq!(lab.send(Leg::In, ACK), probing, "each leg has its own");
    lab.pass(PROBE_INTERVAL);
    assert_eq!(lab.send(Leg::Out, ACK), probing);
    let done = lab.forwarded(Leg::Out, ACK, Tag::Probe, true);
    assert_eq!(done, (Verdict::Drop, Outcome::ProbeDone));
    assert_eq!(lab.send(Leg::Out, ACK), FAST);
    lab.pass(STALE + 1);
    assert_eq!(lab.send(Leg::Out, ACK), Err(Outcome::Stale));
}

#[test]
fn a_probe_that_is_refused_ends_the_flow_and_reaches_nobody() {
    let lab = Lab::established();
    let refused = lab.forwarded(Leg::Out, ACK, Tag::Probe, false);
    assert_eq!(refused, (Verdict::Drop, Outcome::Killed));
    let unknown = lab.forwarded(Leg::Out, ACK, Tag::Probe, false);
    assert_eq!(unknown, (Verdict::Drop, Outcome::Refused));
}

#[test]
fn a_source_is_checked_once_in_every_generation() {
    for (leg, reason) in [
        (Leg::Out, Outcome::PodSource),
        (Leg::In, Outcome::PeerSource),
    ] {
        let mut lab = Lab::established();
        assert_eq!(lab.send(leg, ACK), FAST);
        match leg {
            Leg::Out => (MEMBERS.pods)(&mut lab.tables, None),
            Leg::In => (MEMBERS.peers)(&mut lab.tables, None),
        }
        assert_eq!(lab.send(leg, ACK), FAST, "what was found is remembered");
        lab.tables.generation += 1;
        assert_eq!(lab.send(leg, ACK), Err(reason));
    }
}

#[test]
fn a_source_that_was_right_at_one_interface_is_checked_at_another() {
    let lab = Lab::established();
    assert_eq!(lab.send(Leg::Out, ACK), FAST);
    let frame = Lab::frame(Leg::Out, ACK);
    let meta = Meta {
        len: frame.len() as u32,
        ifindex: PORT.index + 1,
        ..Meta::default()
    };
    let spoofed = egress(&frame, &meta, Port::Pod, &lab.tables, &lab.flows);
    assert_eq!(spoofed.err(), Some(Outcome::PodSource));
}

#[test]
fn a_hash_is_asked_for_once() {
    let lab = Lab::established();
    let key = Lab::key();
    let flow = lab.flows.find(&key).expect("an established flow");
    assert_eq!(flow.hash(|| 0x1234_5678), 0x1234_5678);
    assert_eq!(flow.hash(|| unreachable!("it is known")), 0x1234_5678);
}

#[test]
fn a_probe_on_its_way_is_left_alone() {
    let lab = Lab::established();
    let frame = Lab::frame(Leg::Out, ACK);
    let meta = Meta {
        len: frame.len() as u32,
        ifindex: PORT.index,
        tag: Tag::Probe,
        ..Meta::default()
    };
    let decision = egress(&frame, &meta, Port::Pod, &lab.tables, &lab.flows);
    assert_eq!(decision.err(), Some(Outcome::Probe));
}

#[test]
fn syn_and_rst_forget_the_flow() {
    for flags in [SYN, SYN | ACK, RST, RST | ACK] {
        for leg in [Leg::Out, Leg::In] {
            let lab = Lab::established();
            assert_eq!(lab.send(leg, flags), Err(Outcome::TcpControl));
            assert!(lab.flows.find(&Lab::key()).is_none(), "{flags:#x}");
        }
    }
}

#[test]
fn a_fin_closes_its_own_direction_only() {
    let lab = Lab::established();
    assert_eq!(lab.send(Leg::Out, FIN | ACK), Err(Outcome::TcpControl));
    assert_eq!(lab.send(Leg::Out, ACK), Err(Outcome::Closing));
    assert_eq!(lab.send(Leg::In, ACK), FAST, "a long download goes on");
    assert_eq!(lab.attest(Leg::Out), Outcome::NotKept);
    assert_eq!(lab.send(Leg::Out, ACK), Err(Outcome::Closing));
}

#[test]
fn packets_that_begin_or_end_a_connection_teach_nothing() {
    let lab = Lab::new();
    for flags in [SYN, SYN | ACK, FIN | ACK, RST] {
        let (_, outcome) = lab.forwarded(Leg::Out, flags, Tag::None, true);
        assert_eq!(outcome, Outcome::NotKept);
    }
    assert!(lab.flows.find(&Lab::key()).is_none());
}

#[test]
fn a_change_of_pod_peer_or_rules_makes_the_flow_cold() {
    let changes: [fn(&mut Tables); 3] = [
        |tables| tables.config.since = NOW + QUIET,
        |tables| (MEMBERS.pods)(tables, Some(NOW + QUIET)),
        |tables| (MEMBERS.peers)(tables, Some(NOW + QUIET)),
    ];
    for change in changes {
        let mut lab = Lab::established();
        change(&mut lab.tables);
        assert_eq!(lab.send(Leg::Out, ACK), Err(Outcome::NoFlow));
        assert_eq!(lab.send(Leg::In, ACK), Err(Outcome::NoFlow));
        assert_eq!(lab.attest(Leg::Out), Outcome::Attested);
        assert_eq!(lab.send(Leg::Out, ACK), FAST);
    }
}

#[test]
fn a_flow_that_turns_fast_queues_up_behind_its_own_packets() {
    let queued = Ok(Permit {
        probe: false,
        queue: true,
    });
    let lab = Lab::new();
    lab.attest(Leg::In);
    assert_eq!(
        lab.send(Leg::In, ACK),
        queued,
        "the first may be at the veth"
    );
    lab.pass(QUIET / 2);
    assert_eq!(lab.send(Leg::In, ACK), queued, "the second may be");
    lab.pass(QUIET + 1);
    assert_eq!(lab.send(Leg::In, ACK), FAST);
}

#[test]
fn an_entry_that_the_other_leg_has_made_queues_up_too() {
    let lab = Lab::new();
    lab.attest(Leg::Out);
    assert_eq!(lab.send(Leg::In, ACK), Err(Outcome::NoFlow));
    lab.pass(1);
    lab.attest(Leg::In);
    let queued = lab.send(Leg::In, ACK);
    assert!(
        queued.is_ok_and(|permit| permit.queue),
        "the one before may be at the veth: {queued:?}"
    );
}

#[test]
fn an_acknowledgment_of_the_pod_proves_the_queue_empty() {
    let lab = Lab::new();
    lab.attest(Leg::In);
    lab.attest(Leg::Out);
    let mut answer = Lab::frame(Leg::Out, ACK);
    let end = lab.flows.get(&Lab::key()).expect("an entry").queued_end as u32;
    answer[ACKNOWLEDGMENT..][..4].copy_from_slice(&end.wrapping_sub(1).to_be_bytes());
    assert_eq!(lab.ask(Leg::Out, &answer), FAST);
    assert!(lab.send(Leg::In, ACK).is_ok_and(|permit| permit.queue));
    answer[ACKNOWLEDGMENT..][..4].copy_from_slice(&end.to_be_bytes());
    assert_eq!(lab.ask(Leg::Out, &answer), FAST);
    assert_eq!(lab.send(Leg::In, ACK), FAST);
}

#[test]
fn tcp_is_fast_only_if_conntrack_is_liberal() {
    let mut lab = Lab::established();
    lab.tables.config.flags &= !FLAG_TCP;
    assert_eq!(lab.send(Leg::Out, ACK), Err(Outcome::TcpStrict));
    lab.tables.config.flags &= !FLAG_FLOWS;
    assert_eq!(lab.send(Leg::Out, ACK), FAST, "that mode asks nobody");
}

#[test]
fn without_a_heartbeat_nothing_is_fast() {
    let mut lab = Lab::established();
    lab.tables.expired = true;
    assert_eq!(lab.send(Leg::Out, ACK), Err(Outcome::NoHeartbeat));
    assert_eq!(lab.send(Leg::In, ACK), Err(Outcome::NoHeartbeat));
}

#[test]
fn switched_off_nothing_is_learned() {
    let mut lab = Lab::new();
    lab.tables.config.flags &= !FLAG_ACTIVE;
    assert_eq!(lab.attest(Leg::Out), Outcome::Inactive);
}

#[test]
fn strict_source_checks_drop_what_others_leave_to_the_kernel() {
    let decide = |lab: &Lab, frame: &Frame, port: Option<u16>| {
        let mut frame = frame.clone().link(POD_MAC, BRIDGE.mac).build();
        if let Some(port) = port {
            frame[L4 + 2..][..2].copy_from_slice(&port.to_be_bytes());
        }
        let meta = Meta {
            len: frame.len() as u32,
            ifindex: PORT.index,
            ..Meta::default()
        };
        egress(&frame, &meta, Port::Pod, &lab.tables, &lab.flows).err()
    };
    let mut lab = Lab::new();
    let sibling = Frame::udp(POD_VIA, REMOTE.pod);
    let icmp = Frame::other(OUTSIDE, REMOTE.pod, 1);
    let vxlan = Frame::udp(POD, NODE);
    assert_eq!(decide(&lab, &sibling, None), Some(Outcome::PodSource));
    assert_eq!(decide(&lab, &icmp, None), Some(Outcome::Protocol));
    assert_eq!(
        decide(&lab, &vxlan, Some(VXLAN_PORT)),
        Some(Outcome::PodVxlan)
    );
    lab.tables.config.flags |= FLAG_STRICT;
    assert_eq!(decide(&lab, &sibling, None), Some(Outcome::DropPodSource));
    assert_eq!(decide(&lab, &icmp, None), Some(Outcome::DropPodSource));
    assert_eq!(
        decide(&lab, &vxlan, Some(VXLAN_PORT)),
        Some(Outcome::DropPodVxlan)
    );
    let own = Frame::udp(POD, OUTSIDE);
    assert_eq!(decide(&lab, &own, None), Some(Outcome::NoPeer));
}

//! What is remembered of a packet that the kernel has just forwarded between a pod of this node and another node.
//!
//! Called behind the kernel's forwarding, at the last device: every chain has let the packet pass. What may be fast
//! afterwards is decided in [`super::permit`].

use super::transport::{Transport, ends};
use super::{L3, Meta, Routes, Tag};
use crate::family::Family;
use crate::flow::{Flow, Flows, Leg, LegTimes};
use crate::maps::{FLAG_ACTIVE, FLAG_FLOWS};
use crate::outcome::Outcome;
use crate::wire::Packet;
use crate::wire::ethernet::Ethernet;

/// What becomes of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Pass,
    /// It was a probe, and nobody must get it.
    Drop,
}

/// Time to live of a probe when it is sent. One hop later, at the hook that attests, it has one left: should it get out
/// of the node past that hook (a route was turned, the hook was taken away), the next node does not forward it to a pod.
///
/// It also keeps probes apart where packets are merged (GRO compares it), which is why packets that have as little left
/// themselves are never probes.
pub const PROBE_TTL: u8 = 2;

/// Learns from a packet of `leg` if it is of the family `A`; `attested` asks conntrack.
///
/// A probe goes no further, whatever was learned, wherever the kernel has sent it and whatever rules have made of its
/// bytes: somebody would get its original a second time. Its tag alone tells it, which no rule can copy to a packet that
/// is none.
#[inline(always)]
pub fn attest<A: Family, P: Packet + ?Sized, T: Routes<A>, F: Flows<A::Key>>(
    packet: &P,
    meta: &Meta,
    leg: Leg,
    topology: &T,
    flows: &F,
    attested: impl FnOnce() -> bool,
) -> (Verdict, Outcome) {
    let (Ok(outcome) | Err(outcome)) =
        learn::<A, P, T, F>(packet, meta, leg, topology, flows, attested);
    let verdict = if meta.tag == Tag::Probe {
        Verdict::Drop
    } else {
        Verdict::Pass
    };
    (verdict, outcome)
}

/// `Err` is what says nothing of any flow.
#[inline(always)]
fn learn<A: Family, P: Packet + ?Sized, T: Routes<A>, F: Flows<A::Key>>(
    packet: &P,
    meta: &Meta,
    leg: Leg,
    topology: &T,
    flows: &F,
    attested: impl FnOnce() -> bool,
) -> Result<Outcome, Outcome> {
    let config = topology.config();
    if meta.tag == Tag::Fast {
        return Err(Outcome::Redirected);
    }
    if config.flags & (FLAG_ACTIVE | FLAG_FLOWS) != FLAG_ACTIVE | FLAG_FLOWS {
        return Err(Outcome::Inactive);
    }
    // Tells what came through the kernel's forwarding from what was made on this host, or is between two of its pods.
    let came_from = meta.ingress_ifindex;
    let forwarded = match leg {
        Leg::Out => came_from == config.bridge_index,
        Leg::In => came_from == A::vtep_index(config) || came_from == config.uplink_index,
    };
    if came_from == 0 || !forwarded {
        return Err(Outcome::Elsewhere);
    }
    let ethernet: Ethernet = packet.read(0).ok_or(Outcome::Malformed)?;
    if ethernet.ethertype != A::ETHERTYPE || config.flags & A::FLAG != A::FLAG {
        return Err(Outcome::NotIp);
    }
    let ip: A::Header = packet.read(L3).ok_or(Outcome::Malformed)?;
    A::check(&ip)?;
    let transport = Transport::read::<A, P>(packet, L3, &ip)?;
    let key = transport.flow::<A>(&ip, leg);
    let flow = flows.find(&key);
    // Asked before pods and peers are looked up: conntrack has a quick answer for what is never attested.
    if !attested() {
        if flow.is_some() && !cfg!(feature = "broken-no-kill") {
            flows.forget(&key);
            return Ok(Outcome::Killed);
        }
        return Ok(Outcome::Refused);
    }
    if transport.is_control() || flow.is_some_and(|flow| flow.closing(leg)) {
        return Ok(Outcome::NotKept);
    }
    let now = flows.now();
    if let Some(flow) = flow {
        flow.set_attested(leg, now);
        return Ok(if meta.tag == Tag::Probe {
            Outcome::ProbeDone
        } else {
            Outcome::Attested
        });
    }
    let (pod, remote) = ends::<A>(&ip, leg);
    if topology.pod(pod).is_none() || topology.peer(remote).is_none() {
        return Err(Outcome::Elsewhere);
    }
    let mut new = Flow::default();
    new.legs[leg as usize] = LegTimes {
        attested: now,
        ..LegTimes::default()
    };
    if leg == Leg::In {
        // More of the flow may be on its way, behind this packet.
        new.queued = now;
        new.queued_end = u64::from(transport.end);
        new.acknowledged = u64::from(transport.end.wrapping_sub(1));
    }
    flows.create(&key, &new);
    Ok(Outcome::Created)
}

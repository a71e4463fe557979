//! From a pod of this node towards another node.

use super::permit::{Permit, permit};
use super::{L3, Meta, Topology, alive, check_mtu, forwardable, frame};
use crate::flow::{Flows, Leg, SharedFlow};
use crate::maps::{FLAG_ASSIST, FLAG_STRICT, LocalPod, Peer};
use crate::outcome::Outcome;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::udp::Udp;
use crate::wire::{Packet, vxlan};

/// Where the source address of a packet is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// The hook sits on the pod's own interface: the address must be bound to it.
    Pod,
    /// The hook sits on the bridge: the address must be some pod's.
    Bridge,
}

/// How the packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Encapsulated in BPF, then to the next hop on the node's interface.
    Encap,
    /// To the VXLAN device, which encapsulates it.
    Device,
    /// As it is, to the next hop on the node's interface.
    Direct,
}

/// A packet that may leave.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// How.
    pub via: Via,
    /// Where to.
    pub peer: &'a Peer,
    /// Its IPv4 header, one hop further.
    pub ip: Ipv4,
    /// Whether the kernel is asked again meanwhile.
    pub permit: Permit,
    /// What is remembered of its flow; nothing where flows need no permission.
    pub flow: Option<&'a SharedFlow>,
}

/// Decides about a packet that a pod sent.
///
/// # Errors
/// The reason why the kernel must handle it.
#[inline(always)]
pub fn decide<'a, P: Packet + ?Sized, T: Topology, F: Flows>(
    packet: &P,
    meta: &Meta,
    port: Port,
    topology: &'a T,
    flows: &'a F,
) -> Result<Forward<'a>, Outcome> {
    let config = topology.config();
    let ethernet = frame(packet, meta, topology)?;
    if config.flags & FLAG_STRICT != 0 {
        alive(topology, flows.tick())?;
        strict(packet, meta, port, topology)?;
    }
    if ethernet.destination != config.bridge_mac {
        return Err(Outcome::NotRouted);
    }
    let mut ip = forwardable(packet, L3, meta.len.wrapping_sub(L3 as u32))?;
    let Some(peer) = topology.peer(ip.destination) else {
        return Err(if is_vxlan(packet, &ip, topology) {
            Outcome::PodVxlan
        } else {
            Outcome::NoPeer
        });
    };
    let (via, mtu) = match (peer.is_direct(), config.flags & FLAG_ASSIST != 0) {
        (true, _) => (Via::Direct, config.direct_mtu),
        (false, false) => (Via::Encap, config.tunnel_mtu),
        (false, true) => (Via::Device, config.tunnel_mtu),
    };
    check_mtu(packet, L3, &ip, meta.gso_size, mtu)?;
    // The outer header must be able to say how long an aggregate is.
    if via == Via::Encap && ip.total_len.get() > u16::MAX - vxlan::OVERHEAD as u16 {
        return Err(Outcome::Mtu);
    }
    let source = || {
        let pod = own(&ip, meta, port, topology).ok_or(Outcome::PodSource)?;
        Ok(pod.since)
    };
    let (permit, flow) = permit(
        packet,
        L3,
        &ip,
        Leg::Out,
        meta.ifindex,
        source,
        peer.since,
        false,
        topology,
        flows,
    )?;
    ip.decrement_ttl();
    Ok(Forward {
        via,
        peer,
        ip,
        permit,
        flow,
    })
}

/// The pod that the packet comes from, if its source address is that pod's.
#[inline(always)]
fn own<'a, T: Topology>(
    ip: &Ipv4,
    meta: &Meta,
    port: Port,
    topology: &'a T,
) -> Option<&'a LocalPod> {
    let pod = topology.pod(ip.source)?;
    (port == Port::Bridge || pod.host_index == meta.ifindex).then_some(pod)
}

/// Whether the packet is VXLAN towards a node: from a pod it would be masqueraded, and so arrive from a trusted VTEP.
#[inline(always)]
fn is_vxlan<P: Packet + ?Sized, T: Topology>(packet: &P, ip: &Ipv4, topology: &T) -> bool {
    ip.protocol == ipv4::UDP
        && packet
            .read::<Udp>(L3 + ipv4::LEN)
            .is_some_and(|udp| udp.destination == topology.config().vxlan_port)
        && topology.pod(ip.destination).is_none()
}

/// What strict source checks drop, of whatever protocol, fragmented or not.
///
/// # Errors
/// The reason to drop it.
#[inline(always)]
fn strict<P: Packet + ?Sized, T: Topology>(
    packet: &P,
    meta: &Meta,
    port: Port,
    topology: &T,
) -> Result<(), Outcome> {
    let ip: Ipv4 = packet.read(L3).ok_or(Outcome::Malformed)?;
    if own(&ip, meta, port, topology).is_none() {
        return Err(Outcome::DropPodSource);
    }
    let whole_header = ip.version_ihl == ipv4::VERSION_IHL && !ip.is_later_fragment();
    if whole_header && is_vxlan(packet, &ip, topology) && topology.peer(ip.destination).is_none() {
        return Err(Outcome::DropPodVxlan);
    }
    Ok(())
}

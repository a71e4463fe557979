//! From a pod of this node towards another node.

use super::{L3, Meta, Topology, check_mtu, forwardable, frame};
use crate::maps::{FLAG_ASSIST, Peer};
use crate::outcome::Outcome;
use crate::wire::ipv4::Ipv4;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward<'a> {
    /// How.
    pub via: Via,
    /// Where to.
    pub peer: &'a Peer,
    /// Its IPv4 header, one hop further.
    pub ip: Ipv4,
}

/// Decides about a packet that a pod sent.
///
/// # Errors
/// The reason why the kernel must handle it.
#[inline(always)]
pub fn decide<'a, P: Packet + ?Sized, T: Topology>(
    packet: &P,
    meta: &Meta,
    port: Port,
    topology: &'a T,
) -> Result<Forward<'a>, Outcome> {
    let config = topology.config();
    let ethernet = frame(packet, meta, config)?;
    if ethernet.destination != config.bridge_mac {
        return Err(Outcome::NotRouted);
    }
    let mut ip = forwardable(packet, L3, meta.len.wrapping_sub(L3 as u32))?;
    let peer = topology.peer(ip.destination).ok_or(Outcome::NoPeer)?;
    let pod = topology.pod(ip.source).ok_or(Outcome::PodSource)?;
    if port == Port::Pod && pod.host_index != meta.ifindex {
        return Err(Outcome::PodSource);
    }
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
    ip.decrement_ttl();
    Ok(Forward { via, peer, ip })
}

//! From another node to a pod of this one.

use super::permit::{Permit, permit};
use super::{L3, Meta, Routes, alive, check_mtu, forwardable};
use crate::addr::Mac;
use crate::family::Family;
use crate::flow::{FlowKey, Flows, Leg};
use crate::maps::{
    CARRIED_BITS, Config, FLAG_DECAP, FLAG_STRICT, FLAG_XDP, PeerEntry as _, PodEntry as _,
};
use crate::outcome::Outcome;
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::ip::IpHeader as _;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::udp::{self, Udp};
use crate::wire::vxlan::{self, Vxlan};
use crate::wire::{Be32, Packet};

/// A packet that may be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deliver<'a, A: Family> {
    /// To whom.
    pub pod: &'a A::Pod,
    /// Whether it is still encapsulated.
    pub tunnelled: bool,
    /// Whether XDP has taken it out of its tunnel.
    pub decapsulated: bool,
    /// Its IP header, one hop further.
    pub ip: A::Header,
    /// How it is carried.
    pub permit: Permit,
}

impl<A: Family> Deliver<'_, A> {
    /// Offset in bytes of the IP header that it is forwarded by, before anything is taken off the packet.
    #[inline(always)]
    pub const fn offset(&self) -> usize {
        if self.tunnelled { INNER_L3 } else { L3 }
    }
}

/// Offsets in bytes of what VXLAN puts in front of the inner packet.
const UDP: usize = L3 + ipv4::LEN;
const VXLAN: usize = UDP + udp::LEN;
const INNER_ETHERNET: usize = VXLAN + vxlan::LEN;
const INNER_L3: usize = INNER_ETHERNET + ethernet::LEN;

/// Where a packet comes from whose node does not show: addresses that no node has, for those that are routed here, and
/// for those that the VXLAN device has decapsulated.
const ROUTED: u32 = u32::MAX - 1;
const DEVICE: u32 = u32::MAX;

/// Decides about an IPv4 packet that arrived at the node's interface, in a frame that [`super::frame`] has let through.
///
/// # Errors
/// The reason why the kernel must handle it.
#[inline(always)]
pub fn from_wire<'a, P: Packet + ?Sized, T: Routes<Be32>, F: Flows<FlowKey>>(
    packet: &P,
    meta: &Meta,
    ethernet: &Ethernet,
    topology: &'a T,
    flows: &F,
) -> Result<Deliver<'a, Be32>, Outcome> {
    let config = topology.config();
    if !meta.to_us {
        return Err(Outcome::NotRouted);
    }
    let outer: Ipv4 = packet.read(L3).ok_or(Outcome::Malformed)?;
    if let Some(permit) = carried_by_xdp(ethernet, config) {
        return Ok(Deliver {
            pod: topology.pod(outer.destination).ok_or(Outcome::NoPod)?,
            tunnelled: false,
            decapsulated: true,
            ip: outer,
            permit,
        });
    }
    if { outer.destination } == config.node_ip {
        if config.flags & FLAG_DECAP == 0 {
            return Err(Outcome::NoPod);
        }
        return tunnelled(packet, meta, topology, flows, &outer);
    }
    routed::<Be32, P, T, F>(packet, meta, topology, flows, &outer)
}

/// Decides about a packet that arrived at the node's interface, of a family whose tunnel is the kernel's alone, in a frame
/// that [`super::frame`] has let through.
///
/// # Errors
/// The reason why the kernel must handle it.
#[inline(always)]
pub fn from_wire_routed<'a, A: Family, P: Packet + ?Sized, T: Routes<A>, F: Flows<A::Key>>(
    packet: &P,
    meta: &Meta,
    topology: &'a T,
    flows: &F,
) -> Result<Deliver<'a, A>, Outcome> {
    if !meta.to_us {
        return Err(Outcome::NotRouted);
    }
    let ip: A::Header = packet.read(L3).ok_or(Outcome::Malformed)?;
    routed::<A, P, T, F>(packet, meta, topology, flows, &ip)
}

/// A packet to a pod, if it is one, from a node that needs no tunnel.
#[inline(always)]
fn routed<'a, A: Family, P: Packet + ?Sized, T: Routes<A>, F: Flows<A::Key>>(
    packet: &P,
    meta: &Meta,
    topology: &'a T,
    flows: &F,
    ip: &A::Header,
) -> Result<Deliver<'a, A>, Outcome> {
    let pod = topology.pod(ip.destination()).ok_or(Outcome::NoPod)?;
    // A network card pads short frames: the bytes after the packet are none of its own. A length that does not cover
    // the header itself is no padding; nor is that of an aggregate of more than 65 535 bytes.
    let total_len = ip.total_len();
    if total_len < A::SHORTEST {
        return Err(Outcome::Malformed);
    }
    let len = meta.len.wrapping_sub(L3 as u32).min(total_len);
    let mut ip = forwardable::<A, P>(packet, L3, len)?;
    check_mtu::<A, P>(packet, L3, &ip, meta.gso_size, topology.config().pod_mtu)?;
    let source = || {
        let peer = topology.peer(ip.source()).filter(|peer| peer.is_direct());
        peer.map(|peer| peer.since()).ok_or(Outcome::PeerSource)
    };
    let (permit, _) = permit::<A, P, T, F>(
        packet,
        L3,
        &ip,
        Leg::In,
        ROUTED,
        source,
        pod.since(),
        false,
        topology,
        flows,
    )?;
    ip.decrement_ttl();
    Ok(Deliver {
        pod,
        tunnelled: false,
        decapsulated: false,
        ip,
        permit,
    })
}

/// Decides about an IPv4 packet in a frame that [`super::frame`] has let through at the node's interface, before the kernel
/// has made a packet of it. What is not to be
/// decapsulated takes the way that it would take without XDP.
///
/// # Errors
/// The reason why it is left as it is, or dropped.
#[inline(always)]
pub fn from_driver<'a, P: Packet + ?Sized, T: Routes<Be32>, F: Flows<FlowKey>>(
    packet: &P,
    meta: &Meta,
    ethernet: &Ethernet,
    topology: &'a T,
    flows: &F,
) -> Result<Deliver<'a, Be32>, Outcome> {
    let config = topology.config();
    if ethernet.destination != config.uplink_mac {
        return Err(Outcome::NotRouted);
    }
    let outer: Ipv4 = packet.read(L3).ok_or(Outcome::Malformed)?;
    if { outer.destination } != config.node_ip || config.flags & FLAG_XDP == 0 {
        return Err(Outcome::NoPod);
    }
    tunnelled(packet, meta, topology, flows, &outer)
}

/// The source address of what XDP has decapsulated, to be carried so.
#[inline(always)]
pub fn xdp_source(config: &Config, permit: Permit) -> Mac {
    let mut source = config.xdp_mac;
    source.0[LAST] |= permit.carried();
    source
}

/// How a packet is carried that [`from_driver`] has let through, if this is the link-layer header of one: it has gone one
/// hop further, and all questions are answered but where its pod is now.
#[inline(always)]
pub fn carried_by_xdp(ethernet: &Ethernet, config: &Config) -> Option<Permit> {
    let mut source = ethernet.source;
    let bits = source.0[LAST] & CARRIED_BITS;
    source.0[LAST] &= !CARRIED_BITS;
    let is_ours = config.xdp_mac != Mac::default() && source == config.xdp_mac;
    is_ours.then(|| Permit::from_carried(bits))
}

/// The last byte of a link-layer address.
const LAST: usize = 5;

/// A packet to this node's address, which may be VXLAN.
#[inline(always)]
fn tunnelled<'a, P: Packet + ?Sized, T: Routes<Be32>, F: Flows<FlowKey>>(
    packet: &P,
    meta: &Meta,
    topology: &'a T,
    flows: &F,
    outer: &Ipv4,
) -> Result<Deliver<'a, Be32>, Outcome> {
    let config = topology.config();
    if outer.version_ihl != ipv4::VERSION_IHL {
        return Err(Outcome::Options);
    }
    if outer.protocol != ipv4::UDP {
        return Err(Outcome::NoPod);
    }
    if outer.is_fragment() {
        return Err(Outcome::Fragment);
    }
    let udp: Udp = packet.read(UDP).ok_or(Outcome::Malformed)?;
    if udp.destination != config.vxlan_port {
        return Err(Outcome::NoPod);
    }
    let vxlan: Vxlan = packet.read(VXLAN).ok_or(Outcome::Malformed)?;
    let inner_ethernet: Ethernet = packet.read(INNER_ETHERNET).ok_or(Outcome::Malformed)?;
    if !vxlan.is(config.vni)
        || inner_ethernet.destination != config.vtep_mac
        || inner_ethernet.source == config.vtep_mac
    {
        return Err(Outcome::NotOurVxlan);
    }
    if inner_ethernet.ethertype != ethernet::IPV4 {
        return Err(Outcome::NotIp);
    }
    let outer_len = u32::from(outer.total_len.get());
    if outer_len != meta.len.wrapping_sub(L3 as u32)
        || u32::from(udp.len.get()) != outer_len - ipv4::LEN as u32
    {
        return Err(Outcome::Malformed);
    }
    let peer_of = |ip: &Ipv4| {
        topology
            .peer(ip.source)
            .filter(|peer| peer.node_ip == { outer.source })
    };
    if config.flags & FLAG_STRICT != 0 {
        alive(topology.expires(), flows.tick())?;
        let ip: Ipv4 = packet.read(INNER_L3).ok_or(Outcome::Malformed)?;
        if peer_of(&ip).is_none() {
            return Err(Outcome::DropPeerSource);
        }
    }
    let ip = forwardable::<Be32, P>(packet, INNER_L3, meta.len.wrapping_sub(INNER_L3 as u32))?;
    let pod = topology.pod(ip.destination).ok_or(Outcome::NoPod)?;
    // An inner datagram without a checksum is covered by the outer one alone, which only the kernel verifies.
    if ip.protocol == ipv4::UDP && udp.checksum.raw() != 0 {
        let inner_udp: Udp = packet
            .read(INNER_L3 + ipv4::LEN)
            .ok_or(Outcome::Malformed)?;
        if inner_udp.checksum.raw() == 0 {
            return Err(Outcome::Checksum);
        }
    }
    check_mtu::<Be32, P>(packet, INNER_L3, &ip, meta.gso_size, config.pod_mtu)?;
    let mut merged = ip;
    if !merged.merge_outer_ecn(outer.tos) {
        return Err(Outcome::Ecn);
    }
    let source = || {
        let peer = peer_of(&ip).ok_or(Outcome::PeerSource)?;
        Ok(peer.since)
    };
    let (permit, flow) = permit::<Be32, P, T, F>(
        packet,
        INNER_L3,
        &ip,
        Leg::In,
        outer.source.raw(),
        source,
        pod.since,
        true,
        topology,
        flows,
    )?;
    // What TC takes out of a tunnel still counts as being in one (`SKB_GSO_UDP_TUNNEL` and `skb->encapsulation` stay set
    // by `bpf_skb_adjust_room`). The kernel's segmentation of UDP believes that, and looks for an inner header
    // (`udp4_ufo_fragment`); that of TCP does not ask.
    if ip.protocol == ipv4::UDP && meta.gso_size != 0 {
        if let Some(flow) = flow {
            flow.set_queued(flows.now(), 0, true);
        }
        return Err(Outcome::Datagrams);
    }
    let mut ip = merged;
    ip.decrement_ttl();
    Ok(Deliver {
        pod,
        tunnelled: true,
        decapsulated: false,
        ip,
        permit,
    })
}

/// Decides about a packet that the VXLAN device has decapsulated, in a frame that [`super::frame`] has let through.
///
/// # Errors
/// The reason why the kernel must handle it.
#[inline(always)]
pub fn from_vtep<'a, A: Family, P: Packet + ?Sized, T: Routes<A>, F: Flows<A::Key>>(
    packet: &P,
    meta: &Meta,
    ethernet: &Ethernet,
    topology: &'a T,
    flows: &F,
) -> Result<Deliver<'a, A>, Outcome> {
    let config = topology.config();
    if ethernet.destination != A::vtep_mac(config) {
        return Err(Outcome::NotRouted);
    }
    let mut ip = forwardable::<A, P>(packet, L3, meta.len.wrapping_sub(L3 as u32))?;
    let pod = topology.pod(ip.destination()).ok_or(Outcome::NoPod)?;
    check_mtu::<A, P>(packet, L3, &ip, meta.gso_size, config.pod_mtu)?;
    let source = || {
        let peer = topology.peer(ip.source()).ok_or(Outcome::PeerSource)?;
        Ok(peer.since())
    };
    let (permit, _) = permit::<A, P, T, F>(
        packet,
        L3,
        &ip,
        Leg::In,
        DEVICE,
        source,
        pod.since(),
        false,
        topology,
        flows,
    )?;
    ip.decrement_ttl();
    Ok(Deliver {
        pod,
        tunnelled: false,
        decapsulated: false,
        ip,
        permit,
    })
}

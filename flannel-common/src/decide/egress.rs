//! From a pod of this node towards another node.

use super::permit::{Permit, permit};
use super::{L3, Meta, Routes, alive, check_mtu, forwardable};
use crate::family::Family;
use crate::flow::{Flows, Leg, SharedFlow};
use crate::maps::{FLAG_STRICT, PeerEntry as _, PodEntry as _};
use crate::outcome::Outcome;
use crate::wire::ethernet::Ethernet;
use crate::wire::ip::{self, IpHeader as _};
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
pub struct Forward<'a, A: Family> {
    /// How.
    pub via: Via,
    /// Where to.
    pub peer: &'a A::Peer,
    /// Its IP header, one hop further.
    pub ip: A::Header,
    /// Whether the kernel is asked again meanwhile.
    pub permit: Permit,
    /// What is remembered of its flow; nothing where flows need no permission.
    pub flow: Option<&'a SharedFlow>,
}

/// Decides about a packet that a pod sent, in a frame that [`super::frame`] has let through.
///
/// # Errors
/// The reason why the kernel must handle it.
#[inline(always)]
pub fn decide<'a, A: Family, P: Packet + ?Sized, T: Routes<A>, F: Flows<A::Key>>(
    packet: &P,
    meta: &Meta,
    ethernet: &Ethernet,
    port: Port,
    topology: &'a T,
    flows: &'a F,
) -> Result<Forward<'a, A>, Outcome> {
    let config = topology.config();
    if config.flags & FLAG_STRICT != 0 {
        alive(topology.expires(), flows.tick())?;
        strict::<A, P, T>(packet, meta, port, topology)?;
    }
    if ethernet.destination != config.bridge_mac {
        return Err(Outcome::NotRouted);
    }
    let mut ip = forwardable::<A, P>(packet, L3, meta.len.wrapping_sub(L3 as u32))?;
    let Some(peer) = topology.peer(ip.destination()) else {
        return Err(if is_vxlan::<A, P, T>(packet, &ip, topology) {
            Outcome::PodVxlan
        } else {
            Outcome::NoPeer
        });
    };
    let (via, mtu) = match (peer.is_direct(), A::encapsulates(config)) {
        (true, _) => (Via::Direct, config.direct_mtu),
        (false, true) => (Via::Encap, A::tunnel_mtu(config)),
        (false, false) => (Via::Device, A::tunnel_mtu(config)),
    };
    check_mtu::<A, P>(packet, L3, &ip, meta.gso_size, mtu)?;
    // The outer header must be able to say how long an aggregate is.
    if via == Via::Encap && ip.total_len() > u32::from(u16::MAX) - vxlan::OVERHEAD as u32 {
        return Err(Outcome::Mtu);
    }
    let source = || {
        let pod = own::<A, T>(&ip, meta, port, topology).ok_or(Outcome::PodSource)?;
        Ok(pod.since())
    };
    let (permit, flow) = permit::<A, P, T, F>(
        packet,
        L3,
        &ip,
        Leg::Out,
        meta.ifindex,
        source,
        peer.since(),
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
fn own<'a, A: Family, T: Routes<A>>(
    ip: &A::Header,
    meta: &Meta,
    port: Port,
    topology: &'a T,
) -> Option<&'a A::Pod> {
    let pod = topology.pod(ip.source())?;
    (port == Port::Bridge || pod.host_index() == meta.ifindex).then_some(pod)
}

/// Whether the packet is VXLAN towards a node: from a pod it would be masqueraded, and so arrive from a trusted VTEP.
#[inline(always)]
fn is_vxlan<A: Family, P: Packet + ?Sized, T: Routes<A>>(
    packet: &P,
    ip: &A::Header,
    topology: &T,
) -> bool {
    ip.protocol() == ip::UDP
        && packet
            .read::<Udp>(L3 + A::LEN)
            .is_some_and(|udp| udp.destination == topology.config().vxlan_port)
        && topology.pod(ip.destination()).is_none()
}

/// What strict source checks drop, of whatever protocol, fragmented or not.
///
/// # Errors
/// The reason to drop it.
#[inline(always)]
fn strict<A: Family, P: Packet + ?Sized, T: Routes<A>>(
    packet: &P,
    meta: &Meta,
    port: Port,
    topology: &T,
) -> Result<(), Outcome> {
    let ip: A::Header = packet.read(L3).ok_or(Outcome::Malformed)?;
    if own::<A, T>(&ip, meta, port, topology).is_none() && !A::stays_on_link(ip.source()) {
        return Err(Outcome::DropPodSource);
    }
    if A::is_before_transport(&ip)
        && is_vxlan::<A, P, T>(packet, &ip, topology)
        && topology.peer(ip.destination()).is_none()
    {
        return Err(Outcome::DropPodVxlan);
    }
    Ok(())
}

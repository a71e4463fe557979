//! What to do with a packet, as pure functions of its headers and the maps.
//!
//! A decision is taken on a packet that has not been touched; only when every question is answered does a hook begin
//! to write. `Err` carries the reason why the kernel must handle the packet.

use crate::family::Family;
use crate::maps::{Config, FLAG_ACTIVE};
use crate::outcome::Outcome;
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::ip::{self, IpHeader as _};
use crate::wire::tcp::Tcp;
use crate::wire::{Be128, Packet, udp};

pub mod attest;
pub mod conntrack;
pub mod egress;
pub mod encap;
pub mod ingress;
pub mod permit;
pub mod transport;

/// Offset in bytes of the IP header behind an Ethernet header.
pub const L3: usize = ethernet::LEN;

/// What the agent says of the node as a whole.
pub trait Topology {
    /// The node's interfaces and addresses.
    fn config(&self) -> &Config;

    /// Changes whenever the answers of [`Routes`] may; never zero.
    fn generation(&self) -> u32;

    /// Until when all this may be believed, in nanoseconds of `CLOCK_MONOTONIC`.
    fn expires(&self) -> u64;
}

/// Lookups in the maps of one address family that the agent keeps in step with the cluster.
pub trait Routes<A: Family>: Topology {
    /// The node whose subnet holds `address`.
    fn peer(&self, address: A) -> Option<&A::Peer>;

    /// The pod of this node with that address.
    fn pod(&self, address: A) -> Option<&A::Pod>;
}

/// What this host has written beside a packet, to tell its own packets apart. It never leaves the host.
///
/// It lies in `sk_buff::tc_index`, which routing, netfilter and tunnels do not look at, and not in the packet's mark,
/// which rules may copy onto other packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tag {
    /// Nothing, or something of somebody else.
    #[default]
    None,
    /// Redirected by a hook of the fast path.
    Fast,
    /// A copy that goes through the kernel to be attested.
    Probe,
}

impl Tag {
    /// The value of `sk_buff::tc_index`.
    pub const fn index(self) -> u16 {
        match self {
            Self::None => 0,
            Self::Fast => 0xf1a0,
            Self::Probe => 0xf1a1,
        }
    }

    /// The tag that a value of `sk_buff::tc_index` means.
    #[inline(always)]
    pub const fn from_index(index: u16) -> Self {
        const FAST: u16 = Tag::Fast.index();
        const PROBE: u16 = Tag::Probe.index();
        match index {
            FAST => Self::Fast,
            PROBE => Self::Probe,
            _ => Self::None,
        }
    }
}

/// What the kernel knows of a packet beside its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Length in bytes from the link-layer header, of the whole aggregate if it is one.
    pub len: u32,
    /// Payload bytes of each segment if the packet is an aggregate, else zero.
    pub gso_size: u32,
    /// Index of the interface that the hook is attached to.
    pub ifindex: u32,
    /// Whether a VLAN tag was taken off the packet.
    pub vlan: bool,
    /// Whether the link layer addressed it to this interface.
    pub to_us: bool,
    /// Index of the interface that it came in by; zero for one made on this host.
    pub ingress_ifindex: u32,
    /// What this host has noted beside it.
    pub tag: Tag,
}

/// A frame that may be forwarded, by what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// An IPv4 packet.
    V4(Ethernet),
    /// An IPv6 packet.
    V6(Ethernet),
}

/// What holds for every hook in front of the kernel's forwarding: the fast path is on, the packet is not a probe, and
/// the frame carries a packet of a family that is served, and no VLAN tag.
///
/// # Errors
/// The reason why the kernel must handle it.
#[inline(always)]
pub fn frame<P: Packet + ?Sized, T: Topology>(
    packet: &P,
    meta: &Meta,
    topology: &T,
) -> Result<Frame, Outcome> {
    let flags = topology.config().flags;
    if flags & FLAG_ACTIVE == 0 {
        return Err(Outcome::Inactive);
    }
    if meta.tag == Tag::Probe {
        return Err(Outcome::Probe);
    }
    if meta.vlan {
        return Err(Outcome::Vlan);
    }
    let ethernet: Ethernet = packet.read(0).ok_or(Outcome::Malformed)?;
    match ethernet.ethertype {
        ethernet::IPV4 => Ok(Frame::V4(ethernet)),
        ethernet::IPV6 if flags & Be128::FLAG != 0 => Ok(Frame::V6(ethernet)),
        _ => Err(Outcome::NotIp),
    }
}

/// Whether what the maps say may still be believed at time `now`. Asked before anything is done that only a true topology
/// justifies; what is the kernel's anyway need not know.
#[inline(always)]
fn alive(expires: u64, now: u64) -> Result<(), Outcome> {
    if now > expires {
        Err(Outcome::NoHeartbeat)
    } else {
        Ok(())
    }
}

/// Reads the IP header at `offset` and refuses what the fast path never takes. `len` is the number of bytes from there
/// to the end of the packet.
#[inline(always)]
fn forwardable<A: Family, P: Packet + ?Sized>(
    packet: &P,
    offset: usize,
    len: u32,
) -> Result<A::Header, Outcome> {
    let ip: A::Header = packet.read(offset).ok_or(Outcome::Malformed)?;
    A::check(&ip)?;
    if ip.ttl() <= 1 {
        return Err(Outcome::Ttl);
    }
    // The kernel trims what follows the packet, and knows aggregates of more than 65 535 bytes by a length of zero.
    if ip.total_len() != len {
        return Err(Outcome::Malformed);
    }
    Ok(ip)
}

/// Whether the packet, or each segment of an aggregate, fits into `mtu`.
#[inline(always)]
fn check_mtu<A: Family, P: Packet + ?Sized>(
    packet: &P,
    offset: usize,
    ip: &A::Header,
    gso_size: u32,
    mtu: u16,
) -> Result<(), Outcome> {
    if gso_size != 0 && cfg!(feature = "broken-no-gso-size") {
        return Ok(());
    }
    let largest = if gso_size == 0 {
        ip.total_len()
    } else {
        let l4 = if ip.protocol() == ip::TCP {
            packet
                .read::<Tcp>(offset + A::LEN)
                .ok_or(Outcome::Malformed)?
                .header_len()
        } else {
            udp::LEN as u32
        };
        A::LEN as u32 + l4 + gso_size
    };
    if largest > u32::from(mtu) {
        Err(Outcome::Mtu)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! The bytes that encapsulation puts in front of an inner packet: those of a stock flannel VXLAN device.

use bytemuck::{Pod, Zeroable};

use crate::checksum;
use crate::maps::{Config, Peer};
use crate::wire::Be16;
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::udp::{self, Udp};
use crate::wire::vxlan::{self, Vxlan};

/// Outer IPv4, UDP and VXLAN headers and the inner Ethernet header; the outer Ethernet header is the neighbour
/// layer's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Headers {
    /// Outer IPv4 header.
    pub ip: Ipv4,
    /// Outer UDP header.
    pub udp: Udp,
    /// VXLAN header.
    pub vxlan: Vxlan,
    /// Inner Ethernet header.
    pub ethernet: Ethernet,
}

const _: () = assert!(size_of::<Headers>() == vxlan::OVERHEAD);

/// The headers for a packet to `peer`.
///
/// `inner` is the inner IPv4 header; `hash` the flow's, as the kernel computes it; `id` the IPv4 identification, which
/// must not repeat soon because the packet may be fragmented on its way (it carries no DF flag, as stock flannel's).
/// The UDP checksum is zero, which receivers accept on IPv4 (RFC 7348 section 5).
#[inline(always)]
pub fn headers(config: &Config, peer: &Peer, inner: &Ipv4, hash: u32, id: u16) -> Headers {
    let inner_len = inner.total_len.get();
    let mut ip = Ipv4 {
        version_ihl: ipv4::VERSION_IHL,
        tos: ipv4::outer_tos(inner.tos),
        total_len: Be16::new(inner_len + vxlan::OVERHEAD as u16),
        id: Be16::from_raw(id),
        fragment: Be16::new(0),
        ttl: config.outer_ttl,
        protocol: ipv4::UDP,
        checksum: Be16::new(0),
        source: config.node_ip,
        destination: peer.node_ip,
    };
    ip.checksum = checksum::ipv4_header(&ip);
    let source_port = udp::flow_source_port(hash, config.source_port_min, config.source_port_max);
    Headers {
        ip,
        udp: Udp {
            source: Be16::new(source_port),
            destination: config.vxlan_port,
            len: Be16::new(inner_len + (vxlan::OVERHEAD - ipv4::LEN) as u16),
            checksum: Be16::new(0),
        },
        vxlan: Vxlan::new(config.vni),
        ethernet: Ethernet {
            destination: peer.vtep_mac,
            source: config.vtep_mac,
            ethertype: ethernet::IPV4,
        },
    }
}

/// The headers that `peer` has sent the packet with, or might have: for a copy that the kernel is to see whole, of a packet
/// that has been decapsulated. Its source port is gone.
#[inline(always)]
pub fn received(config: &Config, peer: &Peer, inner: &Ipv4, id: u16) -> Headers {
    let mut headers = headers(config, peer, inner, 0, id);
    // Exchanged addresses have the same checksum.
    headers.ip.source = peer.node_ip;
    headers.ip.destination = config.node_ip;
    headers.ethernet.source = peer.vtep_mac;
    headers.ethernet.destination = config.vtep_mac;
    headers
}

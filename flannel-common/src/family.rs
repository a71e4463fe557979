//! The address families, told apart by the types of their addresses: [`Be32`] is IPv4, [`Be128`] is IPv6.
//!
//! Decisions are written once, for any family, and compiled for each: nothing is asked twice about a packet, and neither
//! family costs the other anything.

use core::fmt::Debug;

use bytemuck::Pod;

use crate::addr::Mac;
use crate::flow::{FlowKey, FlowKey6};
use crate::maps::{
    Config, FLAG_ASSIST, FLAG_IPV6, LocalPod, LocalPod6, Peer, Peer6, PeerEntry, PodEntry,
};
use crate::outcome::Outcome;
use crate::wire::ip::{self, IpHeader};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::{Be16, Be32, Be128, ethernet};

/// An address family, by its addresses.
pub trait Family: Pod + Eq + Debug {
    /// Its header.
    type Header: IpHeader<Address = Self>;
    /// A flow between two of its addresses.
    type Key: Pod + Debug + Eq;
    /// Another node.
    type Peer: PeerEntry<Address = Self> + Debug + Eq;
    /// A pod of this node.
    type Pod: PodEntry<Address = Self> + Debug + Eq;

    /// What its packets are called in an Ethernet header.
    const ETHERTYPE: Be16;
    /// The flag without which it is not served, if there is one.
    const FLAG: u32;
    /// Length in bytes of its header.
    const LEN: usize;
    /// Least length in bytes that a header says of a packet, unless it says nothing of it.
    const SHORTEST: u32;

    /// The bits that both addresses have.
    #[must_use]
    fn and(self, mask: Self) -> Self;

    /// The lowest 32 of the bits above the `host_bits` lowest ones.
    fn above(self, host_bits: u32) -> u32;

    /// Refuses a packet by its header that the fast path never takes, whatever comes after.
    ///
    /// # Errors
    /// The reason why the kernel must handle it.
    fn check(ip: &Self::Header) -> Result<(), Outcome>;

    /// Whether the transport header, if the protocol has one, follows at once.
    fn is_before_transport(ip: &Self::Header) -> bool;

    /// Whether the source address can be nobody's to forge: no packet with it leaves the link.
    fn stays_on_link(source: Self) -> bool;

    /// A flow.
    fn key(pod: Self, remote: Self, pod_port: Be16, remote_port: Be16, protocol: u8) -> Self::Key;

    /// Interface index of the VXLAN device of this family; zero without one.
    fn vtep_index(config: &Config) -> u32;

    /// Address of that device.
    fn vtep_mac(config: &Config) -> Mac;

    /// Largest packet in bytes that fits into the tunnel.
    fn tunnel_mtu(config: &Config) -> u16;

    /// Whether BPF itself encapsulates.
    fn encapsulates(config: &Config) -> bool;
}

impl Family for Be32 {
    type Header = Ipv4;
    type Key = FlowKey;
    type Peer = Peer;
    type Pod = LocalPod;

    const ETHERTYPE: Be16 = ethernet::IPV4;
    const FLAG: u32 = 0;
    const LEN: usize = ipv4::LEN;
    // Aggregates of more than 65 535 bytes have a length of zero.
    const SHORTEST: u32 = ipv4::LEN as u32;

    #[inline(always)]
    fn and(self, mask: Self) -> Self {
        Self::from_raw(self.raw() & mask.raw())
    }

    #[inline(always)]
    fn above(self, host_bits: u32) -> u32 {
        self.get().wrapping_shr(host_bits)
    }

    #[inline(always)]
    fn check(ip: &Ipv4) -> Result<(), Outcome> {
        if ip.version_ihl != ipv4::VERSION_IHL {
            return Err(Outcome::Options);
        }
        if ip.is_fragment() {
            return Err(Outcome::Fragment);
        }
        if ip.protocol != ip::TCP && ip.protocol != ip::UDP {
            return Err(Outcome::Protocol);
        }
        Ok(())
    }

    #[inline(always)]
    fn is_before_transport(ip: &Ipv4) -> bool {
        ip.version_ihl == ipv4::VERSION_IHL && !ip.is_later_fragment()
    }

    #[inline(always)]
    fn stays_on_link(_: Self) -> bool {
        false
    }

    #[inline(always)]
    fn key(pod: Self, remote: Self, pod_port: Be16, remote_port: Be16, protocol: u8) -> FlowKey {
        FlowKey {
            pod,
            remote,
            pod_port,
            remote_port,
            protocol: u32::from(protocol),
        }
    }

    #[inline(always)]
    fn vtep_index(config: &Config) -> u32 {
        config.vtep_index
    }

    #[inline(always)]
    fn vtep_mac(config: &Config) -> Mac {
        config.vtep_mac
    }

    #[inline(always)]
    fn tunnel_mtu(config: &Config) -> u16 {
        config.tunnel_mtu
    }

    #[inline(always)]
    fn encapsulates(config: &Config) -> bool {
        config.flags & FLAG_ASSIST == 0
    }
}

impl Family for Be128 {
    type Header = Ipv6;
    type Key = FlowKey6;
    type Peer = Peer6;
    type Pod = LocalPod6;

    const ETHERTYPE: Be16 = ethernet::IPV6;
    const FLAG: u32 = FLAG_IPV6;
    const LEN: usize = ipv6::LEN;
    // Aggregates of more than 65 535 bytes, and jumbograms, have a payload of zero.
    const SHORTEST: u32 = ipv6::LEN as u32 + 1;

    #[inline(always)]
    fn and(self, mask: Self) -> Self {
        Self::and(self, mask)
    }

    #[inline(always)]
    fn above(self, host_bits: u32) -> u32 {
        let (high, low) = (self.high(), self.low());
        let bits = if host_bits >= u64::BITS {
            high.wrapping_shr(host_bits)
        } else {
            // Shifted in two steps, as one of 64 bits is none.
            low.wrapping_shr(host_bits) | (high << 1).wrapping_shl(u64::BITS - 1 - host_bits)
        };
        bits as u32
    }

    #[inline(always)]
    fn check(ip: &Ipv6) -> Result<(), Outcome> {
        if ip.next_header != ip::TCP && ip.next_header != ip::UDP {
            return Err(match ip.next_header {
                ipv6::FRAGMENT => Outcome::Fragment,
                _ if ip.is_extended() => Outcome::Options,
                _ => Outcome::Protocol,
            });
        }
        if !ip.is_version_6() || ip.payload_len == Be16::new(0) {
            return Err(Outcome::Malformed);
        }
        Ok(())
    }

    #[inline(always)]
    fn is_before_transport(_: &Ipv6) -> bool {
        true
    }

    /// The unspecified address and those of `fe80::/10` (`ip6_forward` in net/ipv6/ip6_output.c refuses both): neighbour
    /// discovery uses them.
    #[inline(always)]
    fn stays_on_link(source: Self) -> bool {
        const LINK_LOCAL: u64 = 0xfe80 << 48;
        const LINK_LOCAL_MASK: u64 = 0xffc0 << 48;
        source == Self::default() || source.high() & LINK_LOCAL_MASK == LINK_LOCAL
    }

    #[inline(always)]
    fn key(pod: Self, remote: Self, pod_port: Be16, remote_port: Be16, protocol: u8) -> FlowKey6 {
        FlowKey6 {
            pod,
            remote,
            pod_port,
            remote_port,
            protocol: u32::from(protocol),
        }
    }

    #[inline(always)]
    fn vtep_index(config: &Config) -> u32 {
        config.vtep6_index
    }

    #[inline(always)]
    fn vtep_mac(config: &Config) -> Mac {
        config.vtep6_mac
    }

    #[inline(always)]
    fn tunnel_mtu(config: &Config) -> u16 {
        config.tunnel6_mtu
    }

    /// Never: an outer UDP checksum, which IPv6 needs, is the kernel's to compute, for each segment of an aggregate.
    #[inline(always)]
    fn encapsulates(_: &Config) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bits_above_are_those_of_a_whole_shift(address: u128, host_bits in 0u32..=128) {
            let above = address.checked_shr(host_bits).unwrap_or(0) as u32;
            // All bits for hosts is no subnet; then the number may be any.
            if host_bits < 128 {
                prop_assert_eq!(Be128::new(address).above(host_bits), above);
            }
            let short = address as u32;
            if host_bits < 32 {
                prop_assert_eq!(Be32::new(short).above(host_bits), short >> host_bits);
            }
        }
    }

    #[test]
    fn only_addresses_of_the_link_stay_there() {
        let stays = |address: &str| {
            Family::stays_on_link(Be128::from(address.parse::<core::net::Ipv6Addr>().unwrap()))
        };
        for address in ["::", "fe80::1", "febf::1"] {
            assert!(stays(address), "{address}");
        }
        for address in [
            "::1",
            "fe7f::1",
            "fec0::1",
            "fd00::1",
            "2001:db8::1",
            "::ffff:10.5.9.2",
        ] {
            assert!(!stays(address), "{address}");
        }
    }
}

//! IPv6 header (RFC 8200, section 3), and the headers that may follow it (section 4).

use bytemuck::{Pod, Zeroable};

use super::ip::IpHeader;
use super::{Be16, Be32, Be128};

/// Length in bytes of the header, without extension headers.
pub const LEN: usize = size_of::<Ipv6>();

/// The version, in the upper four bits of the first byte.
const VERSION: u8 = 6;

/// Next header: options for every hop, jumbograms' length among them.
pub const HOP_BY_HOP: u8 = 0;
/// Next header: a way to take.
pub const ROUTING: u8 = 43;
/// Next header: part of a larger packet.
pub const FRAGMENT: u8 = 44;
/// Next header: IPsec authentication (RFC 4302), behind which the payload is readable.
pub const AUTHENTICATION: u8 = 51;
/// Next header: options for the destination.
pub const DESTINATION_OPTIONS: u8 = 60;
/// Next header: mobility (RFC 6275).
pub const MOBILITY: u8 = 135;
/// Next header: host identity (RFC 7401).
pub const HOST_IDENTITY: u8 = 139;
/// Next header: shim6 (RFC 5533).
pub const SHIM6: u8 = 140;
/// Next header: ICMPv6, neighbour discovery included.
pub const ICMP: u8 = 58;

/// The header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, packed(2))]
pub struct Ipv6 {
    /// Version, traffic class (DSCP and ECN) and flow label.
    pub version_class_flow: Be32,
    /// Length in bytes of all that follows; zero in a jumbogram.
    pub payload_len: Be16,
    /// Kind of what follows.
    pub next_header: u8,
    /// Hops that are left.
    pub hop_limit: u8,
    /// Source address.
    pub source: Be128,
    /// Destination address.
    pub destination: Be128,
}

const _: () = assert!(LEN == 40);

impl Ipv6 {
    /// The first four bytes for a traffic class and a flow label of 20 bits.
    pub const fn version_class_flow(class: u8, flow_label: u32) -> Be32 {
        Be32::new((VERSION as u32) << 28 | (class as u32) << 20 | flow_label & 0xf_ffff)
    }

    /// Whether it is version 6.
    #[inline(always)]
    pub const fn is_version_6(&self) -> bool {
        self.version_class_flow.get() >> 28 == VERSION as u32
    }

    /// Whether an extension header follows, other than a fragment's.
    #[inline(always)]
    pub const fn is_extended(&self) -> bool {
        matches!(
            self.next_header,
            HOP_BY_HOP
                | ROUTING
                | AUTHENTICATION
                | DESTINATION_OPTIONS
                | MOBILITY
                | HOST_IDENTITY
                | SHIM6
        )
    }
}

impl IpHeader for Ipv6 {
    type Address = Be128;
    type Hop = [u8; 2];

    const HOP: usize = 6;

    #[inline(always)]
    fn hop(&self) -> [u8; 2] {
        [self.next_header, self.hop_limit]
    }

    #[inline(always)]
    fn source(&self) -> Be128 {
        self.source
    }

    #[inline(always)]
    fn destination(&self) -> Be128 {
        self.destination
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.next_header
    }

    #[inline(always)]
    fn ttl(&self) -> u8 {
        self.hop_limit
    }

    #[inline(always)]
    fn total_len(&self) -> u32 {
        LEN as u32 + u32::from(self.payload_len.get())
    }

    /// As the kernel does it (`ip6_forward` in net/ipv6/ip6_output.c). The caller has checked that there is one.
    #[inline(always)]
    fn decrement_ttl(&mut self) {
        self.hop_limit = self.hop_limit.wrapping_sub(1);
    }

    #[inline(always)]
    fn with_ttl(mut self, ttl: u8) -> Self {
        self.hop_limit = ttl;
        self
    }

    /// No checksum of the header makes up for a changed hop limit, which lies in the second half of a 16-bit word.
    #[inline(always)]
    fn sum_change_from(&self, ttl: u8) -> u32 {
        let word = |limit| Be16::new(u16::from_be_bytes([self.next_header, limit])).raw();
        u32::from(!word(ttl)) + u32::from(word(self.hop_limit))
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::bytes_of;
    use proptest::prelude::*;

    use super::*;
    use crate::checksum;

    proptest! {
        #[test]
        fn a_hop_changes_nothing_but_the_hop_limit_and_is_told_to_sums(
            class: u8,
            flow_label in 0u32..1 << 20,
            hop_limit in 1u8..,
            next_header: u8,
            payload_len: u16,
            addresses: [[u8; 16]; 2],
        ) {
            let header = Ipv6 {
                version_class_flow: Ipv6::version_class_flow(class, flow_label),
                payload_len: Be16::new(payload_len),
                next_header,
                hop_limit,
                source: bytemuck::cast(addresses[0]),
                destination: bytemuck::cast(addresses[1]),
            };
            prop_assert!(header.is_version_6());
            let mut further = header;
            further.decrement_ttl();
            prop_assert_eq!(further, header.with_ttl(hop_limit - 1));
            prop_assert_eq!(further.with_ttl(hop_limit), header);
            prop_assert_eq!(further.total_len(), 40 + u32::from(payload_len));
            // The change is one of words as they lie in memory; so is the sum that the kernel keeps.
            let sum = |header: &Ipv6| {
                let words: [u16; LEN / 2] = bytemuck::pod_read_unaligned(bytes_of(header));
                words.iter().map(|word| u32::from(*word)).sum::<u32>()
            };
            let changed = sum(&header) + further.sum_change_from(hop_limit);
            prop_assert_eq!(changed % 0xffff, sum(&further) % 0xffff);
        }
    }

    #[test]
    fn addresses_lie_where_the_kernel_looks() {
        let mut bytes = [0; LEN];
        bytes[0] = 0x60;
        bytes[6] = 17;
        bytes[7] = 64;
        bytes[8] = 0xfd;
        bytes[39] = 2;
        let header: Ipv6 = bytemuck::pod_read_unaligned(&bytes);
        assert_eq!(
            header.source(),
            "fd00::".parse::<std::net::Ipv6Addr>().unwrap().into()
        );
        assert_eq!(
            header.destination(),
            "::2".parse::<std::net::Ipv6Addr>().unwrap().into()
        );
        assert_eq!((header.protocol(), header.ttl()), (17, 64));
        assert_eq!(bytes[Ipv6::HOP..Ipv6::HOP + 2], header.hop());
        assert_eq!(
            checksum::sum(&bytes, 0),
            0x6000 + 0x1140 + 0xfd00 + 2 - 0xffff
        );
    }
}

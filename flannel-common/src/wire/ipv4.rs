//! IPv4 header (RFC 791, section 3.1) and the ECN rules for tunnels (RFC 6040).

use bytemuck::{Pod, Zeroable};

use super::ip::IpHeader;
pub use super::ip::{TCP, UDP};
use super::{Be16, Be32};
use crate::checksum;

/// Length in bytes of a header without options.
pub const LEN: usize = size_of::<Ipv4>();

/// First byte of a header without options: version 4, five 32-bit words.
pub const VERSION_IHL: u8 = 0x45;

/// "More fragments" and the fragment offset: zero in a packet that is no fragment.
const FRAGMENT: Be16 = Be16::new(0x3fff);

/// The fragment offset alone.
const FRAGMENT_OFFSET: Be16 = Be16::new(0x1fff);

const ECN_MASK: u8 = 0b11;
const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;

/// The header, without options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, packed(2))]
pub struct Ipv4 {
    /// Version and header length in 32-bit words.
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Length of header and payload in bytes.
    pub total_len: Be16,
    /// Identification, for reassembly.
    pub id: Be16,
    /// Flags and fragment offset.
    pub fragment: Be16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Checksum of the header.
    pub checksum: Be16,
    /// Source address.
    pub source: Be32,
    /// Destination address.
    pub destination: Be32,
}

const _: () = assert!(LEN == 20);

impl Ipv4 {
    /// Whether the packet is a fragment of a larger one, the first included.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        self.fragment.raw() & FRAGMENT.raw() != 0
    }

    /// Whether it is a fragment other than the first, so that no transport header follows.
    #[inline(always)]
    pub const fn is_later_fragment(&self) -> bool {
        self.fragment.raw() & FRAGMENT_OFFSET.raw() != 0
    }

    /// Sets the ECN bits, with the checksum adjusted.
    #[inline(always)]
    fn set_ecn(&mut self, ecn: u8) {
        let old = Be16::new(u16::from_be_bytes([self.version_ihl, self.tos]));
        self.tos = (self.tos & !ECN_MASK) | ecn;
        let new = Be16::new(u16::from_be_bytes([self.version_ihl, self.tos]));
        self.checksum = checksum::replace(self.checksum, old, new);
    }

    /// Takes over what the outer header's ECN field says, as the kernel does on decapsulation (`INET_ECN_decapsulate`,
    /// RFC 6040 section 4.2). `false` where the kernel drops the packet: congestion experienced by a sender that does
    /// not understand it.
    #[inline(always)]
    #[must_use]
    pub fn merge_outer_ecn(&mut self, outer_tos: u8) -> bool {
        let outer = outer_tos & ECN_MASK;
        let inner = self.tos & ECN_MASK;
        match (outer, inner) {
            (CE, NOT_ECT) => return false,
            (CE, ECT_0 | ECT_1) => self.set_ecn(CE),
            (ECT_1, ECT_0) => self.set_ecn(ECT_1),
            _ => {}
        }
        true
    }
}

impl IpHeader for Ipv4 {
    type Address = Be32;
    // Decapsulation may change what comes first, too.
    type Hop = Self;

    const HOP: usize = 0;

    #[inline(always)]
    fn hop(&self) -> Self {
        *self
    }

    #[inline(always)]
    fn source(&self) -> Be32 {
        self.source
    }

    #[inline(always)]
    fn destination(&self) -> Be32 {
        self.destination
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.protocol
    }

    #[inline(always)]
    fn ttl(&self) -> u8 {
        self.ttl
    }

    #[inline(always)]
    fn total_len(&self) -> u32 {
        u32::from(self.total_len.get())
    }

    /// With the checksum adjusted to the bit as the kernel does it (`ip_decrease_ttl` in include/net/ip.h, RFC 1141).
    #[inline(always)]
    fn decrement_ttl(&mut self) {
        self.ttl = self.ttl.wrapping_sub(1);
        let sum = u32::from(self.checksum.raw()) + u32::from(Be16::new(0x0100).raw());
        self.checksum = Be16::from_raw((sum + u32::from(sum >= 0xffff)) as u16);
    }

    #[inline(always)]
    fn with_ttl(mut self, ttl: u8) -> Self {
        let old = Be16::new(u16::from_be_bytes([self.ttl, self.protocol]));
        let new = Be16::new(u16::from_be_bytes([ttl, self.protocol]));
        self.ttl = ttl;
        self.checksum = checksum::replace(self.checksum, old, new);
        self
    }

    #[inline(always)]
    fn sum_change_from(&self, _: u8) -> u32 {
        0
    }
}

/// The outer TOS byte for an inner one: DSCP zero, as flannel's device is configured, and the ECN field as the kernel
/// copies it (`INET_ECN_encapsulate`): congestion experienced is not, since it is the outer path's own to report.
#[inline(always)]
pub const fn outer_tos(inner_tos: u8) -> u8 {
    match inner_tos & ECN_MASK {
        CE => ECT_0,
        ecn => ecn,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(tos: u8, ttl: u8, id: u16) -> Ipv4 {
        let mut header = Ipv4 {
            version_ihl: VERSION_IHL,
            tos,
            total_len: Be16::new(84),
            id: Be16::new(id),
            ttl,
            protocol: UDP,
            source: Be32::new(0x0a05_0902),
            destination: Be32::new(0x0a05_0b03),
            ..Ipv4::default()
        };
        header.checksum = checksum::ipv4_header(&header);
        header
    }

    proptest! {
        #[test]
        fn ttl_and_ecn_keep_the_checksum_right(tos: u8, ttl in 1u8.., id: u16, outer: u8) {
            let mut header = header(tos, ttl, id);
            header.decrement_ttl();
            let delivered = header.merge_outer_ecn(outer);
            prop_assert_eq!(header.ttl, ttl - 1);
            prop_assert_eq!(delivered, !(outer & ECN_MASK == CE && tos & ECN_MASK == NOT_ECT));
            prop_assert_eq!(header.tos & !ECN_MASK, tos & !ECN_MASK);
            prop_assert_eq!(header.checksum, checksum::ipv4_header(&header));
        }
    }

    #[test]
    fn ecn_follows_the_kernel() {
        let merged = |outer, inner| {
            let mut header = header(inner, 64, 0);
            header.merge_outer_ecn(outer).then_some(header.tos)
        };
        assert_eq!(merged(CE, ECT_0), Some(CE));
        assert_eq!(merged(CE, ECT_1), Some(CE));
        assert_eq!(merged(CE, NOT_ECT), None);
        assert_eq!(merged(ECT_1, ECT_0), Some(ECT_1));
        assert_eq!(merged(ECT_0, ECT_1), Some(ECT_1));
        assert_eq!(merged(NOT_ECT, CE), Some(CE));
        assert_eq!(outer_tos(0xb8 | ECT_1), ECT_1);
        assert_eq!(outer_tos(CE), ECT_0);
    }

    #[test]
    fn every_kind_of_fragment_is_one() {
        for (fragment, expected) in [
            (0, false),
            (0x4000, false),
            (0x2000, true),
            (1, true),
            (0x5fff, true),
        ] {
            let header = Ipv4 {
                fragment: Be16::new(fragment),
                ..header(0, 64, 0)
            };
            assert_eq!(header.is_fragment(), expected, "{fragment:#x}");
        }
    }
}

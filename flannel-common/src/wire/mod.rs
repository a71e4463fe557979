//! Header layouts, one protocol per file.
//!
//! Headers are plain `repr(C)` values without padding whose multi-byte fields are big-endian by type, so that a
//! forgotten byte swap does not compile. None needs more than two bytes of alignment, which is what the kernel
//! promises for packet data. They are copied out of a packet by [`Packet::read`]; nothing here keeps a
//! reference into a packet, and nothing here decides what to do with it.

use core::fmt;
use core::net::{Ipv4Addr, Ipv6Addr};

use bytemuck::{Pod, Zeroable};

pub mod ethernet;
pub mod ip;
pub mod ipv4;
pub mod ipv6;
pub mod tcp;
pub mod udp;
pub mod vxlan;

/// Read access to a packet, from the first byte of its link-layer header.
pub trait Packet {
    /// The header at `offset` bytes, or `None` where the packet has fewer bytes than that.
    ///
    /// In BPF this sees the linear part of the packet only; hooks pull headers into it before they ask.
    fn read<T: Pod>(&self, offset: usize) -> Option<T>;
}

impl Packet for [u8] {
    fn read<T: Pod>(&self, offset: usize) -> Option<T> {
        let end = offset.checked_add(size_of::<T>())?;
        Some(bytemuck::pod_read_unaligned(self.get(offset..end)?))
    }
}

macro_rules! big_endian {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
        #[repr(transparent)]
        pub struct $name($int);

        impl $name {
            /// From a host-order value.
            #[inline(always)]
            pub const fn new(value: $int) -> Self {
                Self(value.to_be())
            }

            /// The value in host order.
            #[inline(always)]
            pub const fn get(self) -> $int {
                <$int>::from_be(self.0)
            }

            /// The bytes as they lie on the wire, read as a host integer: for masks and ones' complement sums, which
            /// do not depend on byte order.
            #[inline(always)]
            pub const fn raw(self) -> $int {
                self.0
            }

            /// The inverse of [`Self::raw`].
            #[inline(always)]
            pub const fn from_raw(raw: $int) -> Self {
                Self(raw)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.get())
            }
        }
    };
}

big_endian!(
    /// A 16-bit integer in network byte order.
    Be16(u16)
);
big_endian!(
    /// A 32-bit integer in network byte order; also an IPv4 address.
    Be32(u32)
);

impl From<Ipv4Addr> for Be32 {
    fn from(address: Ipv4Addr) -> Self {
        Self::new(address.to_bits())
    }
}

impl From<Be32> for Ipv4Addr {
    fn from(address: Be32) -> Self {
        Self::from_bits(address.get())
    }
}

/// A 128-bit integer in network byte order: an IPv6 address. Two words, since BPF has none of that length.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Be128([u64; 2]);

impl Be128 {
    /// From a host-order value.
    pub const fn new(value: u128) -> Self {
        Self([((value >> 64) as u64).to_be(), (value as u64).to_be()])
    }

    /// The value in host order.
    pub const fn get(self) -> u128 {
        (self.high() as u128) << 64 | self.low() as u128
    }

    /// The upper half in host order.
    #[inline(always)]
    pub const fn high(self) -> u64 {
        u64::from_be(self.0[0])
    }

    /// The lower half in host order.
    #[inline(always)]
    pub const fn low(self) -> u64 {
        u64::from_be(self.0[1])
    }

    /// The bytes as they lie on the wire, read as host integers.
    #[inline(always)]
    pub const fn raw(self) -> [u64; 2] {
        self.0
    }

    /// The bits that are set in both.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self([self.0[0] & other.0[0], self.0[1] & other.0[1]])
    }
}

impl fmt::Debug for Be128 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&Ipv6Addr::from(*self), f)
    }
}

impl From<Ipv6Addr> for Be128 {
    fn from(address: Ipv6Addr) -> Self {
        Self::new(address.to_bits())
    }
}

impl From<Be128> for Ipv6Addr {
    fn from(address: Be128) -> Self {
        Self::from_bits(address.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_lie_in_network_order() {
        assert_eq!(bytemuck::bytes_of(&Be16::new(0x0102)), [1, 2]);
        assert_eq!(bytemuck::bytes_of(&Be32::new(0x0102_0304)), [1, 2, 3, 4]);
        assert_eq!(Be32::from(Ipv4Addr::new(10, 5, 9, 2)).get(), 0x0a05_0902);
        let address: Ipv6Addr = "fd00:5:9::2".parse().unwrap();
        let lying = Be128::from(address);
        assert_eq!(bytemuck::bytes_of(&lying), address.octets());
        assert_eq!(Ipv6Addr::from(lying), address);
        assert_eq!((lying.high(), lying.low()), (0xfd00_0005_0009_0000, 2));
    }

    #[test]
    fn reading_past_the_end_is_refused() {
        let packet: &[u8] = &[1, 2, 3];
        assert_eq!(packet.read::<[u8; 2]>(1), Some([2, 3]));
        assert_eq!(packet.read::<[u8; 2]>(2), None);
        assert_eq!(packet.read::<[u8; 2]>(usize::MAX), None);
    }
}

//! VXLAN header (RFC 7348, section 5).

use bytemuck::{Pod, Zeroable};

use super::{Be32, ethernet, ipv4, ipv6, udp};

/// Length of the header in bytes.
pub const LEN: usize = size_of::<Vxlan>();

/// What encapsulation adds to an inner IPv4 packet on an IPv4 underlay: outer IPv4, UDP, VXLAN, inner Ethernet.
pub const OVERHEAD: usize = ipv4::LEN + udp::LEN + LEN + ethernet::LEN;

/// What it adds to an inner packet on an IPv6 underlay.
pub const OVERHEAD_V6: usize = ipv6::LEN + udp::LEN + LEN + ethernet::LEN;

/// The only flag, "VNI is valid", in the first byte; all other bits are reserved and zero.
const FLAGS: Be32 = Be32::new(0x0800_0000);

/// The header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, packed(2))]
pub struct Vxlan {
    /// Flags and reserved bits.
    pub flags: Be32,
    /// Network identifier in the upper 24 bits; the rest is reserved.
    pub vni: Be32,
}

const _: () = assert!(LEN == 8 && OVERHEAD == 50 && OVERHEAD_V6 == 70);

impl Vxlan {
    /// The header for a network.
    #[inline(always)]
    pub const fn new(vni: u32) -> Self {
        Self {
            flags: FLAGS,
            vni: Be32::new(vni << 8),
        }
    }

    /// Whether this is exactly the header that [`Self::new`] makes. The kernel's device drops a header with a reserved
    /// bit set, or hands it to an extension; neither is for us to judge.
    #[inline(always)]
    pub const fn is(&self, vni: u32) -> bool {
        self.flags.raw() == FLAGS.raw() && self.vni.raw() == Be32::new(vni << 8).raw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_flannels() {
        assert_eq!(bytemuck::bytes_of(&Vxlan::new(1)), [8, 0, 0, 0, 0, 0, 1, 0]);
    }

    #[test]
    fn reserved_bits_are_not_ours() {
        for byte in 0..LEN {
            for bit in 0..8 {
                let mut bytes =
                    *bytemuck::from_bytes::<[u8; LEN]>(bytemuck::bytes_of(&Vxlan::new(1)));
                bytes[byte] ^= 1 << bit;
                assert!(
                    !bytemuck::cast::<_, Vxlan>(bytes).is(1),
                    "byte {byte} bit {bit}"
                );
            }
        }
    }
}

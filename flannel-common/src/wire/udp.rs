//! UDP header (RFC 768).

use bytemuck::{Pod, Zeroable};

use super::Be16;

/// Length of the header in bytes.
pub const LEN: usize = size_of::<Udp>();

/// The header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Udp {
    /// Source port.
    pub source: Be16,
    /// Destination port.
    pub destination: Be16,
    /// Length of header and payload in bytes.
    pub len: Be16,
    /// Checksum; zero means that there is none (IPv4 only).
    pub checksum: Be16,
}

const _: () = assert!(LEN == 8);

/// The source port of a VXLAN packet from the hash of the inner flow, by the kernel's own arithmetic
/// (`udp_flow_src_port` in include/net/udp.h): ECMP and RSS must not see a flow move when its path changes.
#[inline(always)]
pub const fn flow_source_port(hash: u32, min: u16, max: u16) -> u16 {
    let hash = hash ^ (hash << 16);
    let span = max.wrapping_sub(min) as u64;
    ((hash as u64 * span) >> 32) as u16 + min
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn source_port_stays_in_range(hash: u32, min in 1024u16..60_000, span in 1u16..5_000) {
            let port = flow_source_port(hash, min, min + span);
            prop_assert!((min..min + span).contains(&port));
        }
    }
}

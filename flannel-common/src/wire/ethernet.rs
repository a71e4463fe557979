//! Ethernet II header (IEEE 802.3, clause 3.2.6 with a type field).

use bytemuck::{Pod, Zeroable};

use super::Be16;
use crate::addr::Mac;

/// Length of the header in bytes.
pub const LEN: usize = size_of::<Ethernet>();

/// EtherType of IPv4.
pub const IPV4: Be16 = Be16::new(0x0800);

/// EtherType of IPv6 (RFC 2464).
pub const IPV6: Be16 = Be16::new(0x86dd);

/// The header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Ethernet {
    /// Destination address.
    pub destination: Mac,
    /// Source address.
    pub source: Mac,
    /// Protocol of the payload.
    pub ethertype: Be16,
}

const _: () = assert!(LEN == 14);

//! TCP header (RFC 9293, section 3.1).

use bytemuck::{Pod, Zeroable};

use super::{Be16, Be32};

/// Length in bytes of a header without options.
pub const MIN_LEN: usize = size_of::<Tcp>();

/// Control bit: the sender has no more data.
pub const FIN: u8 = 1;
/// Control bit: a connection begins.
pub const SYN: u8 = 1 << 1;
/// Control bit: the connection is void.
pub const RST: u8 = 1 << 2;

/// The header, without options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, packed(2))]
pub struct Tcp {
    /// Source port.
    pub source: Be16,
    /// Destination port.
    pub destination: Be16,
    /// Sequence number.
    pub sequence: Be32,
    /// Acknowledgment number.
    pub acknowledgment: Be32,
    /// Header length in 32-bit words, in the upper four bits.
    pub data_offset: u8,
    /// Control bits.
    pub flags: u8,
    /// Receive window.
    pub window: Be16,
    /// Checksum over pseudo header, header and payload.
    pub checksum: Be16,
    /// Urgent pointer.
    pub urgent: Be16,
}

const _: () = assert!(MIN_LEN == 20);

impl Tcp {
    /// Length in bytes of the header with its options.
    #[inline(always)]
    pub const fn header_len(&self) -> u32 {
        (self.data_offset >> 4) as u32 * 4
    }
}

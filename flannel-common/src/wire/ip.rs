//! What the headers of both IP versions have in common.

use core::fmt::Debug;

use bytemuck::Pod;

/// Protocol number of TCP, as IPv4's protocol and IPv6's next header.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// An IP header without options or extension headers.
pub trait IpHeader: Pod + Debug + PartialEq {
    /// An address.
    type Address;
    /// The part that forwarding writes.
    type Hop: Pod;

    /// Offset in bytes of that part.
    const HOP: usize;

    /// The part that forwarding writes.
    fn hop(&self) -> Self::Hop;

    /// Source address.
    fn source(&self) -> Self::Address;

    /// Destination address.
    fn destination(&self) -> Self::Address;

    /// Protocol number of what follows.
    fn protocol(&self) -> u8;

    /// Hops that are left.
    fn ttl(&self) -> u8;

    /// Length of header and payload in bytes, as the header says.
    fn total_len(&self) -> u32;

    /// One hop further. The caller has checked that one is left.
    fn decrement_ttl(&mut self);

    /// The same header with as many hops left.
    #[must_use]
    fn with_ttl(self, ttl: u8) -> Self;

    /// What a ones' complement sum over the header, in words as they lie in memory, has changed by since as many hops as
    /// `ttl` were left; zero where the header's own checksum makes up for it.
    fn sum_change_from(&self, ttl: u8) -> u32;
}

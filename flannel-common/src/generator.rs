//! What the benchmark and its packet generator agree on.
//!
//! The generator's maps live as long as the benchmark that loads them, so this layout has no version.

use bytemuck::{Pod, Zeroable};

use crate::wire::{ethernet::Ethernet, ipv4::Ipv4, udp::Udp};

/// The headers of a generated packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Headers {
    /// From the pod to its gateway.
    pub ethernet: Ethernet,
    /// From the pod to the other pod.
    pub ip: Ipv4,
    /// Its source port is that of the first flow. Without checksum, since the source port varies.
    pub udp: Udp,
}

/// What to generate, and what to count where it arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Plan {
    /// Written over each packet.
    pub headers: Headers,
    /// Flows, that is source ports, that take turns. Not zero.
    pub flows: u16,
}

const _: () = assert!(size_of::<Plan>() == 44);

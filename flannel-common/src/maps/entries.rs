//! Other nodes and the pods of this one: the same values for either address family.

use bytemuck::{Pod, Zeroable};

use crate::addr::Mac;
use crate::family::Family;
use crate::wire::{Be32, Be128};

/// Another node, by its subnet.
pub trait PeerEntry: Pod {
    /// An address of its family.
    type Address: Family;

    /// A node that is so since ever.
    fn new(
        subnet: Self::Address,
        node_ip: Self::Address,
        next_hop: Self::Address,
        vtep_mac: Mac,
    ) -> Self;
    /// The same since then.
    #[must_use]
    fn dated(self, since: u64) -> Self;

    /// The first address of its subnet.
    fn subnet(&self) -> Self::Address;
    /// Its address.
    fn node_ip(&self) -> Self::Address;
    /// The neighbour on the node's interface that leads there.
    fn next_hop(&self) -> Self::Address;
    /// Address of its VXLAN device; zero if packets are routed there without a tunnel.
    fn vtep_mac(&self) -> Mac;
    /// Since when this is so, in nanoseconds of `CLOCK_MONOTONIC`.
    fn since(&self) -> u64;

    /// Whether its subnet, of the length that `mask` says, is the one of `address`.
    #[inline(always)]
    fn holds(&self, address: Self::Address, mask: Self::Address) -> bool {
        self.subnet() == address.and(mask)
    }

    /// Whether packets go there without a tunnel.
    #[inline(always)]
    fn is_direct(&self) -> bool {
        self.vtep_mac() == Mac::default()
    }
}

/// A pod of this node, by its address.
pub trait PodEntry: Pod {
    /// An address of its family.
    type Address: Family;

    /// A pod that is so since ever.
    fn new(address: Self::Address, host_index: u32, mac: Mac, flags: u16) -> Self;
    /// The same since then.
    #[must_use]
    fn dated(self, since: u64) -> Self;

    /// Its address.
    fn address(&self) -> Self::Address;
    /// Interface index of the host side of its veth.
    fn host_index(&self) -> u32;
    /// Its link-layer address.
    fn mac(&self) -> Mac;
    /// Combination of the `POD_` constants.
    fn flags(&self) -> u16;
    /// Since when this is so, in nanoseconds of `CLOCK_MONOTONIC`.
    fn since(&self) -> u64;
}

/// The entries of one family, as plain structures: a generic one could not be shown to have no padding.
macro_rules! entries {
    ($address:ty, $family:literal, $peer:ident($peer_padding:literal), $pod:ident($pod_padding:literal)) => {
        #[doc = concat!("Another node, by its ", $family, " subnet.")]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
        #[repr(C)]
        pub struct $peer {
            /// The first address of its subnet.
            pub subnet: $address,
            /// Its address: destination of what we encapsulate, source of what it does.
            pub node_ip: $address,
            /// The neighbour on the node's interface that leads there.
            pub next_hop: $address,
            /// Address of its VXLAN device; zero if packets are routed there without a tunnel.
            pub vtep_mac: Mac,
            /// Zero.
            pub reserved: [u8; $peer_padding],
            /// Since when this is so: flows attested before are not believed. Nanoseconds of `CLOCK_MONOTONIC`.
            pub since: u64,
        }

        impl PeerEntry for $peer {
            type Address = $address;

            fn new(subnet: $address, node_ip: $address, next_hop: $address, vtep_mac: Mac) -> Self {
                Self {
                    subnet,
                    node_ip,
                    next_hop,
                    vtep_mac,
                    ..Self::default()
                }
            }

            fn dated(self, since: u64) -> Self {
                Self { since, ..self }
            }

            #[inline(always)]
            fn subnet(&self) -> $address {
                self.subnet
            }

            #[inline(always)]
            fn node_ip(&self) -> $address {
                self.node_ip
            }

            #[inline(always)]
            fn next_hop(&self) -> $address {
                self.next_hop
            }

            #[inline(always)]
            fn vtep_mac(&self) -> Mac {
                self.vtep_mac
            }

            #[inline(always)]
            fn since(&self) -> u64 {
                self.since
            }
        }

        #[doc = concat!("A pod of this node, by its ", $family, " address.")]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
        #[repr(C)]
        pub struct $pod {
            /// Its address.
            pub address: $address,
            /// Interface index of the host side of its veth.
            pub host_index: u32,
            /// Its link-layer address.
            pub mac: Mac,
            /// Combination of the `POD_` constants.
            pub flags: u16,
            /// Zero.
            pub reserved: [u8; $pod_padding],
            /// Since when this is so: flows attested before are not believed. Nanoseconds of `CLOCK_MONOTONIC`.
            pub since: u64,
        }

        impl PodEntry for $pod {
            type Address = $address;

            fn new(address: $address, host_index: u32, mac: Mac, flags: u16) -> Self {
                Self {
                    address,
                    host_index,
                    mac,
                    flags,
                    ..Self::default()
                }
            }

            fn dated(self, since: u64) -> Self {
                Self { since, ..self }
            }

            #[inline(always)]
            fn address(&self) -> $address {
                self.address
            }

            #[inline(always)]
            fn host_index(&self) -> u32 {
                self.host_index
            }

            #[inline(always)]
            fn mac(&self) -> Mac {
                self.mac
            }

            #[inline(always)]
            fn flags(&self) -> u16 {
                self.flags
            }

            #[inline(always)]
            fn since(&self) -> u64 {
                self.since
            }
        }
    };
}

entries!(Be32, "IPv4", Peer(6), LocalPod(0));
entries!(Be128, "IPv6", Peer6(2), LocalPod6(4));

const _: () = assert!(size_of::<Peer>() == 32 && size_of::<LocalPod>() == 24);
const _: () = assert!(size_of::<Peer6>() == 64 && size_of::<LocalPod6>() == 40);

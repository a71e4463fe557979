//! Keys and values of the BPF maps.
//!
//! Maps outlive the agent: they are pinned, and the next agent adopts them. So their layout has a version, [`ABI`], in
//! the path of the pins; the kernel checks no sizes when a pin is opened.

use bytemuck::{Pod, Zeroable};

use crate::addr::Mac;
use crate::family::Family;
use crate::wire::{Be16, Be32, Be128};

mod entries;

pub use entries::{LocalPod, LocalPod6, Peer, Peer6, PeerEntry, PodEntry};

/// Version of everything in this file and of the numbers in [`crate::outcome`]. Any change of layout or meaning
/// changes it.
pub const ABI: u32 = 5;

/// Subnets of the usual length that are told apart by number, a power of two: see [`subnet_number`].
pub const SUBNET_NUMBERS: u32 = 1 << 17;

/// Subnets of any other length, or with a number that is taken, at most.
pub const MAX_OTHER_SUBNETS: u32 = SUBNET_NUMBERS;

/// Addresses of this node's subnet that are told apart by number, a power of two: see [`pod_number`].
pub const POD_NUMBERS: u32 = 1 << 16;

/// Pods of this node at most.
pub const MAX_PODS: u32 = 4_096;

/// An index holds the slot of each number's value, or this for none.
pub const NO_SLOT: u32 = 0;

/// Slots that are kept free beyond what may be in use: a value is replaced by another slot's, never written over.
const SPARE_SLOTS: u32 = 1_024;

/// Slots of other nodes, [`NO_SLOT`] among them.
pub const PEER_SLOTS: u32 = SUBNET_NUMBERS + SPARE_SLOTS;

/// Slots of pods, [`NO_SLOT`] among them.
pub const POD_SLOTS: u32 = MAX_PODS + SPARE_SLOTS;

/// The number of the subnet that `address` is in, where subnets have `host_bits` bits for hosts. Subnets of one network
/// have different numbers unless it has room for more than [`SUBNET_NUMBERS`]; anything else with the same number does not
/// hold `address` ([`PeerEntry::holds`]).
#[inline(always)]
pub fn subnet_number<A: Family>(address: A, host_bits: u32) -> u32 {
    address.above(host_bits) % SUBNET_NUMBERS
}

/// The number of a pod's address. Addresses of one subnet have different numbers unless it has room for more than
/// [`POD_NUMBERS`], or addresses are given out other than one after the other.
#[inline(always)]
pub fn pod_number<A: Family>(address: A) -> u32 {
    address.above(0) % POD_NUMBERS
}

/// Flows that are remembered at most, unless the agent is told otherwise; the least recently used go first.
pub const MAX_FLOWS: u32 = 131_072;

/// Which config is in force, and until when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Control {
    /// Slot of the config map.
    pub slot: u32,
    /// Changes with every change of pods and subnets; never zero.
    pub generation: u32,
    /// When programs stop acting unless the agent writes a later time: nanoseconds of `CLOCK_MONOTONIC`.
    pub expires: u64,
}

const _: () = assert!(size_of::<Control>() == 16);

/// Slots of the config map. The agent fills the one that is not in use and then switches over, so that no program
/// ever sees half of an old config and half of a new one.
pub const CONFIG_SLOTS: u32 = 2;

/// The interfaces and addresses of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Config {
    /// Flows attested before this time are not believed: nanoseconds of `CLOCK_MONOTONIC`.
    pub since: u64,
    /// Age in nanoseconds of an attestation from which a flow is probed.
    pub revalidate_after: u64,
    /// Age in nanoseconds of an attestation from which a flow takes the kernel path until it is attested again.
    pub stale_after: u64,
    /// Combination of the `FLAG_` constants.
    pub flags: u32,
    /// Interface index of the node's interface.
    pub uplink_index: u32,
    /// Interface index of the VXLAN device for IPv4; zero without one.
    pub vtep_index: u32,
    /// Interface index of the bridge; zero without one.
    pub bridge_index: u32,
    /// Bit of the packet mark by which netfilter attests packets; zero where conntrack itself is asked.
    pub mark: u32,
    /// VXLAN network identifier.
    pub vni: u32,
    /// This node's IPv4 address: source of encapsulated packets.
    pub node_ip: Be32,
    /// Mask of the IPv4 subnet length that most nodes have; those subnets are found by number.
    pub subnet_mask: Be32,
    /// The bits that this mask leaves for hosts.
    pub host_bits: u32,
    /// UDP destination port of VXLAN.
    pub vxlan_port: Be16,
    /// First UDP source port of encapsulated packets.
    pub source_port_min: u16,
    /// Last UDP source port of encapsulated packets.
    pub source_port_max: u16,
    /// Largest IPv4 packet, in bytes, that fits into the tunnel.
    pub tunnel_mtu: u16,
    /// Largest packet, in bytes, that the node's interface takes.
    pub direct_mtu: u16,
    /// Largest packet, in bytes, that the bridge takes.
    pub pod_mtu: u16,
    /// Address of the bridge: what pods send to, and what they receive from.
    pub bridge_mac: Mac,
    /// Address of the VXLAN device for IPv4.
    pub vtep_mac: Mac,
    /// Address of the node's interface: what XDP addresses decapsulated packets to.
    pub uplink_mac: Mac,
    /// Source address, but for its last bits, of packets that XDP has decapsulated: a secret of this host, so that the
    /// hook behind it knows them. (Metadata in front of a packet would be lost where somebody watches the interface: the
    /// kernel copies such packets before a program may write.)
    pub xdp_mac: Mac,
    /// Time to live of encapsulated packets.
    pub outer_ttl: u8,
    /// Zero.
    pub reserved: u8,
    /// Address of the VXLAN device for IPv6.
    pub vtep6_mac: Mac,
    /// Mask of the IPv6 subnet length that most nodes have; those subnets are found by number.
    pub subnet6_mask: Be128,
    /// The bits that this mask leaves for hosts.
    pub host6_bits: u32,
    /// Interface index of the VXLAN device for IPv6; zero without one.
    pub vtep6_index: u32,
    /// Largest IPv6 packet, in bytes, that fits into the tunnel for IPv6.
    pub tunnel6_mtu: u16,
    /// Zero.
    pub reserved6: [u8; 6],
}

const _: () = assert!(size_of::<Config>() == 136);

/// Programs act; without it they hand everything to the kernel.
pub const FLAG_ACTIVE: u32 = 1;
/// Some nodes have a subnet length other than the usual one, or a number that is taken: those are in the LPM trie.
pub const FLAG_OTHER_LENGTHS: u32 = 1 << 1;
/// Encapsulate by the VXLAN device instead of in BPF.
pub const FLAG_ASSIST: u32 = 1 << 2;
/// Decapsulate in BPF at the node's interface.
pub const FLAG_DECAP: u32 = 1 << 3;
/// Only flows that the kernel has attested are fast; without it, all that the topology allows.
pub const FLAG_FLOWS: u32 = 1 << 4;
/// Conntrack takes TCP segments outside of the window that it knows, so TCP flows may be fast.
pub const FLAG_TCP: u32 = 1 << 5;
/// A flow is fast when both its legs are attested, not its own alone: for an attestation that says nothing of
/// addresses that were rewritten without conntrack's knowledge (IPVS).
pub const FLAG_BOTH_LEGS: u32 = 1 << 6;
/// Packets with a source address that is not their sender's are dropped.
pub const FLAG_STRICT: u32 = 1 << 7;

/// Decapsulate by XDP at the node's interface; what it leaves encapsulated is the kernel's.
pub const FLAG_XDP: u32 = 1 << 8;

/// IPv6 is served; without it IPv6 packets are the kernel's.
pub const FLAG_IPV6: u32 = 1 << 9;
/// As [`FLAG_OTHER_LENGTHS`], for IPv6.
pub const FLAG_OTHER_LENGTHS_V6: u32 = 1 << 10;

/// How XDP has a packet carried that it has decapsulated, told to the hook behind it by the last bits of the source
/// address: the kernel is to be asked again, by a copy.
pub const CARRIED_PROBE: u8 = 1;
/// The packet must queue up behind earlier ones.
pub const CARRIED_QUEUE: u8 = 1 << 1;
/// All bits of a source address that say how.
pub const CARRIED_BITS: u8 = CARRIED_PROBE | CARRIED_QUEUE;

/// Deliver through the host side of the veth instead of straight into the pod: somebody else's queueing discipline or
/// program there must see the packets, or the kernel has no `bpf_redirect_peer` (before 5.10).
pub const POD_VIA_HOST: u16 = 1;

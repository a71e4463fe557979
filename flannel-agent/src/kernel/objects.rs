//! Kernel objects as plain values: what is there (`Observed`) and what should be there (`Desired`).
//!
//! Nothing here talks to the kernel. An `Observed` holds only what concerns the agent; everything else on the node is
//! somebody else's and is not even read.

use std::{collections::BTreeMap, net::IpAddr};

use flannel_common::addr::Mac;
use ipnet::IpNet;

use super::traffic_control::TrafficControl;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Link-layer address; absent for devices without an Ethernet address.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it is a loopback device.
    pub loopback: bool,
    /// Whether its link layer is Ethernet.
    pub ethernet: bool,
    /// The bridge or other device that it is a port of.
    pub master: Option<u32>,
    /// `IFLA_LINK`: a veth's peer, a VXLAN's parent; with the id of the namespace it lives in, if another.
    pub peer: Option<(u32, Option<i32>)>,
    /// What kind of device it is.
    pub kind: LinkKind,
}

/// What the names of flannel's VXLAN devices begin with, before the network identifier.
const VXLAN_NAMES: [&str; 2] = ["flannel.", "flannel-v6."];
/// The name of flannel's IPIP device (`tunnelName` in upstream's `pkg/backend/ipip/ipip.go`).
pub const IPIP_NAME: &str = "flannel.ipip";

impl Link {
    /// Whether it is a tunnel device that flannel makes.
    pub fn is_flannels(&self) -> bool {
        match &self.kind {
            LinkKind::Vxlan(vxlan) => VXLAN_NAMES
                .iter()
                .filter_map(|prefix| self.name.strip_prefix(prefix)?.parse().ok())
                .any(|vni: u32| vni == vxlan.vni),
            LinkKind::Ipip(_) => self.name == IPIP_NAME,
            LinkKind::Veth | LinkKind::Other => false,
        }
    }
}

/// The kinds of devices that the agent tells apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A VXLAN device and its attributes.
    Vxlan(VxlanAttributes),
    /// An IPIP device and its attributes.
    Ipip(IpipAttributes),
    /// One end of a virtual Ethernet pair.
    Veth,
    /// Anything else.
    Other,
}

/// Attributes of a VXLAN device as the kernel reports them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VxlanAttributes {
    /// VXLAN network identifier.
    pub vni: u32,
    /// Index of the underlay interface.
    pub parent: Option<u32>,
    /// Outer source address.
    pub local: Option<IpAddr>,
    /// Default destination, which flannel's devices do not have.
    pub has_group: bool,
    /// Whether it asks user space for missing FDB entries, which flannel's devices do not.
    pub l2miss: bool,
    /// UDP destination port.
    pub port: u16,
    /// Whether the group policy extension is on.
    pub gbp: bool,
    /// Whether it learns FDB entries from received packets.
    pub learning: bool,
}

/// Attributes of an IPIP device as the kernel reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IpipAttributes {
    /// Outer source address; absent if packets to any address of the node are taken.
    pub local: Option<IpAddr>,
    /// The one peer that it has, which flannel's device does not.
    pub remote: Option<IpAddr>,
}

/// A tunnel device that should exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelDevice {
    /// `flannel.<VNI>`, `flannel-v6.<VNI>`, `flannel.ipip` or `flannel<N>`.
    pub name: String,
    /// Index of the underlay interface.
    pub parent: u32,
    /// Outer source address.
    pub local: IpAddr,
    /// MTU in bytes.
    pub mtu: u32,
    /// The flannel network, in which the device has no other address than its own.
    pub network: IpNet,
    /// The device's address, with the prefix length of a host; absent until there is a lease.
    pub address: Option<IpAddr>,
    /// What kind of tunnel.
    pub kind: TunnelKind,
}

/// The kinds of tunnel devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TunnelKind {
    /// VXLAN.
    Vxlan(VxlanOptions),
    /// IPIP: IPv4 in IPv4.
    Ipip,
    /// TUN: a device that a process makes and holds, here the udp backend's proxy.
    Tun,
}

/// How a VXLAN device is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanOptions {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP destination port; 0 leaves the choice to the kernel (8472) and accepts any on an existing device.
    pub port: u16,
    /// Whether the group policy extension is on.
    pub gbp: bool,
    /// Whether it learns FDB entries from received packets.
    pub learning: bool,
    /// The MAC for a device that has to be created; an existing one keeps its own.
    pub mac: Mac,
}

/// A unicast route of the main table with TOS 0 and the default metric: 0 for IPv4, 1024 for IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Next hop; absent for a directly connected prefix.
    pub gateway: Option<IpAddr>,
    /// Index of the outgoing interface.
    pub device: u32,
    /// Whether the gateway is taken to be on the link without asking the routing table.
    pub onlink: bool,
    /// Whether its protocol is `boot`, which is what flannel and plain `ip route add` write.
    pub boot: bool,
}

/// A neighbour or FDB entry on the VXLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<T> {
    /// The MAC of a neighbour, the destination of an FDB entry.
    pub value: T,
    /// Whether it is permanent, as those that the agent makes are.
    pub permanent: bool,
}

/// What the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// All interfaces, by index.
    pub links: BTreeMap<u32, Link>,
    /// All addresses with their prefixes, by interface index, the most suitable first.
    pub addresses: BTreeMap<u32, Vec<IpNet>>,
    /// Routes of the main table, by destination.
    pub routes: BTreeMap<IpNet, Route>,
    /// Neighbours on the VXLAN devices, by interface index and address.
    pub neighbours: BTreeMap<(u32, IpAddr), Entry<Mac>>,
    /// Unicast FDB entries of the VXLAN devices, by interface index and MAC.
    pub fdb: BTreeMap<(u32, Mac), Entry<IpAddr>>,
    /// What others have put on interfaces, by index.
    pub traffic_control: BTreeMap<u32, TrafficControl>,
    /// Far ends of IPsec policies.
    pub ipsec: Vec<IpNet>,
}

impl Observed {
    /// The interface called `name`.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// The interface that holds exactly `address`.
    pub fn holder(&self, address: IpAddr) -> Option<&Link> {
        let (index, _) = self
            .addresses
            .iter()
            .find(|(_, list)| list.iter().any(|net| net.addr() == address))?;
        self.links.get(index)
    }
}

/// What should be there for the other nodes' subnets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Permanent neighbours on the VXLAN devices.
    pub neighbours: BTreeMap<(u32, IpAddr), Mac>,
    /// Permanent FDB entries on the VXLAN devices.
    pub fdb: BTreeMap<(u32, Mac), IpAddr>,
    /// Routes of the main table.
    pub routes: BTreeMap<IpNet, Route>,
}

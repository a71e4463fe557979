//! What the fast path must know about the cluster and the node: plain data, made by the reconcile loop.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use flannel_common::addr::Mac;
use ipnet::Ipv4Net;

use crate::kernel::traffic_control::TrafficControl;

/// Everything that the maps are filled from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The interface that carries traffic between nodes.
    pub uplink: Device,
    /// This node's address on the uplink, which is the outer source address of encapsulated packets.
    pub node_ip: Ipv4Addr,
    /// This node's subnet.
    pub subnet: Ipv4Net,
    /// The VXLAN device; absent for a backend without one.
    pub vtep: Option<Vtep>,
    /// The bridge that holds the gateway address of the subnet; absent until the first pod is attached.
    pub bridge: Option<Device>,
    /// Other nodes' subnets that the kernel path reaches too.
    pub peers: Vec<PeerRoute>,
    /// Pods of this node.
    pub pods: Vec<Pod>,
    /// The bit that netfilter sets in the marks of packets that it attests, once it does.
    pub mark: Option<u32>,
    /// What others have put on interfaces, by index.
    pub traffic_control: BTreeMap<u32, TrafficControl>,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Link-layer address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
}

/// The node's VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vtep {
    /// The device itself; its MAC is the one that the lease publishes.
    pub device: Device,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
}

/// How one other node's subnet is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRoute {
    /// The other node's subnet.
    pub subnet: Ipv4Net,
    /// The other node's address, which is the outer source of what it sends.
    pub node_ip: Ipv4Addr,
    /// The next hop on the uplink: the node itself, or the gateway towards it.
    pub next_hop: Ipv4Addr,
    /// The VTEP's MAC for VXLAN; absent where packets are routed directly.
    pub vtep_mac: Option<Mac>,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its MAC, inside its namespace.
    pub mac: Mac,
    /// The host side of its veth.
    pub host_index: u32,
    /// Name of the host side.
    pub host_name: String,
    /// Whether an XDP program inside the pod sees what arrives through the veth, but not what skips it.
    pub xdp: bool,
}

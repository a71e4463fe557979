//! What the fast path must know about the cluster and the node: plain data, made by the reconcile loop.

use std::collections::BTreeMap;
use std::net::IpAddr;

use flannel_common::addr::Mac;
use ipnet::IpNet;

use crate::family::{Family, PerFamily};
use crate::kernel::traffic_control::TrafficControl;

/// Everything that the maps are filled from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The interface that carries traffic between nodes.
    pub uplink: Device,
    /// This node's addresses on the uplink, which are the outer source addresses of encapsulated packets.
    pub node_ip: PerFamily<IpAddr>,
    /// This node's subnets.
    pub subnet: PerFamily<IpNet>,
    /// The VXLAN devices; absent for a backend without.
    pub vtep: PerFamily<Vtep>,
    /// The bridge that holds the gateway address of the subnet; absent until the first pod is attached.
    pub bridge: Option<Device>,
    /// Other nodes' subnets that the kernel path reaches too.
    pub peers: Peers,
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
    pub subnet: IpNet,
    /// The other node's address, which is the outer source of what it sends.
    pub node_ip: IpAddr,
    /// The next hop on the uplink: the node itself, or the gateway towards it.
    pub next_hop: IpAddr,
    /// The VTEP's MAC for VXLAN; absent where packets are routed directly.
    pub vtep_mac: Option<Mac>,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its address.
    pub ip: IpAddr,
    /// Its MAC, inside its namespace.
    pub mac: Mac,
    /// The host side of its veth.
    pub host_index: u32,
    /// Name of the host side.
    pub host_name: String,
    /// Whether an XDP program inside the pod sees what arrives through the veth, but not what skips it.
    pub xdp: bool,
}

/// Other nodes' subnets. Knows without looking through them whether any is tunnelled, or routed directly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    by_subnet: BTreeMap<IpNet, PeerRoute>,
    counts: BTreeMap<(Family, bool), usize>,
}

impl Peers {
    /// Adds or replaces a subnet.
    pub fn insert(&mut self, route: PeerRoute) {
        self.remove(&route.subnet);
        *self.counts.entry(kind(&route)).or_default() += 1;
        self.by_subnet.insert(route.subnet, route);
    }

    /// Removes a subnet.
    pub fn remove(&mut self, subnet: &IpNet) {
        if let Some(old) = self.by_subnet.remove(subnet) {
            let kind = kind(&old);
            if let Some(count) = self.counts.get_mut(&kind) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&kind);
                }
            }
        }
    }

    /// A subnet.
    pub fn get(&self, subnet: &IpNet) -> Option<&PeerRoute> {
        self.by_subnet.get(subnet)
    }

    /// All subnets, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &PeerRoute> {
        self.by_subnet.values()
    }

    /// Whether a subnet of the family is reached through the VXLAN device, or without it.
    pub fn any(&self, family: Family, tunnelled: bool) -> bool {
        self.counts.contains_key(&(family, tunnelled))
    }
}

impl FromIterator<PeerRoute> for Peers {
    fn from_iter<T: IntoIterator<Item = PeerRoute>>(routes: T) -> Self {
        let mut peers = Self::default();
        routes.into_iter().for_each(|route| peers.insert(route));
        peers
    }
}

fn kind(route: &PeerRoute) -> (Family, bool) {
    (Family::of_net(&route.subnet), route.vtep_mac.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_what_is_there() {
        let route = |subnet: &str, vtep_mac| PeerRoute {
            subnet: subnet.parse().unwrap(),
            node_ip: [192, 168, 1, 2].into(),
            next_hop: [192, 168, 1, 2].into(),
            vtep_mac,
        };
        let mac = Some(Mac([2, 0, 0, 0, 0, 1]));
        let mut peers: Peers = [route("10.5.1.0/24", mac), route("fd00::/64", None)]
            .into_iter()
            .collect();
        assert!(peers.any(Family::V4, true) && peers.any(Family::V6, false));
        assert!(!peers.any(Family::V4, false) && !peers.any(Family::V6, true));
        peers.insert(route("10.5.1.0/24", None));
        assert!(peers.any(Family::V4, false) && !peers.any(Family::V4, true));
        peers.remove(&"10.5.1.0/24".parse().unwrap());
        assert!(!peers.any(Family::V4, false));
    }
}

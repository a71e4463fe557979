//! The IPv6 side of the same node: a device for IPv6's tunnel, subnets and addresses of its own, the same interfaces.
//!
//! ```text
//! this node  fd00:7::1  fd00:5:0:9::/64    pods ::2 (straight into the pod) and ::3 (through the host side)
//! vxlan      fd00:7::2  fd00:5:0:b::/64    behind VXLAN
//! direct     fd00:7::3  fd00:5:0:c::/64    routed
//! far        fd00:9::4  fd00:5:0:10::/60   behind VXLAN; a subnet of another length
//! nested     fd00:9::5  fd00:5:0:11::/72   the same, inside the former
//! ```

use std::collections::HashMap;
use std::net::Ipv6Addr;

use crate::addr::Mac;
use crate::decide;
use crate::flow::{Flow, FlowKey6};
use crate::maps::{Config, FLAG_IPV6, FLAG_OTHER_LENGTHS_V6, LocalPod6, POD_VIA_HOST, Peer6};
use crate::testing::node::{Device, POD_MAC, POD_VIA_MAC, PORT, PORT_VIA, Tables};
use crate::wire::Be128;

const fn address(segments: [u16; 8]) -> Ipv6Addr {
    let [a, b, c, d, e, f, g, h] = segments;
    Ipv6Addr::new(a, b, c, d, e, f, g, h)
}

/// This node's address.
pub const NODE_IP6: Ipv6Addr = address([0xfd00, 7, 0, 0, 0, 0, 0, 1]);
/// A pod of this node into which packets are put directly.
pub const POD6: Ipv6Addr = address([0xfd00, 5, 0, 9, 0, 0, 0, 2]);
/// A pod of this node that gets packets through the host side of its veth.
pub const POD6_VIA: Ipv6Addr = address([0xfd00, 5, 0, 9, 0, 0, 0, 3]);
/// An address in this node's subnet that no pod has.
pub const NO_POD6: Ipv6Addr = address([0xfd00, 5, 0, 9, 0, 0, 0, 0xc8]);
/// An address outside of the cluster.
pub const OUTSIDE6: Ipv6Addr = address([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7]);
/// An address of the cluster in no node's subnet.
pub const NO_SUBNET6: Ipv6Addr = address([0xfd00, 5, 0, 0xd, 0, 0, 0, 2]);
/// An address that is valid on its link only.
pub const LINK_LOCAL: Ipv6Addr = address([0xfe80, 0, 0, 0, 0x58, 0xff, 0xfe05, 2]);
/// All nodes of a link.
pub const ALL_NODES: Ipv6Addr = address([0xff02, 0, 0, 0, 0, 0, 0, 1]);
/// An address outside of the cluster whose subnet has the number of [`VXLAN6`]'s.
pub const SAME_SUBNET_NUMBER6: Ipv6Addr = address([0xfd00, 5, 2, 0xb, 0, 0, 0, 7]);
/// An address outside of the cluster that has the number of [`POD6`]'s.
pub const SAME_POD_NUMBER6: Ipv6Addr = address([0xfd00, 5, 0, 9, 0, 0, 1, 2]);

/// MTU of the VXLAN device for IPv6, in bytes.
pub const TUNNEL6_MTU: u16 = 1430;

/// The VXLAN device for IPv6.
pub const VTEP6: Device = Device {
    name: "vtep6",
    index: 25,
    mac: Mac([2, 0, 0, 8, 6, 1]),
};

/// Another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote6 {
    /// First address and length of its subnet.
    pub subnet: (Ipv6Addr, u32),
    /// A pod there.
    pub pod: Ipv6Addr,
    /// Its address.
    pub node_ip: Ipv6Addr,
    /// The neighbour that leads there.
    pub next_hop: Ipv6Addr,
    /// MAC of its VXLAN device; zero if it is routed.
    pub vtep_mac: Mac,
}

/// Behind VXLAN.
pub const VXLAN6: Remote6 = Remote6 {
    subnet: (address([0xfd00, 5, 0, 0xb, 0, 0, 0, 0]), 64),
    pod: address([0xfd00, 5, 0, 0xb, 0, 0, 0, 7]),
    node_ip: address([0xfd00, 7, 0, 0, 0, 0, 0, 2]),
    next_hop: address([0xfd00, 7, 0, 0, 0, 0, 0, 2]),
    vtep_mac: Mac([2, 0, 0, 8, 6, 2]),
};
/// Routed without a tunnel.
pub const DIRECT6: Remote6 = Remote6 {
    subnet: (address([0xfd00, 5, 0, 0xc, 0, 0, 0, 0]), 64),
    pod: address([0xfd00, 5, 0, 0xc, 0, 0, 0, 7]),
    node_ip: address([0xfd00, 7, 0, 0, 0, 0, 0, 3]),
    next_hop: address([0xfd00, 7, 0, 0, 0, 0, 0, 0xfe]),
    vtep_mac: Mac([0; 6]),
};
/// Behind VXLAN, with a subnet of another length.
pub const FAR6: Remote6 = Remote6 {
    subnet: (address([0xfd00, 5, 0, 0x10, 0, 0, 0, 0]), 60),
    pod: address([0xfd00, 5, 0, 0x11, 0x100, 0, 0, 77]),
    node_ip: address([0xfd00, 9, 0, 0, 0, 0, 0, 4]),
    next_hop: address([0xfd00, 7, 0, 0, 0, 0, 0, 0xfe]),
    vtep_mac: Mac([2, 0, 0, 8, 6, 4]),
};
/// Inside the subnet of [`FAR6`], longer.
pub const NESTED6: Remote6 = Remote6 {
    subnet: (address([0xfd00, 5, 0, 0x11, 0, 0, 0, 0]), 72),
    pod: address([0xfd00, 5, 0, 0x11, 0, 0, 0, 7]),
    node_ip: address([0xfd00, 9, 0, 0, 0, 0, 0, 5]),
    next_hop: address([0xfd00, 7, 0, 0, 0, 0, 0, 0xfe]),
    vtep_mac: Mac([2, 0, 0, 8, 6, 5]),
};

/// All other nodes.
pub const REMOTES6: [Remote6; 4] = [VXLAN6, DIRECT6, FAR6, NESTED6];

/// Length of the subnets that most nodes have.
const USUAL_LENGTH: u32 = 64;

impl Remote6 {
    /// The map value for this node.
    pub fn peer(&self) -> Peer6 {
        Peer6 {
            subnet: self.subnet.0.into(),
            node_ip: self.node_ip.into(),
            next_hop: self.next_hop.into(),
            vtep_mac: self.vtep_mac,
            ..Peer6::default()
        }
    }
}

/// What the maps of IPv6 hold.
#[derive(Clone, Debug, Default)]
pub struct Tables6 {
    /// Subnets of the usual length.
    pub subnets: HashMap<Be128, Peer6>,
    /// First address, length and node of other subnets.
    pub subnets_lpm: Vec<(Be128, u32, Peer6)>,
    /// Pods of this node.
    pub pods: HashMap<Be128, LocalPod6>,
    /// What is remembered of flows, with times as ages in nanoseconds; a time of zero stays zero.
    pub flows: HashMap<FlowKey6, Flow>,
}

impl Tables6 {
    /// The maps of this node.
    pub fn node() -> Self {
        let (usual, other): (Vec<_>, Vec<_>) = REMOTES6
            .into_iter()
            .partition(|remote| remote.subnet.1 == USUAL_LENGTH);
        let pod = |address: Ipv6Addr, port: Device, mac, flags| {
            let pod = LocalPod6 {
                address: address.into(),
                host_index: port.index,
                mac,
                flags,
                ..LocalPod6::default()
            };
            (pod.address, pod)
        };
        Self {
            subnets: usual
                .iter()
                .map(|remote| (remote.subnet.0.into(), remote.peer()))
                .collect(),
            subnets_lpm: other
                .iter()
                .map(|remote| (remote.subnet.0.into(), remote.subnet.1, remote.peer()))
                .collect(),
            pods: HashMap::from([
                pod(POD6, PORT, POD_MAC, 0),
                pod(POD6_VIA, PORT_VIA, POD_VIA_MAC, POD_VIA_HOST),
            ]),
            flows: HashMap::new(),
        }
    }
}

fn mask(length: u32) -> u128 {
    u128::MAX.checked_shl(u128::BITS - length).unwrap_or(0)
}

/// A config with IPv6 beside IPv4.
pub fn with(config: Config) -> Config {
    Config {
        flags: config.flags | FLAG_IPV6 | FLAG_OTHER_LENGTHS_V6,
        vtep6_mac: VTEP6.mac,
        subnet6_mask: Be128::new(mask(USUAL_LENGTH)),
        host6_bits: u128::BITS - USUAL_LENGTH,
        vtep6_index: VTEP6.index,
        tunnel6_mtu: TUNNEL6_MTU,
        ..config
    }
}

impl decide::Routes<Be128> for Tables {
    fn peer(&self, address: Be128) -> Option<&Peer6> {
        if let Some(peer) = self.v6.subnets.get(&address.and(self.config.subnet6_mask)) {
            return Some(peer);
        }
        if self.config.flags & FLAG_OTHER_LENGTHS_V6 == 0 {
            return None;
        }
        self.v6
            .subnets_lpm
            .iter()
            .filter(|(first, length, _)| address.get() & mask(*length) == first.get())
            .max_by_key(|(_, length, _)| *length)
            .map(|(_, _, peer)| peer)
    }

    fn pod(&self, address: Be128) -> Option<&LocalPod6> {
        self.v6.pods.get(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::Routes as _;
    use crate::maps::{pod_number, subnet_number};

    #[test]
    fn numbers_are_shared_as_the_names_say() {
        let host_bits = Tables::node().config.host6_bits;
        let subnet = |address: Ipv6Addr| subnet_number(Be128::from(address), host_bits);
        assert_eq!(subnet(SAME_SUBNET_NUMBER6), subnet(VXLAN6.pod));
        assert_eq!(
            pod_number(Be128::from(SAME_POD_NUMBER6)),
            pod_number(Be128::from(POD6))
        );
    }

    #[test]
    fn the_longest_subnet_wins_and_the_flag_guards_the_trie() {
        let mut tables = Tables::node();
        for remote in REMOTES6 {
            let found = tables.peer(Be128::from(remote.pod));
            assert_eq!(found, Some(&remote.peer()), "{remote:?}");
        }
        assert_eq!(tables.peer(Be128::from(NO_SUBNET6)), None);
        tables.config.flags &= !FLAG_OTHER_LENGTHS_V6;
        assert_eq!(tables.peer(Be128::from(FAR6.pod)), None);
        assert_eq!(tables.peer(Be128::from(VXLAN6.pod)), Some(&VXLAN6.peer()));
    }
}

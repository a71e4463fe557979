//! One node of a small cluster, with the map contents that its agent would write.
//!
//! ```text
//! this node  192.168.7.1  10.5.9.0/24    pods .2 (straight into the pod) and .3 (through the host side)
//! vxlan      192.168.7.2  10.5.11.0/24   a neighbour, behind VXLAN
//! direct     192.168.7.3  10.5.12.0/24   a neighbour, routed
//! far        192.168.9.4  10.5.16.0/22   behind VXLAN and a gateway; a subnet of another length
//! nested     192.168.9.5  10.5.17.0/26   the same, inside the former
//! ```

use std::collections::HashMap;
use std::net::Ipv4Addr;

use crate::addr::Mac;
use crate::decide;
use crate::family::Family as _;
use crate::flow::{Flow, FlowKey};
use crate::maps::{
    Config, FLAG_ACTIVE, FLAG_DECAP, FLAG_OTHER_LENGTHS, LocalPod, POD_VIA_HOST, Peer,
};
use crate::testing::frame::Tunnel;
use crate::testing::node6::{self, Tables6};
use crate::wire::{Be16, Be32};

/// This node's address.
pub const NODE_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 1);
/// The first address of this node's subnet.
pub const SUBNET: Ipv4Addr = Ipv4Addr::new(10, 5, 9, 0);
/// A pod of this node into which packets are put directly.
pub const POD: Ipv4Addr = Ipv4Addr::new(10, 5, 9, 2);
/// A pod of this node that gets packets through the host side of its veth.
pub const POD_VIA: Ipv4Addr = Ipv4Addr::new(10, 5, 9, 3);
/// An address in this node's subnet that no pod has.
pub const NO_POD: Ipv4Addr = Ipv4Addr::new(10, 5, 9, 200);
/// An address outside of the cluster.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// An address of the cluster in no node's subnet.
pub const NO_SUBNET: Ipv4Addr = Ipv4Addr::new(10, 5, 13, 2);

/// An address outside of the cluster whose subnet has the number of [`VXLAN`]'s.
pub const SAME_SUBNET_NUMBER: Ipv4Addr = Ipv4Addr::new(12, 5, 11, 7);
/// An address outside of the cluster that has the number of [`POD`]'s.
pub const SAME_POD_NUMBER: Ipv4Addr = Ipv4Addr::new(10, 6, 9, 2);

/// MAC of [`POD`].
pub const POD_MAC: Mac = Mac([0x0a, 0x58, 10, 5, 9, 2]);
/// MAC of [`POD_VIA`].
pub const POD_VIA_MAC: Mac = Mac([0x0a, 0x58, 10, 5, 9, 3]);
/// MAC that a neighbour on the node's interface sends from.
pub const NEIGHBOUR_MAC: Mac = Mac([2, 0, 0, 7, 0, 2]);
/// MAC that the node's XDP program has packets come from.
pub const XDP_MAC: Mac = Mac([2, 0, 0, 8, 8, 8]);
/// MAC of nobody.
pub const OTHER_MAC: Mac = Mac([2, 0, 0, 9, 9, 9]);

/// The VXLAN port that flannel uses unless told otherwise: the kernel's.
pub const VXLAN_PORT: u16 = 8472;
/// The VXLAN network identifier that flannel uses unless told otherwise.
pub const VNI: u32 = 1;
/// MTU of the node's interface, in bytes.
pub const UPLINK_MTU: u16 = 1500;
/// MTU of the VXLAN device and of the bridge, in bytes.
pub const TUNNEL_MTU: u16 = 1450;

/// A network interface of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Interface name.
    pub name: &'static str,
    /// Interface index.
    pub index: u32,
    /// Link-layer address.
    pub mac: Mac,
}

/// The node's interface.
pub const UPLINK: Device = Device {
    name: "uplink",
    index: 20,
    mac: Mac([2, 0, 0, 7, 0, 1]),
};
/// The VXLAN device.
pub const VTEP: Device = Device {
    name: "vtep",
    index: 21,
    mac: Mac([2, 0, 0, 8, 0, 1]),
};
/// The bridge.
pub const BRIDGE: Device = Device {
    name: "bridge",
    index: 22,
    mac: Mac([0x0a, 0x58, 10, 5, 9, 1]),
};
/// Host side of the veth of [`POD`].
pub const PORT: Device = Device {
    name: "port",
    index: 23,
    mac: Mac([2, 0, 0, 6, 0, 2]),
};
/// Host side of the veth of [`POD_VIA`].
pub const PORT_VIA: Device = Device {
    name: "port-via",
    index: 24,
    mac: Mac([2, 0, 0, 6, 0, 3]),
};

/// All interfaces.
pub const DEVICES: [Device; 5] = [UPLINK, VTEP, BRIDGE, PORT, PORT_VIA];

/// Another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// First address and length of its subnet.
    pub subnet: (Ipv4Addr, u32),
    /// A pod there.
    pub pod: Ipv4Addr,
    /// Its address.
    pub node_ip: Ipv4Addr,
    /// The neighbour that leads there.
    pub next_hop: Ipv4Addr,
    /// MAC of its VXLAN device; zero if it is routed.
    pub vtep_mac: Mac,
}

/// Behind VXLAN, a neighbour.
pub const VXLAN: Remote = Remote {
    subnet: (Ipv4Addr::new(10, 5, 11, 0), 24),
    pod: Ipv4Addr::new(10, 5, 11, 7),
    node_ip: Ipv4Addr::new(192, 168, 7, 2),
    next_hop: Ipv4Addr::new(192, 168, 7, 2),
    vtep_mac: Mac([2, 0, 0, 8, 0, 2]),
};
/// Routed without a tunnel.
pub const DIRECT: Remote = Remote {
    subnet: (Ipv4Addr::new(10, 5, 12, 0), 24),
    pod: Ipv4Addr::new(10, 5, 12, 7),
    node_ip: Ipv4Addr::new(192, 168, 7, 3),
    next_hop: Ipv4Addr::new(192, 168, 7, 3),
    vtep_mac: Mac([0; 6]),
};
/// Behind VXLAN and a gateway, with a subnet of another length.
pub const FAR: Remote = Remote {
    subnet: (Ipv4Addr::new(10, 5, 16, 0), 22),
    pod: Ipv4Addr::new(10, 5, 17, 77),
    node_ip: Ipv4Addr::new(192, 168, 9, 4),
    next_hop: Ipv4Addr::new(192, 168, 7, 254),
    vtep_mac: Mac([2, 0, 0, 8, 0, 4]),
};
/// Inside the subnet of [`FAR`], longer.
pub const NESTED: Remote = Remote {
    subnet: (Ipv4Addr::new(10, 5, 17, 0), 26),
    pod: Ipv4Addr::new(10, 5, 17, 7),
    node_ip: Ipv4Addr::new(192, 168, 9, 5),
    next_hop: Ipv4Addr::new(192, 168, 7, 254),
    vtep_mac: Mac([2, 0, 0, 8, 0, 5]),
};

/// All other nodes.
pub const REMOTES: [Remote; 4] = [VXLAN, DIRECT, FAR, NESTED];

/// Length of the subnets that most nodes have.
const USUAL_LENGTH: u32 = 24;

impl Remote {
    /// The map value for this node.
    pub fn peer(&self) -> Peer {
        Peer {
            subnet: self.subnet.0.into(),
            node_ip: self.node_ip.into(),
            next_hop: self.next_hop.into(),
            vtep_mac: self.vtep_mac,
            ..Peer::default()
        }
    }

    /// The outer headers of packets that this node gets from there.
    pub fn tunnel(&self) -> Tunnel {
        Tunnel {
            source: self.node_ip,
            destination: NODE_IP,
            source_port: 50_123,
            destination_port: VXLAN_PORT,
            vni: VNI,
        }
    }
}

/// What the maps hold.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// The config in force.
    pub config: Config,
    /// Subnets of the usual length.
    pub subnets: HashMap<Be32, Peer>,
    /// First address, length and node of other subnets.
    pub subnets_lpm: Vec<(Be32, u32, Peer)>,
    /// Pods of this node.
    pub pods: HashMap<Be32, LocalPod>,
    /// What is remembered of flows, with times as ages in nanoseconds; a time of zero stays zero.
    pub flows: HashMap<FlowKey, Flow>,
    /// The same of IPv6.
    pub v6: Tables6,
    /// Whether the agent's heartbeat has stopped.
    pub expired: bool,
    /// The generation of pods and subnets.
    pub generation: u32,
}

impl Tables {
    /// The maps of this node, with the fast path on.
    pub fn node() -> Self {
        let (usual, other): (Vec<Remote>, Vec<Remote>) = REMOTES
            .into_iter()
            .partition(|remote| remote.subnet.1 == USUAL_LENGTH);
        Self {
            config: node6::with(config()),
            generation: 1,
            v6: Tables6::node(),
            subnets: usual
                .iter()
                .map(|remote| (remote.subnet.0.into(), remote.peer()))
                .collect(),
            subnets_lpm: other
                .iter()
                .map(|remote| (remote.subnet.0.into(), remote.subnet.1, remote.peer()))
                .collect(),
            pods: HashMap::from([
                (
                    POD.into(),
                    LocalPod {
                        address: POD.into(),
                        host_index: PORT.index,
                        mac: POD_MAC,
                        ..LocalPod::default()
                    },
                ),
                (
                    POD_VIA.into(),
                    LocalPod {
                        address: POD_VIA.into(),
                        host_index: PORT_VIA.index,
                        mac: POD_VIA_MAC,
                        flags: POD_VIA_HOST,
                        ..LocalPod::default()
                    },
                ),
            ]),
            ..Self::default()
        }
    }

    /// The maps of the node [`VXLAN`], whose only pod and only peer are [`VXLAN`]'s pod and this node.
    pub fn remote_node() -> Self {
        Self {
            config: Config {
                node_ip: VXLAN.node_ip.into(),
                vtep_mac: VXLAN.vtep_mac,
                ..config()
            },
            subnets: HashMap::from([(
                SUBNET.into(),
                Peer {
                    subnet: SUBNET.into(),
                    node_ip: NODE_IP.into(),
                    next_hop: NODE_IP.into(),
                    vtep_mac: VTEP.mac,
                    ..Peer::default()
                },
            )]),
            subnets_lpm: Vec::new(),
            pods: HashMap::from([(
                VXLAN.pod.into(),
                LocalPod {
                    address: VXLAN.pod.into(),
                    host_index: PORT.index,
                    mac: OTHER_MAC,
                    ..LocalPod::default()
                },
            )]),
            ..Self::default()
        }
    }
}

fn mask(length: u32) -> u32 {
    u32::MAX.checked_shl(u32::BITS - length).unwrap_or(0)
}

/// The config of this node: active, encapsulating and decapsulating in BPF.
pub fn config() -> Config {
    Config {
        flags: FLAG_ACTIVE | FLAG_OTHER_LENGTHS | FLAG_DECAP,
        uplink_index: UPLINK.index,
        vtep_index: VTEP.index,
        bridge_index: BRIDGE.index,
        vni: VNI,
        node_ip: NODE_IP.into(),
        subnet_mask: Be32::new(mask(USUAL_LENGTH)),
        host_bits: u32::BITS - USUAL_LENGTH,
        vxlan_port: Be16::new(VXLAN_PORT),
        source_port_min: 32_768,
        source_port_max: 60_999,
        tunnel_mtu: TUNNEL_MTU,
        direct_mtu: UPLINK_MTU,
        pod_mtu: TUNNEL_MTU,
        bridge_mac: BRIDGE.mac,
        vtep_mac: VTEP.mac,
        uplink_mac: UPLINK.mac,
        xdp_mac: XDP_MAC,
        outer_ttl: 64,
        ..Config::default()
    }
}

impl decide::Topology for Tables {
    fn config(&self) -> &Config {
        &self.config
    }

    fn generation(&self) -> u32 {
        self.generation
    }

    fn expires(&self) -> u64 {
        if self.expired { 0 } else { u64::MAX }
    }
}

impl decide::Routes<Be32> for Tables {
    fn peer(&self, address: Be32) -> Option<&Peer> {
        let subnet = address.and(self.config.subnet_mask);
        if let Some(peer) = self.subnets.get(&subnet) {
            return Some(peer);
        }
        if self.config.flags & FLAG_OTHER_LENGTHS == 0 {
            return None;
        }
        self.subnets_lpm
            .iter()
            .filter(|(first, length, _)| address.get() & mask(*length) == first.get())
            .max_by_key(|(_, length, _)| *length)
            .map(|(_, _, peer)| peer)
    }

    fn pod(&self, address: Be32) -> Option<&LocalPod> {
        self.pods.get(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::Routes as _;
    use crate::maps::{pod_number, subnet_number};

    #[test]
    fn numbers_are_shared_as_the_names_say() {
        let host_bits = config().host_bits;
        let subnet = |address: Ipv4Addr| subnet_number(Be32::from(address), host_bits);
        assert_eq!(subnet(SAME_SUBNET_NUMBER), subnet(VXLAN.pod));
        assert_eq!(
            pod_number(Be32::from(SAME_POD_NUMBER)),
            pod_number(Be32::from(POD))
        );
    }

    #[test]
    fn the_longest_subnet_wins_and_the_flag_guards_the_trie() {
        let mut tables = Tables::node();
        for remote in REMOTES {
            assert_eq!(
                tables.peer(Be32::from(remote.pod)),
                Some(&remote.peer()),
                "{remote:?}"
            );
        }
        assert_eq!(tables.peer(Be32::from(NO_SUBNET)), None);
        tables.config.flags &= !FLAG_OTHER_LENGTHS;
        assert_eq!(tables.peer(Be32::from(FAR.pod)), None);
        assert_eq!(tables.peer(Be32::from(VXLAN.pod)), Some(&VXLAN.peer()));
    }
}

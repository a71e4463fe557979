//! The other nodes: what their leases say.

use std::net::Ipv4Addr;

use lab::{
    etcd::PREFIX,
    lease::{Lease, Subnet},
};

use crate::{testbed::Result, variants::Backend};

/// The pods' network.
pub const NETWORK: &str = "10.0.0.0/8";
/// Where this node finds its own subnet: among others than those of the leases.
pub const OWN_SUBNETS: [&str; 2] = ["10.0.1.0", "10.0.255.0"];
/// The length of subnets, and the bits that it leaves.
pub const SUBNET_LENGTH: u8 = 24;
/// See [`SUBNET_LENGTH`].
pub const HOST_BITS: u32 = u32::BITS - SUBNET_LENGTH as u32;
/// The first of the leases' subnets.
const FIRST_SUBNET: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);
/// Where the nodes' addresses begin, and what this node takes to be on its link.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
/// See [`FIRST_ADDRESS`].
pub const ON_LINK: &str = "172.16.0.0/12";
/// How far the addresses are from each other before a change and after it.
const MOVED: u32 = 1 << 16;
/// The first bytes of a VTEP MAC: locally administered.
const MAC: [u8; 2] = [0x0e, 0xde];

/// Another node, before a change of its lease or after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Which one.
    pub number: u32,
    /// How often its lease has changed.
    pub changed: u32,
}

impl Peer {
    /// Its subnet.
    pub fn subnet(self) -> Subnet {
        Subnet {
            address: Ipv4Addr::from(u32::from(FIRST_SUBNET) + (self.number << HOST_BITS)),
            length: SUBNET_LENGTH,
        }
    }

    /// Its address; with host-gw, that is what changes.
    pub fn address(self, backend: Backend) -> Ipv4Addr {
        let moved = match backend {
            Backend::Vxlan => 0,
            Backend::HostGw => self.changed * MOVED,
        };
        Ipv4Addr::from(u32::from(FIRST_ADDRESS) + self.number + moved)
    }

    /// The MAC of its VXLAN device, which is what changes with VXLAN.
    pub fn mac(self) -> [u8; 6] {
        let [_, a, b, c] = self.number.to_be_bytes();
        [MAC[0], MAC[1], self.changed as u8, a, b, c]
    }

    /// The key of its lease.
    pub fn key(self) -> String {
        format!("{PREFIX}/subnets/{}", self.subnet().key())
    }

    /// The value of its lease.
    pub fn value(self, backend: Backend) -> String {
        let (address, name) = (self.address(backend), backend.name());
        let data = match backend {
            Backend::Vxlan => {
                let mac = self.mac().map(|byte| format!("{byte:02x}")).join(":");
                format!(r#","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}"#)
            }
            Backend::HostGw => String::new(),
        };
        format!(r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"{name}"{data}}}"#)
    }

    /// The lease as others read it.
    ///
    /// # Errors
    /// None, if this module is right.
    pub fn lease(self, backend: Backend) -> Result<Lease> {
        Ok(Lease::parse(&self.key(), &self.value(backend))?)
    }
}

/// The first `count` nodes, unchanged.
pub fn all(count: u32) -> impl Iterator<Item = Peer> {
    (0..count).map(|number| Peer { number, changed: 0 })
}

/// The network config.
pub fn network(backend: Backend) -> String {
    let ([min, max], backend) = (OWN_SUBNETS, backend.name());
    format!(
        r#"{{"Network":"{NETWORK}","SubnetLen":{SUBNET_LENGTH},"SubnetMin":"{min}","SubnetMax":"{max}","Backend":{{"Type":"{backend}"}}}}"#
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn nodes_differ_before_and_after_a_change() {
        for backend in [Backend::Vxlan, Backend::HostGw] {
            let (network, link): (Subnet, Subnet) =
                (NETWORK.parse().unwrap(), ON_LINK.parse().unwrap());
            let mut values = BTreeSet::new();
            for number in [0, 1, 255, 256, 9_999] {
                for changed in [0, 1, 2] {
                    let peer = Peer { number, changed };
                    let lease = peer.lease(backend).unwrap();
                    assert!(network.contains(lease.subnet.address));
                    assert!(link.contains(lease.value.public_ip));
                    assert!(values.insert(peer.value(backend)), "{peer:?}");
                }
            }
        }
    }
}

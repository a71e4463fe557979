//! The kernel objects that belong to the TUN device: its address, MTU and route. Pure.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Bytes that a packet gains on the wire: the headers of IPv4 and UDP (upstream's `encapOverhead`).
pub const OVERHEAD: u32 = 28;

/// What the device should have, as upstream sets it (`configureIface` in `pkg/backend/udp/udp_network_amd64.go`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its only address, with prefix length 32: the first of the node's subnet.
    pub address: Ipv4Addr,
    /// Its MTU in bytes, which is also that of pods.
    pub mtu: u32,
    /// What is routed to the device, directly and with scope global: the whole flannel network.
    pub route: Ipv4Net,
}

/// What a node's device should have. `None` if the MTU of the uplink, in bytes, leaves no room for the smallest that
/// IPv4 works with.
pub fn wanted(network: Ipv4Net, subnet: Ipv4Net, uplink_mtu: u32) -> Option<Wanted> {
    /// RFC 791 section 3.2: every module must be able to forward so much.
    const SMALLEST: u32 = 68;
    let mtu = uplink_mtu.checked_sub(OVERHEAD)?;
    (mtu >= SMALLEST).then(|| Wanted {
        address: subnet.network(),
        mtu,
        route: network.trunc(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_set_up_as_upstreams() {
        let network = "10.5.0.0/16".parse().unwrap();
        let subnet = "10.5.57.0/24".parse().unwrap();
        // Recorded from flanneld v0.28.9 on an interface with 1500.
        assert_eq!(
            wanted(network, subnet, 1500),
            Some(Wanted {
                address: Ipv4Addr::new(10, 5, 57, 0),
                mtu: 1472,
                route: network,
            })
        );
        assert_eq!(wanted(network, subnet, 95), None);
        assert_eq!(wanted(network, subnet, 96).map(|it| it.mtu), Some(68));
        assert_eq!(wanted(network, subnet, 20), None);
    }
}

//! The udp backend: the whole flannel network is routed to a TUN device, and the agent itself carries packets from there
//! to the other nodes ([`crate::udp`]). IPv4 only. Which backend a lease is of makes no difference, as for upstream.

use std::net::{IpAddr, SocketAddrV4};

use ipnet::IpNet;

use crate::{
    family::PerFamily,
    iface::Uplink,
    kernel::objects::{TunnelDevice, TunnelKind},
    netconf::{Pool, Udp},
    udp::{DEVICE_PATTERN, Options},
};

/// Bytes that a packet gains on the wire: the headers of IPv4 and UDP (upstream's `encapOverhead`).
const OVERHEAD: u32 = 28;

/// MTU of the device and of pods, in bytes.
pub(super) fn mtu(uplink: &Uplink) -> u32 {
    uplink.mtu.saturating_sub(OVERHEAD)
}

/// What the proxy is started with. None before there is a lease.
pub(super) fn proxy(options: &Udp, uplink: &Uplink, subnets: &PerFamily<IpNet>) -> Option<Options> {
    let (Some(IpNet::V4(subnet)), Some(IpAddr::V4(local))) = (subnets.v4, uplink.addresses.v4)
    else {
        return None;
    };
    Some(Options {
        pattern: DEVICE_PATTERN.into(),
        address: subnet.network(),
        bind: SocketAddrV4::new(local, options.port),
    })
}

/// The proxy's device, called `name`, as upstream sets it up (`configureIface` in
/// `pkg/backend/udp/udp_network_amd64.go`).
pub(super) fn device(
    name: &str,
    uplink: &Uplink,
    pool: &Pool,
    subnet: Option<&IpNet>,
) -> Option<TunnelDevice> {
    Some(TunnelDevice {
        name: name.to_owned(),
        parent: uplink.index,
        local: uplink.addresses.v4?,
        mtu: mtu(uplink),
        network: pool.network,
        address: subnet.map(IpNet::network),
        kind: TunnelKind::Tun,
    })
}

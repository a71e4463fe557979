//! The ipip backend: one IPIP device; per peer a route to the peer's address through it, or, with `DirectRouting` and the
//! peer on the link, a plain route. IPv4 only.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Facts, Reach};
use crate::{
    iface::Uplink,
    kernel::objects::{IPIP_NAME, TunnelDevice, TunnelKind},
    lease::value::BackendData,
    netconf::{Ipip, Pool},
};

/// What encapsulation adds, in bytes: the outer IPv4 header.
const OVERHEAD: u32 = 20;

/// MTU of the device and of pods, in bytes.
pub(super) fn mtu(uplink: &Uplink) -> u32 {
    uplink.mtu.saturating_sub(OVERHEAD)
}

/// The device; none while the uplink has no IPv4 address.
pub(super) fn device(uplink: &Uplink, pool: &Pool, subnet: Option<&IpNet>) -> Option<TunnelDevice> {
    Some(TunnelDevice {
        name: IPIP_NAME.into(),
        parent: uplink.index,
        // The interface's own address, unlike VXLAN: without a local address the device would take what is meant for the
        // module's own device, `tunl0`.
        local: uplink.addresses.v4?,
        mtu: mtu(uplink),
        network: pool.network,
        address: subnet.map(IpNet::network),
        kind: TunnelKind::Ipip,
    })
}

/// How a peer is reached.
pub(super) fn reach(
    options: &Ipip,
    facts: &Facts<'_>,
    backend: &BackendData,
    node: IpAddr,
) -> Result<Reach, String> {
    if *backend != BackendData::Ipip {
        return Err(format!(
            "its BackendType is \"{}\", this node's is ipip",
            backend.kind()
        ));
    }
    Ok(if options.direct_routing && facts.on_link(node) {
        Reach::Direct
    } else {
        Reach::Ipip
    })
}

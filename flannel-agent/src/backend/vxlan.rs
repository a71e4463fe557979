//! The vxlan backend: one VXLAN device for each family; per peer a neighbour, an FDB entry and a route, or, with
//! `DirectRouting` and the peer on the link, a plain route.

use std::net::IpAddr;

use flannel_common::addr::Mac;
use ipnet::IpNet;

use super::{Facts, Reach};
use crate::{
    family::Family,
    iface::Uplink,
    kernel::objects::{TunnelDevice, TunnelKind, VxlanOptions},
    lease::value::BackendData,
    netconf::{Pool, Vxlan},
};

/// What encapsulation adds, in bytes: outer IPv4 (20) or IPv6 (40), UDP (8), VXLAN (8) and inner Ethernet (14) headers.
const fn overhead(family: Family) -> u32 {
    match family {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

/// Smallest MTU with which a link may carry the family, in bytes (RFC 791, RFC 8200 section 5).
pub(super) const fn least_mtu(family: Family) -> u32 {
    match family {
        Family::V4 => 68,
        Family::V6 => 1280,
    }
}

/// MTU of the device, in bytes.
pub(super) fn mtu(options: &Vxlan, uplink: &Uplink, family: Family) -> u32 {
    options
        .mtu
        .unwrap_or(uplink.mtu)
        .saturating_sub(overhead(family))
}

/// The device of a family; none while the uplink has no address of it.
pub(super) fn device(
    options: &Vxlan,
    uplink: &Uplink,
    family: Family,
    pool: &Pool,
    subnet: Option<&IpNet>,
    mac: Mac,
) -> Option<TunnelDevice> {
    let name = match family {
        Family::V4 => format!("flannel.{}", options.vni),
        Family::V6 => format!("flannel-v6.{}", options.vni),
    };
    Some(TunnelDevice {
        name,
        parent: uplink.index,
        // The address that is published, as upstream does; behind NAT it must be set on the node too.
        local: *uplink.public.get(family)?,
        mtu: mtu(options, uplink, family),
        network: pool.network,
        address: subnet.map(IpNet::network),
        kind: TunnelKind::Vxlan(VxlanOptions {
            vni: options.vni,
            port: options.port,
            gbp: options.gbp,
            learning: options.learning,
            mac,
        }),
    })
}

/// How a peer is reached.
pub(super) fn reach(
    options: &Vxlan,
    facts: &Facts<'_>,
    backend: &BackendData,
    family: Family,
    node: IpAddr,
) -> Result<Reach, String> {
    let BackendData::Vxlan(vteps) = backend else {
        return Err(format!(
            "its BackendType is \"{}\", this node's is vxlan",
            backend.kind()
        ));
    };
    let vtep = vteps
        .get(family)
        .ok_or_else(|| format!("it has published no {} VtepMAC", family.name()))?;
    Ok(if options.direct_routing && facts.on_link(node) {
        Reach::Direct
    } else {
        Reach::Vxlan(vtep.mac)
    })
}

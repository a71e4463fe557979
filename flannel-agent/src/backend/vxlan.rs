//! The vxlan backend: one VXLAN device; per peer a neighbour, an FDB entry and a route, or, with `DirectRouting` and
//! the peer on the link, a plain route.

use flannel_common::addr::Mac;
use ipnet::Ipv4Net;

use super::{Facts, Reach};
use crate::{
    iface::Uplink,
    kernel::objects::VxlanDevice,
    lease::{Lease, value::BackendData},
    netconf::Vxlan,
};

/// What encapsulation adds: outer IPv4 (20), UDP (8), VXLAN (8) and inner Ethernet (14) headers, in bytes.
const OVERHEAD: u32 = 50;

/// MTU of the device and of pods, in bytes.
pub(super) fn mtu(options: &Vxlan, uplink: &Uplink) -> u32 {
    options.mtu.unwrap_or(uplink.mtu).saturating_sub(OVERHEAD)
}

/// The device.
pub(super) fn device(
    options: &Vxlan,
    uplink: &Uplink,
    subnet: Option<Ipv4Net>,
    mac: Mac,
) -> VxlanDevice {
    VxlanDevice {
        name: format!("flannel.{}", options.vni),
        vni: options.vni,
        parent: uplink.index,
        // The address that is published, as upstream does; behind NAT it must be set on the node too.
        local: uplink.public_ip,
        port: options.port,
        gbp: options.gbp,
        learning: options.learning,
        mtu: mtu(options, uplink),
        mac,
        address: subnet.map(|subnet| subnet.network()),
    }
}

/// How `lease`'s subnet is reached.
pub(super) fn reach(options: &Vxlan, facts: &Facts<'_>, lease: &Lease) -> Result<Reach, String> {
    let BackendData::Vxlan { mac, .. } = lease.attributes.backend else {
        return Err(format!(
            "its BackendType is \"{}\", this node's is vxlan",
            lease.attributes.backend.kind()
        ));
    };
    let on_link = facts
        .hops
        .get(&lease.attributes.public_ip)
        .copied()
        .flatten()
        .is_some_and(|hop| hop.gateway.is_none() && !hop.local && hop.device == facts.uplink.index);
    Ok(if options.direct_routing && on_link {
        Reach::Direct
    } else {
        Reach::Vxlan(mac)
    })
}

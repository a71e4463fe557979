//! Backends: what a node publishes, the device that it needs, and how another node's subnet is reached. Pure.
//!
//! [`plan`] turns leases into desired kernel objects with what is here.

pub mod extension;
mod host_gw;
pub mod ipip;
pub mod plan;
mod udp;
mod vxlan;

use std::{collections::BTreeMap, net::IpAddr};

use flannel_common::addr::Mac;
use ipnet::IpNet;

pub use plan::Plan;

use crate::{
    family::{Family, PerFamily},
    iface::Uplink,
    kernel::{objects::TunnelDevice, observe::Hop},
    lease::{
        Attributes, Lease,
        value::{BackendData, Vtep},
    },
    netconf::{Backend, NetworkConfig},
};

/// What a plan depends on besides the leases.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The network config.
    pub config: &'a NetworkConfig,
    /// This node's subnets.
    pub subnets: PerFamily<IpNet>,
    /// The interface that carries traffic between nodes.
    pub uplink: &'a Uplink,
    /// Indices of the tunnel devices; absent for a backend without, and while a device does not exist.
    pub tunnels: PerFamily<u32>,
    /// How the kernel reaches the peers' addresses, as far as it was asked.
    pub hops: &'a BTreeMap<IpAddr, Option<Hop>>,
}

impl Facts<'_> {
    /// How the kernel reaches `node`, if it is known.
    fn hop(&self, node: IpAddr) -> Option<Hop> {
        self.hops.get(&node).copied().flatten()
    }

    /// Whether `node` is on the link of the interface between nodes.
    fn on_link(&self, node: IpAddr) -> bool {
        self.hop(node).is_some_and(|hop| {
            hop.gateway.is_none() && !hop.local && hop.device == self.uplink.index
        })
    }
}

/// How a peer's subnet is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Through the VXLAN device, to the VTEP with this MAC.
    Vxlan(Mac),
    /// By a route to the peer on the IPIP device.
    Ipip,
    /// By a route to the peer on the uplink.
    Direct,
    /// By no object of the kernel: the backend leaves that to others.
    Elsewhere,
}

/// The tunnel devices that the backend needs; `subnets` are absent before there is a lease, `macs` are for the case
/// that a device has to be created, `tun` is the name of the device that the udp backend's proxy has made.
pub fn devices(
    config: &NetworkConfig,
    uplink: &Uplink,
    subnets: &PerFamily<IpNet>,
    macs: &PerFamily<Mac>,
    tun: Option<&str>,
) -> PerFamily<TunnelDevice> {
    match &config.backend {
        Backend::Vxlan(options) => config.pools.filter_map(|family, pool| {
            let mac = macs.get(family)?;
            vxlan::device(options, uplink, family, pool, subnets.get(family), *mac)
        }),
        Backend::Udp(_) => PerFamily {
            v4: tun
                .zip(config.pools.v4.as_ref())
                .and_then(|(name, pool)| udp::device(name, uplink, pool, subnets.get(Family::V4))),
            v6: None,
        },
        Backend::Ipip(_) => PerFamily {
            v4: config
                .pools
                .v4
                .as_ref()
                .and_then(|pool| ipip::device(uplink, pool, subnets.get(Family::V4))),
            v6: None,
        },
        Backend::HostGw | Backend::Alloc | Backend::Extension(_) => PerFamily::default(),
    }
}

/// What the udp backend's proxy is started with, if the backend is udp and there is a lease.
pub fn proxy(
    config: &NetworkConfig,
    uplink: &Uplink,
    subnets: &PerFamily<IpNet>,
) -> Option<crate::udp::Options> {
    match &config.backend {
        Backend::Udp(options) => udp::proxy(options, uplink, subnets),
        _ => None,
    }
}

/// What this node publishes; `macs` are those of its VXLAN devices, `output` is what the extension backend's first command
/// has printed, if there is one.
pub fn attributes(
    config: &NetworkConfig,
    uplink: &Uplink,
    macs: &PerFamily<Mac>,
    output: Option<&str>,
) -> Attributes {
    let backend = match &config.backend {
        Backend::Vxlan(options) => BackendData::Vxlan(config.pools.filter_map(|family, _| {
            Some(Vtep {
                vni: Some(options.vni),
                mac: *macs.get(family)?,
            })
        })),
        Backend::HostGw => BackendData::HostGw,
        Backend::Ipip(_) => BackendData::Ipip,
        Backend::Extension(_) => BackendData::Extension(output.map(str::to_owned)),
        Backend::Udp(_) | Backend::Alloc => BackendData::Other(String::new()),
    };
    Attributes {
        addresses: uplink.public,
        backend,
    }
}

/// MTU for pods, in bytes: what every family's path takes.
pub fn pod_mtu(config: &NetworkConfig, uplink: &Uplink) -> u32 {
    match &config.backend {
        Backend::Vxlan(options) => config
            .pools
            .iter()
            .map(|(family, _)| vxlan::mtu(options, uplink, family))
            .min()
            .unwrap_or(uplink.mtu),
        Backend::Udp(_) => udp::mtu(uplink),
        Backend::Ipip(_) => ipip::mtu(uplink),
        Backend::HostGw | Backend::Alloc | Backend::Extension(_) => uplink.mtu,
    }
}

/// Why the backend cannot work with this interface, if so.
pub fn objection(config: &NetworkConfig, uplink: &Uplink) -> Option<String> {
    match &config.backend {
        Backend::HostGw => {
            let (family, public) = uplink
                .public
                .iter()
                .find(|(family, public)| uplink.addresses.get(*family) != Some(public))?;
            let option = match family {
                Family::V4 => "--public-ip",
                Family::V6 => "--public-ipv6",
            };
            Some(format!(
                "{option} = {public}: host-gw routes to the nodes' own addresses, so it must be that of {}, {}",
                uplink.name,
                uplink.addresses.join()
            ))
        }
        Backend::Vxlan(_) => {
            let least = config
                .pools
                .iter()
                .map(|(family, _)| vxlan::least_mtu(family))
                .max()?;
            (pod_mtu(config, uplink) < least).then(|| {
                format!(
                    "MTU of {} = {}: too small for VXLAN, which leaves {} bytes of it where {least} are needed",
                    uplink.name,
                    uplink.mtu,
                    pod_mtu(config, uplink)
                )
            })
        }
        Backend::Udp(_) | Backend::Ipip(_) => {
            let (mtu, least) = (pod_mtu(config, uplink), vxlan::least_mtu(Family::V4));
            (mtu < least).then(|| {
                format!(
                    "MTU of {} = {}: too small for the backend {}, which leaves {mtu} bytes of it where {least} are needed",
                    uplink.name,
                    uplink.mtu,
                    config.backend.name()
                )
            })
        }
        Backend::Alloc | Backend::Extension(_) => None,
    }
}

/// Whether the plan depends on how the kernel reaches the peers.
pub fn needs_hops(config: &NetworkConfig) -> bool {
    match &config.backend {
        Backend::Vxlan(options) => options.direct_routing,
        Backend::Ipip(options) => options.direct_routing,
        Backend::HostGw => true,
        Backend::Udp(_) | Backend::Alloc | Backend::Extension(_) => false,
    }
}

/// Whether routes to other nodes' subnets are the agent's alone; if not, those that it did not make are somebody else's,
/// however much they look like flannel's.
pub fn owns_routes(config: &NetworkConfig) -> bool {
    match &config.backend {
        Backend::Vxlan(_) | Backend::HostGw | Backend::Udp(_) | Backend::Ipip(_) => true,
        Backend::Alloc | Backend::Extension(_) => false,
    }
}

/// How the `family` part of a peer's lease is reached.
fn reach(facts: &Facts<'_>, lease: &Lease, family: Family, node: IpAddr) -> Result<Reach, String> {
    let backend = &lease.attributes.backend;
    match &facts.config.backend {
        Backend::Vxlan(options) => vxlan::reach(options, facts, backend, family, node),
        Backend::HostGw => host_gw::reach(facts, backend, node),
        Backend::Ipip(options) => ipip::reach(options, facts, backend, node),
        Backend::Extension(_) => extension::reach(backend),
        Backend::Udp(_) | Backend::Alloc => Ok(Reach::Elsewhere),
    }
}

#[cfg(test)]
mod tests;

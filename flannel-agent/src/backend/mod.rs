//! Backends: leases into desired kernel objects and into what the fast path must know. Pure.
//!
//! Each peer is judged by itself: one that cannot be reached, or whose lease makes no sense here, becomes a problem in
//! the status and never affects another.

mod host_gw;
mod vxlan;

use std::{collections::BTreeMap, net::Ipv4Addr};

use flannel_common::addr::Mac;
use ipnet::Ipv4Net;

use crate::{
    fastpath::PeerRoute,
    iface::Uplink,
    kernel::{
        objects::{Desired, Route, VxlanDevice},
        observe::Hop,
    },
    lease::{Attributes, Lease, value::BackendData},
    netconf::{Backend, NetworkConfig},
    status,
};

/// What a plan depends on besides the leases.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The network config.
    pub config: &'a NetworkConfig,
    /// This node's subnet.
    pub subnet: Ipv4Net,
    /// The interface that carries traffic between nodes.
    pub uplink: &'a Uplink,
    /// Index of the VXLAN device; absent for a backend without one.
    pub vtep: Option<u32>,
    /// How the kernel reaches the peers' addresses, as far as it was asked.
    pub hops: &'a BTreeMap<Ipv4Addr, Option<Hop>>,
}

/// How a peer's subnet is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Through the VXLAN device, to the VTEP with this MAC.
    Vxlan(Mac),
    /// By a route to the peer on the uplink.
    Direct,
}

/// A peer, and how it is reached or why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// Its address.
    pub node: Ipv4Addr,
    /// How it is reached, or the problem.
    pub reach: Result<Reach, String>,
}

impl Peer {
    /// Why it is not reached, if so.
    pub fn problem(&self) -> Option<&str> {
        self.reach.as_ref().err().map(String::as_str)
    }

    /// As the status shows it.
    pub fn status(&self) -> status::Peer {
        status::Peer {
            subnet: self.subnet.to_string(),
            public_ip: self.node.to_string(),
            via: match self.reach {
                Ok(Reach::Vxlan(_)) => "vxlan",
                Ok(Reach::Direct) => "direct",
                Err(_) => "none",
            }
            .into(),
            problem: self.problem().map(str::to_owned),
            kernel_path: None,
        }
    }
}

/// What the leases demand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Kernel objects.
    pub desired: Desired,
    /// Every peer, and how it is reached.
    pub peers: Vec<Peer>,
    /// Peers as the fast path sees them: those that the kernel reaches through the uplink.
    pub routes: Vec<PeerRoute>,
}

/// The VXLAN device that the backend needs, if it needs one; `mac` is for the case that it has to be created.
pub fn device(
    config: &NetworkConfig,
    uplink: &Uplink,
    subnet: Option<Ipv4Net>,
    mac: Mac,
) -> Option<VxlanDevice> {
    match &config.backend {
        Backend::Vxlan(options) => Some(vxlan::device(options, uplink, subnet, mac)),
        Backend::HostGw => None,
    }
}

/// What this node publishes; `mac` is that of its VXLAN device.
pub fn attributes(config: &NetworkConfig, uplink: &Uplink, mac: Mac) -> Attributes {
    let backend = match &config.backend {
        Backend::Vxlan(options) => BackendData::Vxlan {
            vni: Some(options.vni),
            mac,
        },
        Backend::HostGw => BackendData::HostGw,
    };
    Attributes {
        public_ip: uplink.public_ip,
        backend,
    }
}

/// MTU for pods, in bytes.
pub fn pod_mtu(config: &NetworkConfig, uplink: &Uplink) -> u32 {
    match &config.backend {
        Backend::Vxlan(options) => vxlan::mtu(options, uplink),
        Backend::HostGw => uplink.mtu,
    }
}

/// Why the backend cannot work with this interface, if so.
pub fn objection(config: &NetworkConfig, uplink: &Uplink) -> Option<String> {
    match &config.backend {
        Backend::HostGw if uplink.public_ip != uplink.address => Some(format!(
            "--public-ip = {}: host-gw routes to the nodes' own addresses, so it must be that of {}, {}",
            uplink.public_ip, uplink.name, uplink.address
        )),
        Backend::Vxlan(options) if vxlan::mtu(options, uplink) == 0 => Some(format!(
            "MTU of {} = {}: too small for VXLAN",
            uplink.name, uplink.mtu
        )),
        _ => None,
    }
}

/// Whether the plan depends on how the kernel reaches the peers.
pub fn needs_hops(config: &NetworkConfig) -> bool {
    match &config.backend {
        Backend::Vxlan(options) => options.direct_routing,
        Backend::HostGw => true,
    }
}

/// What the leases of `peers` demand.
pub fn plan<'a>(facts: &Facts<'_>, peers: impl Iterator<Item = &'a Lease>) -> Plan {
    let mut plan = Plan::default();
    for lease in peers {
        let reach = misfit(facts, lease)
            .map_or_else(|| reach(facts, lease), Err)
            .and_then(|reach| clash(&plan.desired, lease, reach).map_or(Ok(reach), Err));
        if let Ok(reach) = reach {
            demand(&mut plan.desired, facts, lease, reach);
            plan.routes.extend(peer_route(facts, lease, reach));
        }
        plan.peers.push(Peer {
            subnet: lease.subnet,
            node: lease.attributes.public_ip,
            reach,
        });
    }
    plan
}

fn reach(facts: &Facts<'_>, lease: &Lease) -> Result<Reach, String> {
    match &facts.config.backend {
        Backend::Vxlan(options) => vxlan::reach(options, facts, lease),
        Backend::HostGw => host_gw::reach(facts, lease),
    }
}

/// Leases that would turn the node's own traffic, or the tunnel itself, into the tunnel.
fn misfit(facts: &Facts<'_>, lease: &Lease) -> Option<String> {
    let subnet = lease.subnet;
    if subnet.contains(&facts.subnet) || facts.subnet.contains(&subnet) {
        return Some(format!("its subnet overlaps this node's, {}", facts.subnet));
    }
    [lease.attributes.public_ip, facts.uplink.address]
        .iter()
        .find(|node| subnet.contains(*node))
        .map(|node| format!("its subnet contains the node address {node}"))
}

fn clash(desired: &Desired, lease: &Lease, reach: Reach) -> Option<String> {
    if let Reach::Vxlan(mac) = reach
        && let Some(other) = desired.fdb.get(&mac)
        && *other != lease.attributes.public_ip
    {
        return Some(format!("its VtepMAC {mac} is also that of {other}"));
    }
    desired
        .routes
        .contains_key(&lease.subnet)
        .then(|| "another lease has the same subnet".to_owned())
}

fn demand(desired: &mut Desired, facts: &Facts<'_>, lease: &Lease, reach: Reach) {
    let node = lease.attributes.public_ip;
    let route = match (reach, facts.vtep) {
        (Reach::Vxlan(mac), Some(vtep)) => {
            let address = lease.subnet.network();
            desired.neighbours.insert(address, mac);
            desired.fdb.insert(mac, node);
            Route {
                gateway: Some(address),
                device: vtep,
                onlink: true,
                boot: true,
            }
        }
        // Without a device there is nothing to hang the objects on; it is about to be created.
        (Reach::Vxlan(_), None) => return,
        (Reach::Direct, _) => Route {
            gateway: Some(node),
            device: facts.uplink.index,
            onlink: false,
            boot: true,
        },
    };
    desired.routes.insert(lease.subnet, route);
}

fn peer_route(facts: &Facts<'_>, lease: &Lease, reach: Reach) -> Option<PeerRoute> {
    let node = lease.attributes.public_ip;
    let hop = facts.hops.get(&node).copied().flatten()?;
    let usable = hop.device == facts.uplink.index && !hop.local;
    usable.then(|| PeerRoute {
        subnet: lease.subnet,
        node_ip: node,
        next_hop: hop.gateway.unwrap_or(node),
        vtep_mac: match reach {
            Reach::Vxlan(mac) => Some(mac),
            Reach::Direct => None,
        },
    })
}

#[cfg(test)]
mod tests;

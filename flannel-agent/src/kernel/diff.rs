//! Desired against observed: the list of operations that makes one the other. Pure.
//!
//! What is not recognisably flannel's is never in the list: entries of other devices, entries that are not permanent,
//! routes of another form. The order keeps traffic flowing: additions before removals, and a route only after the
//! neighbour and the FDB entry that it needs, so that the kernel never resolves a VTEP by ARP.

use std::net::Ipv4Addr;

use flannel_common::addr::Mac;
use ipnet::Ipv4Net;

use super::objects::{Desired, Entry, Link, LinkKind, Observed, Route, VxlanDevice};

/// Which routes the agent may remove when no lease wants them.
#[derive(Clone, Copy, Debug)]
pub struct Ownership {
    /// The flannel network.
    pub network: Ipv4Net,
    /// Prefix length of a node's subnet.
    pub subnet_len: u8,
    /// Index of the VXLAN device, if the backend has one.
    pub vtep: Option<u32>,
    /// Index of the interface that carries traffic between nodes.
    pub uplink: u32,
}

impl Ownership {
    /// Whether a route is of the form that flannel writes: `<subnet> via <subnet address> dev flannel.N onlink`, or
    /// `<subnet> via <node> dev <uplink>` inside the network, both of protocol boot.
    pub fn covers(&self, destination: &Ipv4Net, route: &Route) -> bool {
        let Some(gateway) = route.gateway.filter(|_| route.boot) else {
            return false;
        };
        if Some(route.device) == self.vtep {
            return route.onlink && gateway == destination.network();
        }
        route.device == self.uplink
            && !route.onlink
            && destination.prefix_len() == self.subnet_len
            && self.network.contains(destination)
    }
}

/// A change to the VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkOp {
    /// Delete a device of that name with other attributes: index, name, what differs.
    Delete(u32, String, String),
    /// Create it.
    Create(VxlanDevice),
    /// Set whether it learns: index, value.
    SetLearning(u32, bool),
    /// Set its MTU: index, bytes.
    SetMtu(u32, u32),
    /// Remove an address inside the flannel network: index, address.
    RemoveAddress(u32, Ipv4Net),
    /// Add the device's address, prefix length 32: index, address.
    AddAddress(u32, Ipv4Addr),
    /// Set it up.
    SetUp(u32),
}

/// What has to be done to the VXLAN device. A creation is followed by another look and another diff.
pub fn link(desired: &VxlanDevice, network: Ipv4Net, observed: &Observed) -> Vec<LinkOp> {
    let Some(link) = observed.link(&desired.name) else {
        return vec![LinkOp::Create(desired.clone())];
    };
    if let Some(difference) = incompatibility(desired, link) {
        return vec![
            LinkOp::Delete(link.index, link.name.clone(), difference),
            LinkOp::Create(desired.clone()),
        ];
    }
    let index = link.index;
    let mut ops = Vec::new();
    if matches!(&link.kind, LinkKind::Vxlan(vxlan) if vxlan.learning != desired.learning) {
        ops.push(LinkOp::SetLearning(index, desired.learning));
    }
    if link.mtu != desired.mtu {
        ops.push(LinkOp::SetMtu(index, desired.mtu));
    }
    if let Some(address) = desired.address {
        let own = Ipv4Net::from(address);
        let present = observed
            .addresses
            .get(&index)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let foreign = present
            .iter()
            .filter(|net| **net != own && network.contains(&net.addr()));
        ops.extend(foreign.map(|net| LinkOp::RemoveAddress(index, *net)));
        if !present.contains(&own) {
            ops.push(LinkOp::AddAddress(index, address));
        }
    }
    if !link.up {
        ops.push(LinkOp::SetUp(index));
    }
    ops
}

/// What makes an existing device unusable, as upstream's `vxlanLinksIncompat` judges.
fn incompatibility(desired: &VxlanDevice, link: &Link) -> Option<String> {
    let LinkKind::Vxlan(actual) = &link.kind else {
        return Some("it is no VXLAN device".into());
    };
    if actual.vni != desired.vni {
        return Some(format!("vni {} instead of {}", actual.vni, desired.vni));
    }
    if actual.parent != Some(desired.parent) {
        return Some(format!(
            "parent {:?} instead of {}",
            actual.parent, desired.parent
        ));
    }
    if actual.local != Some(desired.local) {
        return Some(format!(
            "local address {:?} instead of {}",
            actual.local, desired.local
        ));
    }
    if actual.has_group {
        return Some("it has a group or remote address".into());
    }
    if actual.l2miss {
        return Some("l2miss is on".into());
    }
    if desired.port > 0 && actual.port != desired.port {
        return Some(format!("port {} instead of {}", actual.port, desired.port));
    }
    if actual.gbp != desired.gbp {
        return Some(format!("gbp {} instead of {}", actual.gbp, desired.gbp));
    }
    None
}

/// A change to a neighbour, an FDB entry or a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Set a permanent neighbour on the VXLAN device.
    SetNeighbour(Ipv4Addr, Mac),
    /// Set a permanent FDB entry on the VXLAN device.
    SetFdb(Mac, Ipv4Addr),
    /// Set a route, whatever was there for the destination.
    SetRoute(Ipv4Net, Route),
    /// Remove a route.
    RemoveRoute(Ipv4Net, Route),
    /// Remove an FDB entry.
    RemoveFdb(Mac, Ipv4Addr),
    /// Remove a neighbour.
    RemoveNeighbour(Ipv4Addr),
}

/// What has to be done to neighbours, FDB entries and routes.
pub fn peers(desired: &Desired, observed: &Observed, ownership: &Ownership) -> Vec<Op> {
    let mut ops = Vec::new();
    for (address, mac) in &desired.neighbours {
        if observed.neighbours.get(address)
            != Some(&Entry {
                value: *mac,
                permanent: true,
            })
        {
            ops.push(Op::SetNeighbour(*address, *mac));
        }
    }
    for (mac, node) in &desired.fdb {
        if observed.fdb.get(mac)
            != Some(&Entry {
                value: *node,
                permanent: true,
            })
        {
            ops.push(Op::SetFdb(*mac, *node));
        }
    }
    for (destination, route) in &desired.routes {
        if observed.routes.get(destination) != Some(route) {
            ops.push(Op::SetRoute(*destination, *route));
        }
    }
    for (destination, route) in &observed.routes {
        if !desired.routes.contains_key(destination) && ownership.covers(destination, route) {
            ops.push(Op::RemoveRoute(*destination, *route));
        }
    }
    for (mac, entry) in &observed.fdb {
        if entry.permanent && !desired.fdb.contains_key(mac) {
            ops.push(Op::RemoveFdb(*mac, entry.value));
        }
    }
    for (address, entry) in &observed.neighbours {
        if entry.permanent && !desired.neighbours.contains_key(address) {
            ops.push(Op::RemoveNeighbour(*address));
        }
    }
    ops
}

impl Observed {
    /// The state after `op` has succeeded.
    pub fn record(&mut self, op: &Op) {
        match *op {
            Op::SetNeighbour(address, value) => {
                self.neighbours.insert(
                    address,
                    Entry {
                        value,
                        permanent: true,
                    },
                );
            }
            Op::SetFdb(mac, value) => {
                self.fdb.insert(
                    mac,
                    Entry {
                        value,
                        permanent: true,
                    },
                );
            }
            Op::SetRoute(destination, route) => {
                self.routes.insert(destination, route);
            }
            Op::RemoveRoute(destination, _) => {
                self.routes.remove(&destination);
            }
            Op::RemoveFdb(mac, _) => {
                self.fdb.remove(&mac);
            }
            Op::RemoveNeighbour(address) => {
                self.neighbours.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests;

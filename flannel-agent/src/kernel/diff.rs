//! Desired against observed: the list of operations that makes one the other. Pure.
//!
//! What is not recognisably flannel's is never in the list: entries of other devices, entries that are not permanent,
//! routes of another form. The order keeps traffic flowing: additions before removals, and a route only after the
//! neighbour and the FDB entry that it needs, so that the kernel never resolves a VTEP by ARP.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use flannel_common::addr::Mac;
use ipnet::IpNet;

use super::objects::{
    Desired, Entry, IpipAttributes, Link, LinkKind, Observed, Route, TunnelDevice, TunnelKind,
    VxlanAttributes, VxlanOptions,
};
use crate::family::{Family, PerFamily, host};

/// Which routes the agent may remove when no lease wants them.
#[derive(Clone, Debug, Default)]
pub struct Ownership {
    /// The flannel networks, and the prefix length of a node's subnet in each.
    pub networks: PerFamily<(IpNet, u8)>,
    /// Indices of the VXLAN devices.
    pub vteps: PerFamily<u32>,
    /// Index of the IPIP device.
    pub ipip: Option<u32>,
    /// Indices of VXLAN devices of flannel's that this backend does not use: left by another one, or another daemon's.
    pub former: BTreeSet<u32>,
    /// Index of the interface that carries traffic between nodes.
    pub uplink: u32,
    /// Routes that this process has made and whose form does not show it: to subnets of another length than the config's.
    pub made: BTreeMap<IpNet, Route>,
}

impl Ownership {
    /// Whether a route is of the form that flannel writes: `<subnet> via <subnet address> dev flannel.N onlink`,
    /// `<subnet> via <node> dev flannel.ipip onlink`, or `<subnet> via <node> dev <uplink>` inside the network, all of
    /// protocol boot; or made by this process. flanneld's `DirectRouting` with IPIP writes the last one with `onlink` too.
    pub fn covers(&self, destination: &IpNet, route: &Route) -> bool {
        self.made.get(destination) == Some(route) || self.is_flannels(destination, route)
    }

    /// Whether its form alone shows that a route is flannel's.
    pub fn is_flannels(&self, destination: &IpNet, route: &Route) -> bool {
        let Some(gateway) = route.gateway.filter(|_| route.boot) else {
            return false;
        };
        let family = Family::of_net(destination);
        let to_vtep = route.onlink && gateway == destination.network();
        if self.vteps.get(family) == Some(&route.device) {
            return to_vtep;
        }
        let is_subnet = self.networks.get(family).is_some_and(|(network, len)| {
            destination.prefix_len() == *len && network.contains(destination)
        });
        if self.former.contains(&route.device) {
            return is_subnet && to_vtep;
        }
        is_subnet
            && if route.onlink {
                self.ipip
                    .is_some_and(|ipip| ipip == route.device || self.uplink == route.device)
            } else {
                self.uplink == route.device
            }
    }
}

/// A change to a tunnel device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkOp {
    /// Delete a device of that name with other attributes: index, name, what differs.
    Delete(u32, String, String),
    /// Create it.
    Create(TunnelDevice),
    /// Set whether it learns: index, value.
    SetLearning(u32, bool),
    /// Set its MTU: index, bytes.
    SetMtu(u32, u32),
    /// Remove an address inside the flannel network: index, address.
    RemoveAddress(u32, IpNet),
    /// Add the device's address, with the prefix length of a host: index, address.
    AddAddress(u32, IpAddr),
    /// Set it up.
    SetUp(u32),
}

/// What has to be done to a tunnel device. A creation is followed by another look and another diff.
pub fn link(desired: &TunnelDevice, observed: &Observed) -> Vec<LinkOp> {
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
    if let (LinkKind::Vxlan(actual), TunnelKind::Vxlan(options)) = (&link.kind, &desired.kind)
        && actual.learning != options.learning
    {
        ops.push(LinkOp::SetLearning(index, options.learning));
    }
    if link.mtu != desired.mtu {
        ops.push(LinkOp::SetMtu(index, desired.mtu));
    }
    if let Some(address) = desired.address {
        let own = host(address);
        let present = observed
            .addresses
            .get(&index)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let foreign = present
            .iter()
            .filter(|net| **net != own && desired.network.contains(&net.addr()));
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

/// What upstream makes an IPIP device anew for.
fn ipip(desired: &TunnelDevice, actual: &IpipAttributes) -> Option<String> {
    if actual.local != Some(desired.local) {
        let local = actual
            .local
            .map_or_else(|| "none".to_owned(), |address| address.to_string());
        return Some(format!(
            "local address {local} instead of {}",
            desired.local
        ));
    }
    actual
        .remote
        .map(|remote| format!("remote address {remote} instead of none"))
}

/// What makes an existing device unusable.
fn incompatibility(desired: &TunnelDevice, link: &Link) -> Option<String> {
    match (&desired.kind, &link.kind) {
        (TunnelKind::Vxlan(options), LinkKind::Vxlan(actual)) => vxlan(desired, options, actual),
        (TunnelKind::Vxlan(_), _) => Some("it is no VXLAN device".into()),
        (TunnelKind::Ipip, LinkKind::Ipip(actual)) => ipip(desired, actual),
        (TunnelKind::Ipip, _) => Some("it is no IPIP device".into()),
        // Its name comes from the proxy that has just made it.
        (TunnelKind::Tun, _) => None,
    }
}

/// As upstream's `vxlanLinksIncompat` judges.
fn vxlan(
    desired: &TunnelDevice,
    options: &VxlanOptions,
    actual: &VxlanAttributes,
) -> Option<String> {
    if actual.vni != options.vni {
        return Some(format!("vni {} instead of {}", actual.vni, options.vni));
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
    if options.port > 0 && actual.port != options.port {
        return Some(format!("port {} instead of {}", actual.port, options.port));
    }
    if actual.gbp != options.gbp {
        return Some(format!("gbp {} instead of {}", actual.gbp, options.gbp));
    }
    None
}

/// A change to a neighbour, an FDB entry or a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Set a permanent neighbour on the VXLAN device with this index.
    SetNeighbour(u32, IpAddr, Mac),
    /// Set a permanent FDB entry on the VXLAN device with this index.
    SetFdb(u32, Mac, IpAddr),
    /// Set a route, whatever was there for the destination.
    SetRoute(IpNet, Route),
    /// Remove a route.
    RemoveRoute(IpNet, Route),
    /// Remove an FDB entry.
    RemoveFdb(u32, Mac, IpAddr),
    /// Remove a neighbour.
    RemoveNeighbour(u32, IpAddr),
}

impl Op {
    /// Its place in the order in which traffic keeps flowing.
    const fn rank(&self) -> u8 {
        match self {
            Self::SetNeighbour(..) => 0,
            Self::SetFdb(..) => 1,
            Self::SetRoute(..) => 2,
            Self::RemoveRoute(..) => 3,
            Self::RemoveFdb(..) => 4,
            Self::RemoveNeighbour(..) => 5,
        }
    }
}

/// Some of the peers' objects, by what they are known by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Destinations of routes.
    pub routes: BTreeSet<IpNet>,
    /// Neighbours: device and address.
    pub neighbours: BTreeSet<(u32, IpAddr)>,
    /// FDB entries: device and MAC.
    pub fdb: BTreeSet<(u32, Mac)>,
}

impl Scope {
    /// Adds another's objects.
    pub fn extend(&mut self, other: Self) {
        self.routes.extend(other.routes);
        self.neighbours.extend(other.neighbours);
        self.fdb.extend(other.fdb);
    }
}

/// What has to be done to neighbours, FDB entries and routes.
pub fn peers(desired: &Desired, observed: &Observed, ownership: &Ownership) -> Vec<Op> {
    let compare = Compare {
        desired,
        observed,
        ownership,
    };
    let ops = all(&desired.neighbours, &observed.neighbours)
        .filter_map(|key| compare.neighbour(*key))
        .chain(all(&desired.fdb, &observed.fdb).filter_map(|key| compare.fdb(*key)))
        .chain(all(&desired.routes, &observed.routes).filter_map(|key| compare.route(*key)));
    ordered(ops)
}

/// The same for the objects in `scope` alone.
pub fn scoped(
    desired: &Desired,
    observed: &Observed,
    ownership: &Ownership,
    scope: &Scope,
) -> Vec<Op> {
    let compare = Compare {
        desired,
        observed,
        ownership,
    };
    let neighbours = scope.neighbours.iter();
    let ops = neighbours
        .filter_map(|key| compare.neighbour(*key))
        .chain(scope.fdb.iter().filter_map(|key| compare.fdb(*key)))
        .chain(scope.routes.iter().filter_map(|key| compare.route(*key)));
    ordered(ops)
}

fn ordered(ops: impl Iterator<Item = Op>) -> Vec<Op> {
    let mut ops: Vec<Op> = ops.collect();
    ops.sort_by_key(Op::rank);
    ops
}

/// The keys of both.
fn all<'a, K: Ord, A, B>(
    one: &'a BTreeMap<K, A>,
    other: &'a BTreeMap<K, B>,
) -> impl Iterator<Item = &'a K> {
    let rest = other.keys().filter(|key| !one.contains_key(key));
    one.keys().chain(rest)
}

struct Compare<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    ownership: &'a Ownership,
}

impl Compare<'_> {
    fn neighbour(&self, key: (u32, IpAddr)) -> Option<Op> {
        let (device, address) = key;
        let actual = self.observed.neighbours.get(&key);
        match self.desired.neighbours.get(&key) {
            Some(mac) => (actual != Some(&permanent(*mac)))
                .then_some(Op::SetNeighbour(device, address, *mac)),
            None => actual
                .filter(|entry| entry.permanent)
                .map(|_| Op::RemoveNeighbour(device, address)),
        }
    }

    fn fdb(&self, key: (u32, Mac)) -> Option<Op> {
        let (device, mac) = key;
        let actual = self.observed.fdb.get(&key);
        match self.desired.fdb.get(&key) {
            Some(node) => {
                (actual != Some(&permanent(*node))).then_some(Op::SetFdb(device, mac, *node))
            }
            None => actual
                .filter(|entry| entry.permanent)
                .map(|entry| Op::RemoveFdb(device, mac, entry.value)),
        }
    }

    fn route(&self, destination: IpNet) -> Option<Op> {
        let actual = self.observed.routes.get(&destination);
        match self.desired.routes.get(&destination) {
            Some(route) => (actual != Some(route)).then_some(Op::SetRoute(destination, *route)),
            None => actual
                .filter(|route| self.ownership.covers(&destination, route))
                .map(|route| Op::RemoveRoute(destination, *route)),
        }
    }
}

/// An entry as the agent makes it.
pub const fn permanent<T>(value: T) -> Entry<T> {
    Entry {
        value,
        permanent: true,
    }
}

impl Observed {
    /// The state after `op` has succeeded.
    pub fn record(&mut self, op: &Op) {
        match *op {
            Op::SetNeighbour(device, address, mac) => {
                self.neighbours.insert((device, address), permanent(mac));
            }
            Op::SetFdb(device, mac, node) => {
                self.fdb.insert((device, mac), permanent(node));
            }
            Op::SetRoute(destination, route) => {
                self.routes.insert(destination, route);
            }
            Op::RemoveRoute(destination, _) => {
                self.routes.remove(&destination);
            }
            Op::RemoveFdb(device, mac, _) => {
                self.fdb.remove(&(device, mac));
            }
            Op::RemoveNeighbour(device, address) => {
                self.neighbours.remove(&(device, address));
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! What the leases demand: kernel objects, and what stands in the way of some of them. Pure.
//!
//! Each peer is judged by itself, and each family of it: one that cannot be reached, or whose lease makes no sense here,
//! becomes a problem and never affects another. A lease that changes is planned anew alone; what it leaves is what
//! planning all leases would leave, or it says that all must be planned.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{Facts, Reach, reach};
use crate::{
    family::{Family, overlap},
    fastpath::PeerRoute,
    kernel::{
        diff::Scope,
        objects::{Desired, Route},
    },
    lease::Lease,
    netconf::Backend,
};

/// Why one family of a lease is not reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The subnet.
    pub subnet: IpNet,
    /// Why, for an operator.
    pub reason: String,
    /// Whether another lease is in the way: when that goes, this one may be reached.
    clash: bool,
}

/// What the leases demand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Kernel objects.
    pub desired: Desired,
    /// What is not reached, by key and family of the lease.
    pub problems: BTreeMap<(String, Family), Problem>,
    /// FDB entries that several leases demand, which all have the same node.
    shared: bool,
}

impl Plan {
    /// Plans all leases of other nodes, the first of those that clash having its way.
    pub fn new<'a>(
        facts: &Facts<'_>,
        leases: impl IntoIterator<Item = (&'a str, &'a Lease)>,
    ) -> Self {
        let mut plan = Self::default();
        plan.desired.routes.extend(network_route(facts));
        for (key, lease) in leases {
            plan.add(facts, key, lease, &mut Scope::default());
        }
        plan
    }

    /// Plans one lease anew, `facts` being what the rest was planned with. Returns the objects that it concerns, or
    /// nothing if all leases have to be planned.
    #[must_use]
    pub fn replace(
        &mut self,
        facts: &Facts<'_>,
        key: &str,
        old: Option<&Lease>,
        new: Option<&Lease>,
    ) -> Option<Scope> {
        let contested = |plan: &Self| plan.shared || plan.problems.values().any(|p| p.clash);
        let mut scope = Scope::default();
        if contested(self) {
            return None;
        }
        if let Some(old) = old {
            self.remove(facts, key, old, &mut scope);
        }
        if let Some(new) = new {
            self.add(facts, key, new, &mut scope);
        }
        (!contested(self)).then_some(scope)
    }

    /// Why one family of a lease is not reached.
    pub fn problem(&self, key: &str, family: Family) -> Option<&Problem> {
        if self.problems.is_empty() {
            return None;
        }
        self.problems.get(&(key.to_owned(), family))
    }

    fn add(&mut self, facts: &Facts<'_>, key: &str, lease: &Lease, scope: &mut Scope) {
        for (family, subnet) in lease.subnets.iter() {
            if facts.config.pools.get(family).is_none() {
                continue;
            }
            let planned = node(lease, family)
                .and_then(|node| match misfit(facts, subnet, node) {
                    Some(reason) => Err(reason),
                    None => Ok((node, reach(facts, lease, family, node)?)),
                })
                .map_err(|reason| (reason, false))
                .and_then(|(node, reach)| {
                    self.clash(facts, family, subnet, node, reach)
                        .map_or(Ok((node, reach)), |reason| Err((reason, true)))
                });
            match planned {
                Ok((node, reach)) => self.demand(facts, family, *subnet, node, reach, scope),
                Err((reason, clash)) => {
                    let problem = Problem {
                        subnet: *subnet,
                        reason,
                        clash,
                    };
                    self.problems.insert((key.to_owned(), family), problem);
                }
            }
        }
    }

    fn remove(&mut self, facts: &Facts<'_>, key: &str, lease: &Lease, scope: &mut Scope) {
        for (family, subnet) in lease.subnets.iter() {
            if self.problems.remove(&(key.to_owned(), family)).is_some() {
                continue;
            }
            let route = self.desired.routes.remove(subnet);
            scope.routes.insert(*subnet);
            // A subnet of another length may begin at the same address: the neighbour is this one's if its route says so.
            let device = route.map(|route| route.device);
            let tunnel = facts.tunnels.get(family);
            let Some(device) = tunnel.filter(|tunnel| device == Some(**tunnel)) else {
                continue;
            };
            let neighbour = (*device, subnet.network());
            if let Some(mac) = self.desired.neighbours.remove(&neighbour) {
                scope.neighbours.insert(neighbour);
                self.desired.fdb.remove(&(*device, mac));
                scope.fdb.insert((*device, mac));
            }
        }
    }

    /// What another lease demands already, if that is in the way.
    fn clash(
        &self,
        facts: &Facts<'_>,
        family: Family,
        subnet: &IpNet,
        node: IpAddr,
        reach: Reach,
    ) -> Option<String> {
        if let (Reach::Vxlan(mac), Some(device)) = (reach, facts.tunnels.get(family))
            && let Some(other) = self.desired.fdb.get(&(*device, mac))
            && *other != node
        {
            return Some(format!("its VtepMAC {mac} is also that of {other}"));
        }
        if self.desired.routes.contains_key(subnet) {
            return Some("another lease has the same subnet".to_owned());
        }
        let (Reach::Vxlan(mac), Some(device)) = (reach, facts.tunnels.get(family)) else {
            return None;
        };
        // There is one neighbour for an address, also where subnets of two lengths begin at it.
        let neighbour = self.desired.neighbours.get(&(*device, subnet.network()));
        neighbour
            .is_some_and(|other| *other != mac)
            .then(|| "another lease has a subnet that begins at the same address".to_owned())
    }

    fn demand(
        &mut self,
        facts: &Facts<'_>,
        family: Family,
        subnet: IpNet,
        node: IpAddr,
        reach: Reach,
        scope: &mut Scope,
    ) {
        let route = match (reach, facts.tunnels.get(family)) {
            (Reach::Vxlan(mac), Some(&device)) => {
                let address = subnet.network();
                self.desired.neighbours.insert((device, address), mac);
                scope.neighbours.insert((device, address));
                self.shared |= self.desired.fdb.insert((device, mac), node).is_some();
                scope.fdb.insert((device, mac));
                Route {
                    gateway: Some(address),
                    device,
                    onlink: true,
                    boot: true,
                }
            }
            (Reach::Ipip, Some(&device)) => Route {
                gateway: Some(node),
                device,
                onlink: true,
                boot: true,
            },
            // Without a device there is nothing to hang the objects on; it is about to be created.
            (Reach::Vxlan(_) | Reach::Ipip, None) | (Reach::Elsewhere, _) => return,
            (Reach::Direct, _) => Route {
                gateway: Some(node),
                device: facts.uplink.index,
                onlink: false,
                boot: true,
            },
        };
        self.desired.routes.insert(subnet, route);
        scope.routes.insert(subnet);
    }
}

/// The one route that the udp backend has for all peers: the flannel network, to its device.
fn network_route(facts: &Facts<'_>) -> Option<(IpNet, Route)> {
    let Backend::Udp(_) = facts.config.backend else {
        return None;
    };
    let route = Route {
        gateway: None,
        device: facts.tunnels.v4?,
        onlink: false,
        boot: true,
    };
    Some((facts.config.networks().v4?, route))
}

/// A peer's address.
fn node(lease: &Lease, family: Family) -> Result<IpAddr, String> {
    lease
        .attributes
        .addresses
        .get(family)
        .copied()
        .ok_or_else(|| format!("it has published no {} address", family.name()))
}

/// Leases that would turn the node's own traffic, or the tunnel itself, into the tunnel.
fn misfit(facts: &Facts<'_>, subnet: &IpNet, node: IpAddr) -> Option<String> {
    if let Some(own) = facts.subnets.values().find(|own| overlap(own, subnet)) {
        return Some(format!("its subnet overlaps this node's, {own}"));
    }
    [&node]
        .into_iter()
        .chain(facts.uplink.addresses.values())
        .find(|node| subnet.contains(*node))
        .map(|node| format!("its subnet contains the node address {node}"))
}

/// A peer's subnet as the fast path sees it: one that the kernel reaches through the uplink.
pub fn peer_route(
    facts: &Facts<'_>,
    lease: &Lease,
    family: Family,
    route: &Route,
) -> Option<PeerRoute> {
    let node = *lease.attributes.addresses.get(family)?;
    let hop = facts
        .hop(node)
        .filter(|hop| hop.device == facts.uplink.index && !hop.local)?;
    let vtep_mac = if facts.tunnels.get(family) == Some(&route.device) {
        Some(lease.attributes.backend.vtep(family)?)
    } else {
        None
    };
    Some(PeerRoute {
        subnet: *lease.subnets.get(family)?,
        node_ip: node,
        next_hop: hop.gateway.unwrap_or(node),
        vtep_mac,
    })
}

//! The peers' part of a pass: what the leases demand, and the kernel objects that are missing, wrong or left over.
//!
//! Either of all peers, or of those alone whose leases have changed: the outcome is the same.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::Reconciler;
use crate::{
    backend::{self, Plan},
    kernel::{
        apply,
        diff::{self, Op, Ownership, Scope},
        netlink::Error,
        objects::LinkKind,
        observe,
    },
    metrics::{COUNTERS, Kind},
};

/// What leases that have changed concern.
#[derive(Debug)]
pub(super) struct Concerned {
    /// Their keys.
    pub(super) keys: Vec<String>,
    /// The subnets that they name now or named before.
    pub(super) subnets: Vec<IpNet>,
}

impl Reconciler {
    /// Turns all leases into what is desired. With `anew` the kernel is asked again how it reaches them.
    pub(super) fn plan_all(&mut self, anew: bool) -> Result<(), Error> {
        if anew {
            self.hops.clear();
        }
        self.changed.clear();
        let nodes: BTreeSet<IpAddr> = self
            .peers()
            .flat_map(|(_, lease)| lease.attributes.addresses.values().copied())
            .collect();
        self.look_up_hops(nodes)?;
        self.plan = Plan::new(&self.facts(), self.peers());
        self.report_unreached();
        Ok(())
    }

    /// Asks the kernel how it reaches those of `nodes` that it was not asked about yet.
    fn look_up_hops(&mut self, nodes: impl IntoIterator<Item = IpAddr>) -> Result<(), Error> {
        if !self.settings.fast_path && !backend::needs_hops(&self.settings.config) {
            return Ok(());
        }
        let unknown: Vec<IpAddr> = nodes
            .into_iter()
            .filter(|node| !self.hops.contains_key(node))
            .collect();
        let hops = observe::hops(&mut self.netlink, &unknown)?;
        self.hops.extend(unknown.into_iter().zip(hops));
        Ok(())
    }

    fn report_unreached(&self) {
        let mut unreached = self.plan.problems.iter();
        let problem = unreached.next().map(|((key, family), problem)| {
            let node = self
                .peer(key)
                .and_then(|lease| lease.attributes.addresses.get(*family))
                .map(|node| format!(" at {node}"))
                .unwrap_or_default();
            let (subnet, reason) = (problem.subnet, &problem.reason);
            let more = more(unreached.count());
            format!("peer {subnet}{node} is not reached: {reason}{more}")
        });
        self.board.problem("peers", problem);
    }

    /// Brings all neighbours, FDB entries and routes in line. Whether they are.
    pub(super) fn repair_all(&mut self) -> Result<bool, Error> {
        let ownership = self.ownership();
        let ops = diff::peers(&self.plan.desired, &self.observed, &ownership);
        self.failures.clear();
        self.carry_out(&ops, &ownership)
    }

    /// Brings the objects of leases that have changed in line. Whether all objects are, and what was concerned; nothing
    /// if all were looked at.
    pub(super) fn repair_changed(&mut self) -> Result<(bool, Option<Concerned>), Error> {
        let changed = std::mem::take(&mut self.changed);
        let nodes: BTreeSet<IpAddr> = changed
            .keys()
            .filter_map(|key| self.peer(key))
            .flat_map(|lease| lease.attributes.addresses.values().copied())
            .collect();
        self.look_up_hops(nodes)?;
        let had_problems = !self.plan.problems.is_empty();
        let mut plan = std::mem::take(&mut self.plan);
        let facts = self.facts();
        let mut scope = Scope::default();
        let mut subnets = BTreeSet::new();
        for (key, old) in &changed {
            let new = self.peer(key);
            for lease in old.iter().chain(new) {
                subnets.extend(lease.subnets.values().copied());
            }
            match plan.replace(&facts, key, old.as_ref(), new) {
                Some(of_lease) => scope.extend(of_lease),
                None => {
                    self.plan_all(false)?;
                    return Ok((self.repair_all()?, None));
                }
            }
        }
        self.plan = plan;
        if had_problems || !self.plan.problems.is_empty() {
            self.report_unreached();
        }
        let ownership = self.ownership();
        let ops = diff::scoped(&self.plan.desired, &self.observed, &ownership, &scope);
        let complete = self.carry_out(&ops, &ownership)?;
        let concerned = Concerned {
            keys: changed.into_keys().collect(),
            subnets: subnets.into_iter().collect(),
        };
        Ok((complete, Some(concerned)))
    }

    /// Which routes are the agent's to remove.
    fn ownership(&self) -> Ownership {
        let config = &self.settings.config;
        if !backend::owns_routes(config) {
            return Ownership::default();
        }
        let tunnels = self.tunnel_links();
        let of_kind = |wanted: fn(&LinkKind) -> bool| {
            tunnels.filter_map(|_, link| wanted(&link.kind).then_some(link.index))
        };
        Ownership {
            // Where subnets are assigned by somebody else, the config does not say how long they are: this node's does.
            networks: config.pools.map(|family, pool| {
                let own = self.own.subnets.get(family);
                (pool.network, own.map_or(pool.subnet_len, IpNet::prefix_len))
            }),
            vteps: of_kind(|kind| matches!(kind, LinkKind::Vxlan(_))),
            former: self
                .observed
                .links
                .values()
                .filter(|link| matches!(link.kind, LinkKind::Vxlan(_)) && link.is_flannels())
                .map(|link| link.index)
                .collect(),
            ipip: of_kind(|kind| matches!(kind, LinkKind::Ipip(_))).v4,
            uplink: self.uplink.index,
            made: self.made.clone(),
        }
    }

    /// Carries out `ops` and remembers what has failed. Whether nothing has, now or before.
    fn carry_out(&mut self, ops: &[Op], ownership: &Ownership) -> Result<bool, Error> {
        let results = apply::peers(&mut self.netlink, ops)?;
        let mut changed = 0;
        for (op, result) in ops.iter().zip(results) {
            COUNTERS.changes(kind(op)).count(&result);
            match result {
                Ok(()) => {
                    changed += 1;
                    tracing::debug!("{}", describe(op));
                    self.observed.record(op);
                    self.remember(op, ownership);
                    if !self.failures.is_empty() {
                        self.failures.remove(&describe(op));
                    }
                }
                Err(error) => {
                    self.failures.insert(describe(op), error.to_string());
                }
            }
        }
        // More than a lease changes is worth a line.
        if changed > OF_ONE_LEASE {
            tracing::info!(changed, "kernel objects set or removed");
        }
        let problem = self.failures.iter().next().map(|(what, error)| {
            let more = more(self.failures.len() - 1);
            format!("{what}: {error}{more}")
        });
        self.board.problem("objects", problem);
        Ok(self.failures.is_empty())
    }
}

impl Reconciler {
    /// Remembers a route that is not known for the agent's when its lease is gone.
    fn remember(&mut self, op: &Op, ownership: &Ownership) {
        match op {
            Op::SetRoute(destination, route) => {
                self.made.remove(destination);
                if !ownership.is_flannels(destination, route) {
                    self.made.insert(*destination, *route);
                }
            }
            Op::RemoveRoute(destination, _) => drop(self.made.remove(destination)),
            _ => {}
        }
    }
}

fn kind(op: &Op) -> Kind {
    match op {
        Op::SetNeighbour(..) | Op::RemoveNeighbour(..) => Kind::Neighbour,
        Op::SetFdb(..) | Op::RemoveFdb(..) => Kind::Fdb,
        Op::SetRoute(..) | Op::RemoveRoute(..) => Kind::Route,
    }
}

/// Objects that one lease of both families has, twice: the old ones and the new.
const OF_ONE_LEASE: usize = 12;

fn more(count: usize) -> String {
    match count {
        0 => String::new(),
        count => format!(" (and {count} more)"),
    }
}

/// What is done, as the log and the status name it.
pub(super) fn describe(op: &Op) -> String {
    match op {
        Op::SetNeighbour(_, address, mac) => format!("set neighbour {address} lladdr {mac}"),
        Op::SetFdb(_, mac, node) => format!("set fdb {mac} dst {node}"),
        Op::SetRoute(net, route) => match route.gateway {
            Some(gateway) => format!("set route {net} via {gateway}"),
            None => format!("set route {net}"),
        },
        Op::RemoveRoute(net, _) => format!("remove route {net}"),
        Op::RemoveFdb(_, mac, node) => format!("remove fdb {mac} dst {node}"),
        Op::RemoveNeighbour(_, address) => format!("remove neighbour {address}"),
    }
}

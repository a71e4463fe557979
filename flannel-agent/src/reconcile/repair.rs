//! The peers' part of a pass: what the leases demand, and the kernel objects that are missing, wrong or left over.

use std::{collections::BTreeSet, net::Ipv4Addr};

use super::Reconciler;
use crate::{
    backend::{self, Facts},
    kernel::{
        apply,
        diff::{self, Op, Ownership},
        netlink::Error,
        observe,
    },
};

impl Reconciler {
    /// Asks the kernel how it reaches the peers that it was not asked about yet; with `all`, about each again.
    pub(super) fn look_up_hops(&mut self, all: bool) -> Result<(), Error> {
        if all {
            self.hops.clear();
        }
        if !self.settings.fast_path && !backend::needs_hops(&self.settings.config) {
            return Ok(());
        }
        let peers = self.leases.peers(self.own.subnet, self.uplink.public_ip);
        let unknown: BTreeSet<Ipv4Addr> = peers
            .map(|lease| lease.attributes.public_ip)
            .filter(|node| !self.hops.contains_key(node))
            .collect();
        let unknown: Vec<Ipv4Addr> = unknown.into_iter().collect();
        let hops = observe::hops(&mut self.netlink, &unknown)?;
        self.hops.extend(unknown.into_iter().zip(hops));
        Ok(())
    }

    /// Turns the leases into what is desired.
    pub(super) fn make_plan(&mut self) {
        let facts = Facts {
            config: &self.settings.config,
            subnet: self.own.subnet,
            uplink: &self.uplink,
            vtep: self.vtep_index(),
            hops: &self.hops,
        };
        self.plan = backend::plan(
            &facts,
            self.leases.peers(self.own.subnet, self.uplink.public_ip),
        );
        let mut unreached = self
            .plan
            .peers
            .iter()
            .filter_map(|peer| Some((peer, peer.problem()?)));
        let problem = unreached.next().map(|(peer, reason)| {
            let more = match unreached.count() {
                0 => String::new(),
                count => format!(" (and {count} more)"),
            };
            let (subnet, node) = (peer.subnet, peer.node);
            format!("peer {subnet} at {node} is not reached: {reason}{more}")
        });
        self.board.problem("peers", problem);
    }

    /// Brings neighbours, FDB entries and routes in line. Whether all are.
    pub(super) fn repair(&mut self) -> Result<bool, Error> {
        let config = &self.settings.config;
        let vtep = self.vtep_index();
        let ownership = Ownership {
            network: config.network,
            subnet_len: config.subnet_len,
            vtep,
            uplink: self.uplink.index,
        };
        let ops = diff::peers(&self.plan.desired, &self.observed, &ownership);
        let results = apply::peers(&mut self.netlink, &ops, vtep)?;
        self.failures.clear();
        let mut changed = 0;
        for (op, result) in ops.iter().zip(results) {
            match result {
                Ok(()) => {
                    changed += 1;
                    tracing::debug!("{}", describe(op));
                    self.observed.record(op);
                }
                Err(error) => {
                    self.failures.insert(describe(op), error.to_string());
                }
            }
        }
        if changed > 0 {
            tracing::info!(
                changed,
                peers = self.plan.peers.len(),
                "kernel objects set or removed"
            );
        }
        let problem = self.failures.iter().next().map(|(what, error)| {
            let more = match self.failures.len() - 1 {
                0 => String::new(),
                count => format!(" (and {count} more)"),
            };
            format!("{what}: {error}{more}")
        });
        self.board.problem("objects", problem);
        Ok(self.failures.is_empty())
    }
}

fn describe(op: &Op) -> String {
    match op {
        Op::SetNeighbour(address, mac) => format!("set neighbour {address} lladdr {mac}"),
        Op::SetFdb(mac, node) => format!("set fdb {mac} dst {node}"),
        Op::SetRoute(net, route) => match route.gateway {
            Some(gateway) => format!("set route {net} via {gateway}"),
            None => format!("set route {net}"),
        },
        Op::RemoveRoute(net, _) => format!("remove route {net}"),
        Op::RemoveFdb(mac, node) => format!("remove fdb {mac} dst {node}"),
        Op::RemoveNeighbour(address) => format!("remove neighbour {address}"),
    }
}

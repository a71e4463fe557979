//! The control plane: one agent with a real etcd, in which the other nodes are mere keys; then one with an API server, in
//! which they are Node objects of full size.
//!
//! With so many leases: the time from the start of the agent's process, with nothing of flannel's in the kernel, until
//! routes, FDB entries, neighbours and BPF maps are in place for all of them; the CPU time and the system calls until
//! then, with those of the programs that it runs (the rules'); the most memory that it had. The agent says when it is
//! ready, by its health port, which costs it next to nothing to be asked; that all is in place then is read from the
//! kernel. Then one lease after another changes, as when a node gets another VTEP MAC or address: the time from the
//! store's answer to the writer until the entries and the map have changed. Then the memory that the agent keeps.
//!
//! Beside it, as the kernel's path, what `ip -batch` and `bridge -batch` need for the same entries, without knowing what
//! is there, without etcd and without maps: what it costs to ask the kernel for them one by one.
//!
//! With 5 000 leases, many changes a second follow for three seconds (CPU time of the agent, and how far it is behind at
//! the end), and a restart (netlink changes that it makes). The store's own count says what a start asks of it, and the
//! interface how much that brings. Of Node objects, four of five changes are heartbeats that concern no lease; then their
//! list is read anew, as after `410 Gone`; and the start is measured without fast path too.
//!
//! The API server is the lab's, a thread of this process: what it needs is not counted, but it shares the CPUs with the
//! agent.
//!
//! System calls are counted where the kernel has the tracepoint; else the row is missing.

mod change;
mod entries;
mod etcd;
mod figures;
mod kube;
mod load;
mod peers;
mod spent;
mod start;
mod store;

use lab::LeaseStore;

use super::{Context, Effort, Figure, Measure};
use crate::{
    testbed::Result,
    variants::{Carrier, Setting},
};
use figures::Named;
use start::Node;

/// Numbers of leases in etcd.
const LEASES: [u32; 5] = [10, 100, 1_000, 5_000, 10_000];
/// The same, if there is little time.
const QUICK_LEASES: [u32; 2] = [10, 1_000];
/// Numbers of Node objects.
const NODES: [u32; 2] = [1_000, 5_000];
/// The same, if there is little time.
const QUICK_NODES: [u32; 1] = [1_000];
/// With so many, many changes in a row follow, and a restart.
const UNDER_LOAD: u32 = 5_000;
/// Changes of single leases.
const CHANGES: u32 = 100;
/// The same, if there is little time.
const QUICK_CHANGES: u32 = 30;
/// Rounds of a full run: all starts of one take a minute.
const ROUNDS: usize = 3;

/// See the module.
#[derive(Default)]
pub struct Control {
    etcd: Option<Node>,
    kube: Option<Node>,
}

impl Measure for Control {
    fn name(&self) -> &'static str {
        "control"
    }

    fn title(&self, _: &Effort) -> String {
        "From the start of the agent until all is in place for so many leases in etcd, or Node objects in an API server, and \
         for one changed lease from the store's answer to the writer on; beside it the same entries by `ip -batch` and \
         `bridge -batch`"
            .to_owned()
    }

    fn is_quick(&self) -> bool {
        false
    }

    fn carriers(&self) -> &'static [Carrier] {
        &[Carrier::Batch, Carrier::Flow]
    }

    /// Services do not matter; the bounds are for nodes with rules.
    fn applies(&self, setting: Setting, _: &Effort) -> bool {
        setting.services > 0
    }

    fn rounds(&self, effort: &Effort) -> usize {
        if effort.full {
            effort.rounds.min(ROUNDS)
        } else {
            1
        }
    }

    fn run(&mut self, context: &mut Context<'_, '_>, carrier: Carrier) -> Result<Vec<Figure>> {
        let (leases, nodes, changes): (&[u32], &[u32], _) = if context.effort.quick {
            (&QUICK_LEASES, &QUICK_NODES, QUICK_CHANGES)
        } else {
            (&LEASES, &NODES, CHANGES)
        };
        let (means, backend) = (&context.means, context.setting.backend);
        let mut figures = Vec::new();
        let etcd = existing(&mut self.etcd, || {
            Node::build(means, backend, LeaseStore::Etcd)
        })?;
        for leases in leases {
            let named = Named::leases(*leases);
            if carrier == Carrier::Batch {
                figures.extend(named.spent(&etcd.batch(*leases)?));
                continue;
            }
            let started = etcd.start(*leases, changes, *leases == UNDER_LOAD)?;
            figures.extend(named.started(&started));
        }
        if carrier == Carrier::Batch {
            return Ok(figures);
        }
        let kube = existing(&mut self.kube, || {
            Node::build(means, backend, LeaseStore::ApiServer)
        })?;
        for nodes in nodes {
            let named = Named::nodes(*nodes);
            let started = kube.start(*nodes, changes, *nodes == UNDER_LOAD)?;
            figures.extend(named.started(&started));
            if *nodes == UNDER_LOAD {
                figures.extend(named.without_fast_path(&kube.start_plain(*nodes)?));
            }
        }
        Ok(figures)
    }
}

/// What is there, or what is made then.
fn existing(place: &mut Option<Node>, make: impl FnOnce() -> Result<Node>) -> Result<&mut Node> {
    match place {
        Some(node) => Ok(node),
        none => Ok(none.insert(make()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounds::Bounds;

    #[test]
    fn bounded_figures_are_measured() {
        let bounds = Bounds::built_in();
        let figures: Vec<_> = bounds.of("control").map(|(figure, _)| figure).collect();
        assert_eq!(figures.len(), 8);
        let what = [
            "all in place",
            "CPU",
            "peak memory",
            "change, median",
            "change, p99",
            "re-list, peak memory",
        ];
        let leases = LEASES.map(Named::leases);
        let nodes = NODES.map(Named::nodes);
        for figure in figures {
            let (count, rest) = figure.split_once(": ").expect("a number of leases");
            let mut named = leases.iter().chain(&nodes);
            assert!(named.any(|named| named.prefix() == count), "{figure}");
            assert!(what.contains(&rest), "{figure}");
        }
    }
}

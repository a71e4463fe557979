//! The control plane: one agent with a real etcd, in which the other nodes are mere keys.
//!
//! With so many leases: the time from the start of the agent's process, with nothing of flannel's in the kernel, until
//! routes, FDB entries, neighbours and BPF maps are in place for all of them; the CPU time and the system calls until
//! then, with those of the programs that it runs (the rules'); the most memory that it had. The agent says when it is
//! ready, by its health port, which costs it next to nothing to be asked; that all is in place then is read from the
//! kernel. Then one lease after another changes, as when a node gets another VTEP MAC or address: the time from the
//! answer of etcd to the writer until the entries and the map have changed.
//!
//! Beside it, as the kernel's path, what `ip -batch` and `bridge -batch` need for the same entries, without knowing what
//! is there, without etcd and without maps: what it costs to ask the kernel for them one by one.
//!
//! With 5 000 leases, 2 000 changes a second follow for three seconds (CPU time of the agent, and how far it is behind at
//! the end), and a restart (netlink changes that it makes). etcd's own count says what a start asks of it.
//!
//! System calls are counted where the kernel has the tracepoint; else the row is missing.

mod change;
mod load;
mod peers;
mod start;
mod store;

use lab::traffic::rtt::RoundTrips;

use super::{Context, Effort, Figure, Measure, Unit};
use crate::{
    testbed::Result,
    variants::{Carrier, Setting},
};
use start::{Node, Spent};

/// Numbers of leases.
const LEASES: [u32; 5] = [10, 100, 1_000, 5_000, 10_000];
/// The same, if there is little time.
const QUICK_LEASES: [u32; 2] = [10, 1_000];
/// With so many, many changes in a row follow, and a restart.
const UNDER_LOAD: u32 = 5_000;
/// Changes of single leases.
const CHANGES: u32 = 100;
/// The same, if there is little time.
const QUICK_CHANGES: u32 = 30;
/// Rounds of a full run: all starts of one take half a minute.
const ROUNDS: usize = 3;

/// See the module.
#[derive(Default)]
pub struct Control {
    node: Option<Node>,
}

impl Measure for Control {
    fn name(&self) -> &'static str {
        "control"
    }

    fn title(&self, _: &Effort) -> String {
        "From the start of the agent until all is in place for so many leases, and for one changed lease from etcd's \
         answer to the writer on; beside it the same entries by `ip -batch` and `bridge -batch`"
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
        let quick = context.effort.quick;
        let (leases, changes): (&[u32], _) = if quick {
            (&QUICK_LEASES, QUICK_CHANGES)
        } else {
            (&LEASES, CHANGES)
        };
        let node = match &mut self.node {
            Some(node) => node,
            none => none.insert(Node::build(&context.means, context.setting.backend)?),
        };
        let mut figures = Vec::new();
        for leases in leases {
            let name = |what: &str| format!("{} leases: {what}", grouped(*leases));
            if carrier == Carrier::Batch {
                figures.extend(spent(&name, &node.batch(*leases)?));
                continue;
            }
            let started = node.start(*leases, changes, *leases == UNDER_LOAD)?;
            figures.extend(spent(&name, &started.spent));
            let requests = started.requests as f64;
            figures.push(Figure::new(name("etcd requests"), Unit::Count, requests));
            if let Some(loaded) = started.loaded {
                let rate = grouped(load::RATE);
                let sustained = loaded.sustained;
                figures.extend([
                    Figure::new(
                        name(&format!("{rate} changes/s, CPU")),
                        Unit::Percent,
                        sustained.cpu,
                    ),
                    Figure::new(
                        name(&format!("{rate} changes/s, behind")),
                        Unit::Milliseconds,
                        sustained.behind,
                    ),
                    Figure::new(
                        name("restart, netlink changes"),
                        Unit::Count,
                        loaded.restart_changes as f64,
                    ),
                ]);
            }
            let waits = &started.waits;
            let beyond = RoundTrips(waits.iter().map(|wait| wait.beyond).collect());
            let written = RoundTrips(waits.iter().map(|wait| wait.written).collect());
            let milliseconds = |times: &RoundTrips, percent| {
                const MILLISECOND: f64 = 1e3;
                times.percentile(percent).as_secs_f64() * MILLISECOND
            };
            let unit = Unit::Milliseconds;
            figures.extend([
                Figure::new(name("change, median"), unit, milliseconds(&beyond, 50.0)),
                Figure::new(name("change, p99"), unit, milliseconds(&beyond, 99.0)),
                Figure::detail(name("etcd's answer"), unit, milliseconds(&written, 50.0)),
            ]);
        }
        Ok(figures)
    }
}

fn spent(name: &impl Fn(&str) -> String, spent: &Spent) -> Vec<Figure> {
    let memory = spent
        .memory
        .map(|kibibytes| Figure::new(name("peak memory"), Unit::Kibibytes, kibibytes));
    let calls = spent
        .system_calls
        .map(|calls| Figure::new(name("system calls"), Unit::Count, calls as f64));
    [
        Figure::new(name("all in place"), Unit::Milliseconds, spent.time),
        Figure::new(name("CPU"), Unit::Milliseconds, spent.cpu),
    ]
    .into_iter()
    .chain(memory)
    .chain(calls)
    .collect()
}

/// A number of up to six digits, as the report writes it: `5 000`.
fn grouped(number: u32) -> String {
    match number / 1_000 {
        0 => number.to_string(),
        thousands => format!("{thousands} {:03}", number % 1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounds::Bounds;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([7, 5_000, 10_020].map(grouped), ["7", "5 000", "10 020"]);
    }

    #[test]
    fn bounded_figures_are_measured() {
        let bounds = Bounds::built_in();
        let figures: Vec<_> = bounds.of("control").map(|(figure, _)| figure).collect();
        assert_eq!(figures.len(), 5);
        let what = [
            "all in place",
            "CPU",
            "peak memory",
            "change, median",
            "change, p99",
        ];
        for figure in figures {
            let (leases, rest) = figure.split_once(" leases: ").expect("a number of leases");
            assert!(LEASES.iter().any(|number| grouped(*number) == leases));
            assert!(what.contains(&rest), "{figure}");
        }
    }
}

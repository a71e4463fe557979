//! Proof of the path that packets took: BPF's counters beside the kernel's own.

use anyhow::{Context, ensure};
use lab::{Node, counters::Protocols, status::Counters};

use crate::support::{Outcome, Path};

/// The counters of two nodes, BPF's and the kernel's, to tell which path packets between them take.
pub(crate) struct Meter<'a> {
    ends: [&'a Node; 2],
    before: [Counts; 2],
}

/// What a node has counted.
struct Counts {
    /// By BPF; a stock node has none.
    bpf: Counters,
    /// Packets that the kernel has forwarded (`Ip.ForwDatagrams`).
    forwarded: i64,
}

impl<'a> Meter<'a> {
    /// Begins to count.
    pub(crate) fn start(from: &'a Node, to: &'a Node) -> anyhow::Result<Self> {
        let before = [counts(from)?, counts(to)?];
        let ends = [from, to];
        Ok(Self { ends, before })
    }

    /// Asserts that of `packets` packets from the first node to the second nearly all took the fast path, at both
    /// ends, and hardly any packet the kernel's; or that all took the kernel's.
    pub(crate) fn expect(&self, path: Path, packets: u64) -> Outcome {
        /// One packet in so many may take the other path: while neighbours are probed and events are handled.
        const TOLERANCE: u64 = 50;
        /// Packets that may be of another connection, such as its end.
        const FEW: u64 = 20;
        for (end, (node, before)) in self.ends.iter().zip(&self.before).enumerate() {
            if node.try_agent().is_none() {
                continue;
            }
            let now = counts(node)?;
            let counted = now.bpf.since(&before.bpf);
            let fast = [counted.fast_egress, counted.fast_ingress][end];
            let kernel = u64::try_from(now.forwarded - before.forwarded)?;
            let holds = match path {
                Path::Kernel => fast == 0 && kernel >= packets,
                // Which flows are fast in that mode is the kernel's to say: tests of it count for themselves.
                Path::Flow => fast + kernel >= packets,
                Path::Fast => {
                    fast >= packets - packets / TOLERANCE && kernel <= packets / TOLERANCE + FEW
                }
            };
            ensure!(
                holds,
                "of {packets} packets from {} to {} with fast path {}, BPF of {} carried {fast}, its kernel {kernel}: {counted:?}",
                self.ends[0].name(),
                self.ends[1].name(),
                path.mode(),
                node.name()
            );
        }
        Ok(())
    }
}

fn counts(node: &Node) -> anyhow::Result<Counts> {
    Ok(Counts {
        bpf: counters(node)?,
        forwarded: Protocols::read(node.netns())?.get("Ip.ForwDatagrams"),
    })
}

fn counters(node: &Node) -> anyhow::Result<Counters> {
    let Some(agent) = node.try_agent() else {
        return Ok(Counters::default());
    };
    let status = agent.status().context("counters")?;
    Ok(status.fast_path.counters)
}

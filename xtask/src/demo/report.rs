//! `--once`: one check of everything, as text or JSON, with a verdict.

use std::{collections::BTreeMap, fmt::Write, path::Path, time::Duration};

use anyhow::Result;
use lab::{
    Cluster,
    traffic::tcp::{self, TcpPlan},
};
use serde::Serialize;

use crate::demo::{
    Options, check,
    check::Pair,
    ends::Ends,
    observe::{self, NodeView, Packets},
    packets,
    stream::StreamView,
    style::Line,
    traffic,
    trial::{self, PolicyTrial, ServiceTrial},
    view,
};

/// Bytes of the stream that is timed.
const STREAM_BYTES: u64 = 250_000_000;

/// The result of one check.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    /// Whether every pod reached every pod, service and policy work, and all accounts agree.
    good: bool,
    /// What was run, in words.
    cluster: String,
    /// Seconds from the start to a cluster that is ready.
    ready_after_s: f64,
    nodes: Vec<NodeView>,
    /// Packets by path, the start of the cluster included.
    packets: Packets,
    pairs: Vec<Pair>,
    /// As fast as it goes.
    stream: Option<StreamView>,
    /// Two nodes with pods are needed for these.
    service: Option<ServiceTrial>,
    policy: Option<PolicyTrial>,
    /// Accounts that do not agree about which path carries packets.
    contradictions: Vec<String>,
}

impl Report {
    /// Checks the cluster.
    pub(super) fn make(options: &Options, cluster: &Cluster, ready: Duration) -> Result<Self> {
        let before: Vec<_> = cluster
            .nodes()
            .iter()
            .map(|node| observe::look_at_node(node).1)
            .collect();
        let pairs = check::all_pairs(cluster)?;
        let ends = Ends::of(cluster);
        let stream = ends.as_ref().map(Ends::first).map(|(from, to)| {
            let plan = TcpPlan {
                bytes: STREAM_BYTES,
                rate: None,
            };
            let view = StreamView {
                from: from.name().to_owned(),
                to: to.name().to_owned(),
                ..StreamView::default()
            };
            match tcp::run(&from, &to, plan) {
                Ok(report) => StreamView {
                    gbit_per_second: report.rate() * 1e-9,
                    retransmits: report.retransmits,
                    failure: (!report.is_intact()).then(|| format!("{report:?}")),
                    ..view
                },
                Err(error) => StreamView {
                    failure: Some(error.to_string()),
                    ..view
                },
            }
        });
        let ends = ends.as_ref();
        let service = ends.map(|ends| trial::service(cluster, ends)).transpose()?;
        let policy = ends.map(trial::policy).transpose()?;
        let (nodes, packets) = observe::look_at_nodes(cluster);
        let contradictions = cluster
            .nodes()
            .iter()
            .zip(&before)
            .filter(|(node, _)| reaches_other_nodes(node.name(), &pairs))
            .filter_map(|(node, before)| {
                let (view, packets) = observe::look_at_node(node);
                contradiction(&view, &packets.since(before), &node.agent().log())
            })
            .collect::<Vec<_>>();
        let service_is_good = service.as_ref().is_none_or(|trial| trial.verdict.good);
        let policy_is_good = policy.as_ref().is_none_or(|trial| trial.verdict.good);
        let pairs_are_good = pairs.iter().all(Pair::is_good);
        Ok(Self {
            good: pairs_are_good && service_is_good && policy_is_good && contradictions.is_empty(),
            cluster: format!(
                "{}  fast path {}",
                observe::headline(options, cluster),
                options.fast_path.name()
            ),
            ready_after_s: ready.as_secs_f64(),
            nodes,
            packets,
            pairs,
            stream,
            service,
            policy,
            contradictions,
        })
    }

    /// Whether every pod reached every pod, service and policy work, and all accounts agree.
    pub(super) fn is_good(&self) -> bool {
        self.good
    }

    /// The report for people.
    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "{}, ready after {:.1} s\n\n",
            self.cluster, self.ready_after_s
        );
        let mut add = |lines: Vec<Line>| {
            lines.iter().for_each(|line| {
                writeln!(text, "{}", line.plain()).expect("a string takes all text")
            });
            text.push('\n');
        };
        add(view::nodes(&self.nodes));
        add(packets::table(&self.packets, None, packets::Room::FOR_TEXT));
        add(view::pairs(&self.pairs));
        let mut traffic = vec![traffic::measured_stream(self.stream.as_ref())];
        traffic.extend(self.service.as_ref().map(traffic::service_trial));
        traffic.extend(self.policy.as_ref().map(traffic::policy_trial));
        add(traffic);
        let problems = view::problems(&self.nodes);
        if !problems.is_empty() {
            add(problems);
        }
        text + &self.verdict()
    }

    fn verdict(&self) -> String {
        let mut text = self.failures();
        for contradiction in &self.contradictions {
            writeln!(text, "{contradiction}").expect("a string takes all text");
        }
        let failed = self.pairs.iter().filter(|pair| !pair.is_good()).count();
        let (total, paths) = (self.pairs.len(), self.paths());
        match failed {
            0 => text + &format!("all {total} pairs of pods reach each other; {paths}\n"),
            _ => {
                text + &format!(
                    "{failed} of {total} pairs of pods do not reach each other; {paths}\n"
                )
            }
        }
    }

    /// The pairs that failed, those with the same cause together.
    fn failures(&self) -> String {
        let mut by_cause = BTreeMap::<String, Vec<String>>::new();
        for pair in self.pairs.iter().filter(|pair| !pair.is_good()) {
            let kinds = pair.failures.keys().copied().collect::<Vec<_>>().join(", ");
            let cause = match &pair.explanation {
                Some(explanation) => format!("{kinds} failed; {explanation}"),
                // Nobody knows better than the sockets.
                None => {
                    let details = pair
                        .failures
                        .iter()
                        .map(|(kind, failure)| format!("{kind} failed: {failure}"));
                    details.collect::<Vec<_>>().join("; ")
                }
            };
            by_cause
                .entry(cause)
                .or_default()
                .push(format!("{} to {}", pair.from, pair.to));
        }
        by_cause
            .iter()
            .map(|(cause, pairs)| format!("{}\n  {cause}\n", pairs.join(", ")))
            .collect()
    }

    /// Which path carries packets, by node.
    fn paths(&self) -> String {
        let named = |fast: bool| {
            let names: Vec<_> = self
                .nodes
                .iter()
                .filter(|node| node.path.fast == fast)
                .map(|node| node.name.as_str())
                .collect();
            names.join(", ")
        };
        match (named(true), named(false)) {
            (fast, kernel) if kernel.is_empty() => format!("fast path on {fast}"),
            (fast, kernel) if fast.is_empty() => format!("kernel path on {kernel}"),
            (fast, kernel) => format!("fast path on {fast}, kernel path on {kernel}"),
        }
    }
}

/// Whether a node's pods exchanged packets with those of another node.
fn reaches_other_nodes(node: &str, pairs: &[Pair]) -> bool {
    let prefix = format!("{node}-");
    pairs
        .iter()
        .any(|pair| pair.from.starts_with(&prefix) && !pair.same_node && pair.is_good())
}

/// Compares what a node's agent says of its path, what its counters say, and what it has logged.
fn contradiction(node: &NodeView, counted: &Packets, log: &str) -> Option<String> {
    let NodeView { name, path, .. } = node;
    let fast = (counted.bpf.fast_egress, counted.bpf.fast_ingress);
    match path.fast {
        true if fast.0 == 0 || fast.1 == 0 => Some(format!(
            "{name}: its status says fast path, but of its packets {} went out and {} came in on it",
            fast.0, fast.1
        )),
        false if fast != (0, 0) => Some(format!(
            "{name}: its status says kernel path, but {} packets took the fast path",
            fast.0 + fast.1
        )),
        false if path.mode != "off" && path.reason.is_none() => Some(format!(
            "{name}: its status does not say why the kernel carries all packets"
        )),
        // A log line that is bent into another shape by its format still holds the first words.
        false
            if path
                .reason
                .as_ref()
                .is_some_and(|reason| !log.contains(first_words(reason))) =>
        {
            Some(format!(
                "{name}: its log does not say why the kernel carries all packets: {}",
                path.detail
            ))
        }
        _ => None,
    }
}

/// The text up to the first character that a log format may escape.
fn first_words(text: &str) -> &str {
    text.split(['"', '\\', '\n']).next().unwrap_or(text)
}

/// How to enter the namespaces of a cluster that stays, and how to remove it.
pub(super) fn keeping(cluster: &Cluster, agent: &Path) -> String {
    let mut text = "\nThe cluster stays up. To enter a namespace:\n".to_owned();
    let mut add = |netns: &lab::Netns, what: String| {
        let command = format!("nsenter --net={}", netns.path().display());
        writeln!(text, "  {command:<44} # {what}").expect("a string takes all text");
    };
    add(cluster.switch(), "switch, router and etcd".to_owned());
    for node in cluster.nodes() {
        add(
            node.netns(),
            format!("node {}, {}", node.name(), node.address()),
        );
        for pod in node.pods() {
            add(
                pod.netns(),
                format!("pod {}, {}", pod.name(), pod.address()),
            );
        }
    }
    if let Some(node) = cluster.nodes().first() {
        let (socket, log) = (node.agent().socket(), node.agent().log_path());
        write!(
            text,
            "Status and log of {}'s agent:\n  {} status --status-socket={}\n  {}\n",
            node.name(),
            agent.display(),
            socket.display(),
            log.display()
        )
        .expect("a string takes all text");
    }
    text + "To remove it:\n  cargo xtask run --clean\n"
}

#[cfg(test)]
mod tests {
    use lab::status::Counters;

    use super::*;
    use crate::demo::observe::PathView;

    fn node(mode: &str, fast: bool, reason: Option<&str>) -> NodeView {
        let reason = reason.map(str::to_owned);
        let path = PathView {
            mode: mode.to_owned(),
            fast,
            reason,
            ..PathView::default()
        };
        NodeView {
            name: "n1".to_owned(),
            path,
            ..NodeView::default()
        }
    }

    fn counted(fast_egress: u64, fast_ingress: u64) -> Packets {
        let bpf = Counters {
            fast_egress,
            fast_ingress,
            ..Counters::default()
        };
        Packets {
            bpf,
            ..Packets::default()
        }
    }

    #[test]
    fn status_counters_and_log_must_tell_the_same() {
        let reason = Some("bpf(2) is denied: \"EPERM\"");
        let log = "WARN kernel path only: bpf(2) is denied: \\\"EPERM\\\"";
        let agreeing = [
            (node("subnet", true, None), counted(9, 9), ""),
            (node("subnet", false, reason), counted(0, 0), log),
            (node("off", false, None), counted(0, 0), ""),
        ];
        for (node, packets, log) in agreeing {
            assert_eq!(contradiction(&node, &packets, log), None);
        }
        let disagreeing = [
            (node("subnet", true, None), counted(9, 0), "", "0 came in"),
            (node("subnet", true, None), counted(0, 9), "", "0 went out"),
            (
                node("subnet", false, reason),
                counted(0, 1),
                log,
                "1 packets took the fast path",
            ),
            (
                node("subnet", false, reason),
                counted(0, 0),
                "INFO ready",
                "log does not say why",
            ),
            (
                node("subnet", false, None),
                counted(0, 0),
                "",
                "status does not say why",
            ),
            (
                node("off", false, None),
                counted(1, 0),
                "",
                "1 packets took the fast path",
            ),
        ];
        for (node, packets, log, expected) in disagreeing {
            let found = contradiction(&node, &packets, log).unwrap_or_default();
            assert!(found.contains(expected), "{found:?} for {expected:?}");
        }
    }
}

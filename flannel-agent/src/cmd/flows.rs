//! `flannel-agent flows`: what the fast path remembers of flows, and why one is not fast.
//!
//! Reads the pinned maps, so it works while the agent is away; the running agent is only asked for what it alone knows:
//! why it does not serve a pod or a node.

mod render;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    io::{self, Write as _},
    net::IpAddr,
    process::ExitCode,
};

use flannel_common::{
    flow::{Flow, Leg},
    maps::{FLAG_ACTIVE, FLAG_FLOWS},
    outcome::Outcome,
};
use serde::Serialize;

use self::render::{meaning, table};
use super::{args::FlowsOptions, status};
use crate::{
    fastpath::flows::{Error, Judgement, Key, Remembered},
    status::Status,
};

/// Nanoseconds of a millisecond.
const MILLISECOND: u64 = 1_000_000;

/// What is printed.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Listing {
    /// The mode that the programs are in: `flow`, `subnet` or `off`.
    mode: &'static str,
    /// Age of an attestation from which a flow is probed, in milliseconds.
    revalidate_ms: u64,
    /// Age of an attestation from which a flow is slow, in milliseconds.
    stale_ms: u64,
    /// Flows that are remembered.
    remembered: usize,
    /// Flows that the filters let through.
    matching: usize,
    /// As many of those as were asked for, the latest attested first.
    flows: Vec<Row>,
    /// Why flows are missing or not fast.
    notes: Vec<String>,
}

/// A flow.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    protocol: &'static str,
    pod: IpAddr,
    pod_port: u16,
    remote: IpAddr,
    remote_port: u16,
    state: State,
    out: LegRow,
    #[serde(rename = "in")]
    into: LegRow,
}

/// One direction of a flow.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct LegRow {
    /// `fast`, or the reason by which the status counts its packets.
    outcome: &'static str,
    /// Whether the attestation is older than the pod, the node or the mode.
    outdated: bool,
    /// Milliseconds since it was attested, if it was.
    attested_ms: Option<u64>,
    /// Milliseconds since it was last probed, if it was.
    probed_ms: Option<u64>,
}

/// A flow in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// Both directions are fast.
    Fast,
    /// One direction is.
    OneLeg,
    /// A FIN was seen.
    Closing,
    /// The kernel has not passed it lately.
    Stale,
    /// For another reason.
    Kernel,
}

impl State {
    fn of(legs: [Outcome; 2]) -> Self {
        let fast = legs.iter().filter(|leg| **leg == Outcome::Fast).count();
        match fast {
            2 => Self::Fast,
            _ if legs.contains(&Outcome::Closing) => Self::Closing,
            1 => Self::OneLeg,
            _ if legs.contains(&Outcome::Stale) => Self::Stale,
            _ => Self::Kernel,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::OneLeg => "one leg",
            Self::Closing => "closing",
            Self::Stale => "stale",
            Self::Kernel => "kernel",
        }
    }
}

/// Prints the flows; success if the maps could be read.
pub fn run(options: &FlowsOptions) -> ExitCode {
    // An agent that is away is no error: the maps outlive it.
    let agent = status::fetch(&options.status_socket, "").ok();
    let agent = agent.as_ref().map(|(status, _)| status);
    let remembered = match Remembered::read(&options.pin_dir) {
        Ok(remembered) => remembered,
        Err(error) => {
            eprintln!("error: {}", explain(&error, agent));
            return ExitCode::FAILURE;
        }
    };
    let listing = list(options, &remembered, agent);
    let shown = if options.json {
        match serde_json::to_string(&listing) {
            Ok(text) => text + "\n",
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::FAILURE;
            }
        }
    } else {
        table(&listing)
    };
    match io::stdout().write_all(shown.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("error: standard output: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// The error, with the reason if the agent tells one, and what to do.
fn explain(error: &Error, agent: Option<&Status>) -> String {
    match (error, agent) {
        (Error::NoPins(_), Some(status)) => {
            let fast = &status.fast_path;
            match &fast.reason {
                Some(reason) => format!("no flows are remembered: {reason}"),
                None if fast.mode == "off" => {
                    "no flows are remembered: the fast path is off; `flannel-agent fast-path flow` turns it on".into()
                }
                None => format!("{error}: give the agent's --pin-dir"),
            }
        }
        (Error::NoPins(_), None) => format!(
            "{error}, and no agent answers: start it with `flannel-agent run`, or give its --pin-dir and --status-socket"
        ),
        (Error::Pin { source, .. }, _) if source.kind() == io::ErrorKind::PermissionDenied => {
            format!("{error}: only root may ask")
        }
        _ => error.to_string(),
    }
}

fn list(options: &FlowsOptions, remembered: &Remembered, agent: Option<&Status>) -> Listing {
    let config = &remembered.config;
    let wanted = |key: &Key| {
        let is = |filter: Option<IpAddr>, address: IpAddr| filter.is_none_or(|f| f == address);
        is(options.pod, key.pod) && is(options.remote, key.remote)
    };
    let judge = |key, flow| [Leg::Out, Leg::In].map(|leg: Leg| remembered.judge(key, flow, leg));
    let slow = |key, flow| {
        let legs = judge(key, flow);
        legs.iter().any(|leg| leg.outcome != Outcome::Fast)
    };
    let mut matching: Vec<&(Key, Flow)> = remembered
        .flows
        .iter()
        .filter(|(key, flow)| wanted(key) && (!options.slow || slow(key, flow)))
        .collect();
    let latest = |flow: &Flow| flow.legs[0].attested.max(flow.legs[1].attested);
    matching.sort_unstable_by_key(|(key, flow)| (Reverse(latest(flow)), *key));
    let shown = match options.limit {
        0 => matching.len(),
        limit => limit.min(matching.len()),
    };
    let flows: Vec<Row> = matching[..shown]
        .iter()
        .map(|(key, flow)| row(key, flow, judge(key, flow), remembered.now))
        .collect();
    let mode = match (
        config.flags & FLAG_ACTIVE != 0,
        config.flags & FLAG_FLOWS != 0,
    ) {
        (false, _) => "off",
        (true, false) => "subnet",
        (true, true) => "flow",
    };
    let mut listing = Listing {
        mode,
        revalidate_ms: config.revalidate_after / MILLISECOND,
        stale_ms: config.stale_after / MILLISECOND,
        remembered: remembered.flows.len(),
        matching: matching.len(),
        flows,
        notes: Vec::new(),
    };
    listing.notes = notes(options, &listing, remembered, agent);
    listing
}

fn row(key: &Key, flow: &Flow, legs: [Judgement; 2], now: u64) -> Row {
    let ago = |time: u64| (time != 0).then(|| now.saturating_sub(time) / MILLISECOND);
    let leg = |leg: Leg| {
        let (judgement, times) = (legs[leg as usize], flow.legs[leg as usize]);
        LegRow {
            outcome: judgement.outcome.name(),
            outdated: judgement.outdated,
            attested_ms: ago(times.attested),
            probed_ms: ago(times.probed),
        }
    };
    Row {
        protocol: if key.tcp { "tcp" } else { "udp" },
        pod: key.pod,
        pod_port: key.pod_port,
        remote: key.remote,
        remote_port: key.remote_port,
        state: State::of(legs.map(|leg| leg.outcome)),
        out: leg(Leg::Out),
        into: leg(Leg::In),
    }
}

/// Why flows are missing or not fast.
fn notes(
    options: &FlowsOptions,
    listing: &Listing,
    remembered: &Remembered,
    agent: Option<&Status>,
) -> Vec<String> {
    let mut notes = Vec::new();
    let fast = agent.map(|status| &status.fast_path);
    if listing.mode == "off" {
        let reason = fast.and_then(|fast| fast.reason.as_deref());
        let reason = reason.unwrap_or("see `flannel-agent status`");
        notes.push(format!("the fast path is not active: {reason}"));
    }
    if listing.mode == "subnet" {
        notes.push(
            "mode subnet: all that the topology allows is fast, whatever is remembered".into(),
        );
    }
    let shown = |address: fn(&Row) -> IpAddr, filter: Option<IpAddr>| {
        let rows = listing.flows.iter().map(address);
        rows.chain(filter).collect::<BTreeSet<_>>()
    };
    for pod in shown(|row| row.pod, options.pod) {
        let text = pod.to_string();
        let known = fast.and_then(|fast| fast.pods.iter().find(|known| known.ip == text));
        match (known, remembered.pod(pod)) {
            (Some(status), _) if status.problem.is_some() => {
                let problem = status.problem.as_deref().unwrap_or_default();
                notes.push(format!("pod {pod}: {problem}"));
            }
            (_, None) => notes.push(format!(
                "{pod} is no pod of this node that the fast path serves"
            )),
            _ => {}
        }
    }
    for remote in shown(|row| row.remote, options.remote) {
        if remembered.peer(remote).is_none() {
            notes.push(format!(
                "{remote} is in no other node's subnet that the fast path leads to: {}",
                why_no_peer(remote, agent)
            ));
        }
    }
    let mut reasons = BTreeMap::new();
    for leg in listing.flows.iter().flat_map(|row| [&row.out, &row.into]) {
        if let Some(meaning) = meaning(leg) {
            reasons.insert(leg.label(), meaning);
        }
    }
    notes.extend(
        reasons
            .iter()
            .map(|(label, meaning)| format!("{label}: {meaning}")),
    );
    if listing.matching == 0 && notes.is_empty() && !options.slow {
        notes.push(
            "a flow is remembered once the kernel has passed a packet of it that conntrack calls established, assured and \
             not translated: not so for UDP that nobody answers for 2 s, the client's side of a service, pods of one node, \
             and what a rule drops"
                .into(),
        );
    }
    notes
}

/// What the agent says of the node that should have `remote`.
fn why_no_peer(remote: IpAddr, agent: Option<&Status>) -> String {
    let Some(status) = agent else {
        return "no agent answers that could say why".into();
    };
    let holds = |subnets: &str| {
        let mut subnets = subnets.split(',').map(str::parse::<ipnet::IpNet>);
        subnets.any(|subnet| subnet.is_ok_and(|subnet| subnet.contains(&remote)))
    };
    let peer = status.peers.iter().find(|peer| holds(&peer.subnet));
    match peer {
        None => "no lease holds it".into(),
        Some(peer) => {
            let reason = peer.kernel_path.as_ref().or(peer.problem.as_ref());
            reason.map_or_else(|| "see `flannel-agent status`".into(), Clone::clone)
        }
    }
}

#[cfg(test)]
mod tests;

//! Does every pod reach every pod? By ping, and by TCP and UDP: ICMP never takes the fast path and proves nothing
//! about it.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::Result;
use lab::{
    Cluster, Node, Pod,
    cluster::in_parallel,
    traffic::{
        icmp::Pinger,
        rtt::{self, EchoServer, Transport},
    },
};
use serde::Serialize;

/// How long each exchange of a pair may take.
const LIMIT: Duration = Duration::from_secs(2);
/// Requests per exchange. A connection's handshake goes through the kernel: these are what the fast path can carry.
const REQUESTS: usize = 10;
/// Bytes per request.
const SIZE: usize = 100;

/// What became of one pair of pods, in one direction.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Pair {
    pub(super) from: String,
    pub(super) to: String,
    /// Whether both are on the same node.
    pub(super) same_node: bool,
    /// Round-trip time of the ping in milliseconds; none without answer.
    pub(super) ping_ms: Option<f64>,
    /// Median round-trip time of a TCP request in milliseconds, on one connection.
    pub(super) tcp_ms: Option<f64>,
    /// Median round-trip time of a UDP request in milliseconds.
    pub(super) udp_ms: Option<f64>,
    /// What failed, by kind of traffic.
    pub(super) failures: BTreeMap<&'static str, String>,
    /// Why it must fail, if the sending node's agent knows.
    pub(super) explanation: Option<String>,
}

impl Pair {
    /// Whether all three kinds of traffic arrived.
    pub(super) fn is_good(&self) -> bool {
        self.failures.is_empty()
    }
}

/// Tries all ordered pairs of pods; the pods work at once, each through its list of peers.
pub(super) fn all_pairs(cluster: &Cluster) -> Result<Vec<Pair>> {
    let ends: Vec<(&Node, Pod)> = cluster
        .nodes()
        .iter()
        .flat_map(|node| node.pods().into_iter().map(move |pod| (&**node, pod)))
        .collect();
    let servers: Vec<EchoServer> = ends
        .iter()
        .map(|(_, pod)| EchoServer::start(pod.netns()))
        .collect::<lab::Result<_>>()?;
    let targets: Vec<_> = ends
        .iter()
        .zip(&servers)
        .map(|((node, pod), server)| (*node, pod, server.port()))
        .collect();
    let rows = in_parallel(&ends, |(node, pod)| {
        let others = targets.iter().filter(|(_, to, _)| to.name() != pod.name());
        others
            .map(|(to_node, to, port)| pair(node, pod, to_node, to, *port))
            .collect::<lab::Result<Vec<_>>>()
    })?;
    Ok(rows.into_iter().flatten().collect())
}

fn pair(from_node: &Node, from: &Pod, to_node: &Node, to: &Pod, port: u16) -> lab::Result<Pair> {
    let mut failures = BTreeMap::new();
    let ping = Pinger::new(from.netns())?.round(&[to.address()], LIMIT);
    let ping_ms = match ping.map(|times| times[0]) {
        Ok(Some(time)) => Some(milliseconds(time)),
        Ok(None) => fail(&mut failures, "ping", "no answer in time"),
        Err(error) => fail(&mut failures, "ping", error),
    };
    let target = SocketAddr::from((to.address(), port));
    let mut exchange =
        |name, transport| match rtt::round_trips(from, target, transport, REQUESTS, SIZE, LIMIT) {
            Ok(times) => Some(milliseconds(times.percentile(50.0))),
            Err(error) => fail(&mut failures, name, error),
        };
    let (tcp_ms, udp_ms) = (
        exchange("TCP", Transport::Tcp),
        exchange("UDP", Transport::Udp),
    );
    let explanation = if failures.is_empty() {
        None
    } else {
        explain(from_node, to_node)
    };
    Ok(Pair {
        from: from.name().to_owned(),
        to: to.name().to_owned(),
        same_node: from_node.number() == to_node.number(),
        ping_ms,
        tcp_ms,
        udp_ms,
        failures,
        explanation,
    })
}

fn fail(
    failures: &mut BTreeMap<&'static str, String>,
    kind: &'static str,
    failure: impl ToString,
) -> Option<f64> {
    failures.insert(kind, failure.to_string());
    None
}

/// What the agents of the two nodes say about each other: traffic needs both ways.
fn explain(from: &Node, to: &Node) -> Option<String> {
    let said = |node: &Node, other: &Node| {
        let status = node.agent().status().ok()?;
        let peer = status
            .peers
            .into_iter()
            .find(|peer| peer.public_ip == other.address().to_string())?;
        Some(format!(
            "{} says of {}: {}",
            node.name(),
            other.name(),
            peer.problem?
        ))
    };
    said(from, to).or_else(|| said(to, from))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

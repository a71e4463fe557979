//! What the demo sees of its cluster: the agents' own status, the kernel's counters, pings, a stream, a service, a
//! policy, flows.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use lab::{
    Cluster, Node, Pod, counters,
    status::{Counters, FastPath, Status},
    traffic::icmp::Pinger,
};
use serde::Serialize;

use crate::demo::{
    Options,
    ends::Ends,
    flows::{self, FlowView},
    policy::{Policy, PolicyView},
    service::{Asking, ServiceView},
    stream::{Stream, StreamView},
};

/// How long a ping may take before it counts as failed.
const PING_LIMIT: Duration = Duration::from_millis(500);

/// Rates are taken over so long at least: a key is followed by a look that may come right after another.
pub(super) const LEAST_INTERVAL: Duration = Duration::from_millis(400);

/// Everything that is shown, at one moment.
#[derive(Clone, Debug)]
pub(super) struct Observation {
    pub(super) headline: String,
    pub(super) up: Duration,
    pub(super) nodes: Vec<NodeView>,
    pub(super) packets: Packets,
    /// Packets since the last observation, and the time since.
    pub(super) recent: (Packets, Duration),
    /// Names of the pods, by which the rows and columns of `pings` go.
    pub(super) pods: Vec<String>,
    /// Round-trip times from pod to pod; none for no answer.
    pub(super) pings: Vec<Vec<Option<Duration>>>,
    pub(super) stream: Option<StreamView>,
    pub(super) service: Option<ServiceView>,
    pub(super) policy: Option<PolicyView>,
    /// Flows that the nodes of that traffic remember, each with its node's name.
    pub(super) flows: Vec<(String, FlowView)>,
    /// What the last key has done.
    pub(super) message: String,
}

/// A node, as its agent describes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct NodeView {
    pub(super) name: String,
    pub(super) subnet: String,
    pub(super) public_ip: String,
    pub(super) backend: String,
    /// Leases of other nodes that it knows.
    pub(super) leases: usize,
    /// Flows that it remembers.
    pub(super) flows: Option<u64>,
    /// Who attests them: conntrack or a mark.
    pub(super) attestation: Option<String>,
    /// Which path carries its pods' packets.
    pub(super) path: PathView,
    /// What the agent says is wrong.
    pub(super) problems: Vec<String>,
}

/// Which path carries packets, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct PathView {
    /// The mode that was asked for.
    pub(super) mode: String,
    /// Whether BPF programs carry packets.
    pub(super) fast: bool,
    /// How programs are attached, who sends and who receives, or why the kernel carries packets alone.
    pub(super) detail: String,
    /// Why the kernel carries all packets although the fast path was asked for.
    pub(super) reason: Option<String>,
    /// What an operator can do about that.
    pub(super) remedy: Option<String>,
    /// Programs and where they are attached.
    pub(super) hooks: Vec<String>,
}

/// Packets by path, summed over the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Packets {
    /// Carried by BPF, and what BPF left to the kernel, by reason.
    #[serde(flatten)]
    pub(super) bpf: Counters,
    /// From pods through the bridge device into the kernel's forwarding. An aggregate counts once.
    pub(super) kernel_egress: u64,
    /// From the kernel's forwarding through the bridge device to pods. An aggregate counts once.
    pub(super) kernel_ingress: u64,
}

impl Packets {
    /// What was counted after `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        Self {
            bpf: self.bpf.since(&earlier.bpf),
            kernel_egress: self.kernel_egress.saturating_sub(earlier.kernel_egress),
            kernel_ingress: self.kernel_ingress.saturating_sub(earlier.kernel_ingress),
        }
    }

    /// Packets that the kernel has passed, by what was learned from them, in both directions.
    pub(super) fn learned(&self, outcome: &str) -> u64 {
        let of = |name: &str| name.rsplit('/').next() == Some(outcome);
        let counts = self.bpf.attest.iter().filter(|(name, _)| of(name));
        counts.map(|(_, count)| count).sum()
    }

    fn add(&mut self, other: &Self) {
        self.bpf.fast_egress += other.bpf.fast_egress;
        self.bpf.fast_ingress += other.bpf.fast_ingress;
        let add = |sums: &mut BTreeMap<String, u64>, counts: &BTreeMap<String, u64>| {
            for (name, count) in counts {
                *sums.entry(name.clone()).or_default() += count;
            }
        };
        add(&mut self.bpf.declined, &other.bpf.declined);
        add(&mut self.bpf.attest, &other.bpf.attest);
        self.kernel_egress += other.kernel_egress;
        self.kernel_ingress += other.kernel_ingress;
    }
}

/// Observes a cluster again and again.
pub(super) struct Observer<'a> {
    cluster: &'a Cluster,
    headline: String,
    begin: Instant,
    pods: Vec<Pod>,
    pingers: Vec<Pinger>,
    stream: Option<Stream>,
    ends: Option<&'a Ends>,
    service: Option<Asking>,
    policy: Option<&'a Policy>,
    last: (Packets, Instant),
    recent: (Packets, Duration),
}

impl<'a> Observer<'a> {
    /// Begins all traffic but the policy's.
    pub(super) fn new(
        options: &Options,
        cluster: &'a Cluster,
        ends: Option<&'a Ends>,
        policy: Option<&'a Policy>,
    ) -> Result<Self> {
        let pods = all_pods(cluster);
        let pingers = pods
            .iter()
            .map(|pod| Pinger::new(pod.netns()))
            .collect::<lab::Result<_>>()?;
        let (_, packets) = look_at_nodes(cluster);
        Ok(Self {
            cluster,
            headline: headline(options, cluster),
            begin: Instant::now(),
            stream: ends
                .map(Ends::first)
                .map(|(from, to)| Stream::start(from, to)),
            ends,
            service: ends.map(|ends| Asking::start(cluster, ends)).transpose()?,
            policy,
            pods,
            pingers,
            last: (packets, Instant::now()),
            recent: (Packets::default(), Duration::from_secs(1)),
        })
    }

    /// Looks at everything now. Takes as long as the slowest ping.
    pub(super) fn observe(&mut self, message: String) -> Observation {
        let targets: Vec<_> = self.pods.iter().map(Pod::address).collect();
        let pings = thread::scope(|scope| {
            let ping = |pinger: &'_ mut Pinger| {
                pinger
                    .round(&targets, PING_LIMIT)
                    .unwrap_or(vec![None; targets.len()])
            };
            let threads: Vec<_> = self
                .pingers
                .iter_mut()
                .map(|pinger| scope.spawn(move || ping(pinger)))
                .collect();
            threads
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        });
        let (nodes, packets) = look_at_nodes(self.cluster);
        let remembered = self.ends.map(|ends| {
            // None where the fast path is off.
            [&ends.client_node, &ends.server_node]
                .map(|node| flows::of(node).unwrap_or_default().flows)
        });
        let [at_client, at_server] = remembered.unwrap_or_default();
        let service = self.service.as_ref();
        let service = service.map(|service| service.view([&at_client, &at_server]));
        let policy = self.policy.map(|policy| policy.view(&at_server));
        let name = |node: &Node, flows: Vec<FlowView>| {
            let name = node.name().to_owned();
            flows.into_iter().map(move |flow| (name.clone(), flow))
        };
        let flows = self.ends.map_or_else(Vec::new, |ends| {
            name(&ends.client_node, at_client)
                .chain(name(&ends.server_node, at_server))
                .collect()
        });
        let now = Instant::now();
        if now - self.last.1 >= LEAST_INTERVAL {
            self.recent = (packets.since(&self.last.0), now - self.last.1);
            self.last = (packets.clone(), now);
        }
        Observation {
            headline: self.headline.clone(),
            up: self.begin.elapsed(),
            nodes,
            packets,
            recent: self.recent.clone(),
            pods: self.pods.iter().map(|pod| pod.name().to_owned()).collect(),
            pings,
            stream: self.stream.as_mut().map(Stream::view),
            service,
            policy,
            flows,
            message,
        }
    }
}

/// What the cluster is, in a few words.
pub(super) fn headline(options: &Options, cluster: &Cluster) -> String {
    let count = |number: usize, what: &str| {
        format!("{number} {what}{}", if number == 1 { "" } else { "s" })
    };
    let nodes = cluster.nodes();
    let pods = nodes.iter().map(|node| node.pods().len()).sum();
    let routed = if options.routed > 0 {
        format!(" ({} routed)", options.routed)
    } else {
        String::new()
    };
    let backend = options.backend.name();
    let (nodes, pods) = (count(nodes.len(), "node"), count(pods, "pod"));
    format!("lab {}  {backend}  {nodes}{routed}, {pods}", cluster.id())
}

/// All pods, by node.
pub(super) fn all_pods(cluster: &Cluster) -> Vec<Pod> {
    cluster
        .nodes()
        .iter()
        .flat_map(|node| node.pods())
        .collect()
}

/// Each node's view, and the packets of all.
pub(super) fn look_at_nodes(cluster: &Cluster) -> (Vec<NodeView>, Packets) {
    let mut sum = Packets::default();
    let views = cluster.nodes().iter().map(|node| {
        let (view, packets) = look_at_node(node);
        sum.add(&packets);
        view
    });
    (views.collect(), sum)
}

/// One node's view and packets.
pub(super) fn look_at_node(node: &Node) -> (NodeView, Packets) {
    let status = node
        .agent()
        .check_running()
        .and_then(|()| node.agent().status());
    let bridge = counters::links(node.netns())
        .ok()
        .and_then(|links| links.get("cni0").copied())
        .unwrap_or_default();
    let mut packets = Packets {
        kernel_egress: bridge.rx_packets,
        kernel_ingress: bridge.tx_packets,
        ..Packets::default()
    };
    let view = match status {
        Ok(status) => {
            packets.bpf = status.fast_path.counters.clone();
            node_view(node.name(), &status)
        }
        Err(error) => NodeView {
            name: node.name().to_owned(),
            path: PathView {
                detail: "the agent does not answer".to_owned(),
                ..PathView::default()
            },
            problems: vec![error.to_string()],
            ..NodeView::default()
        },
    };
    (view, packets)
}

fn node_view(name: &str, status: &Status) -> NodeView {
    let config = status.config.as_ref();
    let backend = config
        .and_then(|config| config["Backend"]["Type"].as_str())
        .unwrap_or("?");
    NodeView {
        name: name.to_owned(),
        subnet: status
            .lease
            .as_ref()
            .map_or_else(|| "none".to_owned(), |lease| lease.subnet.clone()),
        public_ip: status
            .public_ip
            .clone()
            .unwrap_or_else(|| "none".to_owned()),
        backend: backend.to_owned(),
        leases: status.peers.len(),
        flows: status.fast_path.flows,
        attestation: status.fast_path.attestation.clone(),
        path: path_view(&status.fast_path),
        problems: status.problems.clone(),
    }
}

/// The path in words.
pub(super) fn path_view(fast_path: &FastPath) -> PathView {
    let hooks = fast_path
        .hooks
        .iter()
        .map(|hook| format!("{}@{}", hook.program, hook.device))
        .collect();
    let detail = if fast_path.active {
        let tiers = [&fast_path.attach, &fast_path.egress, &fast_path.ingress];
        let tiers: Vec<_> = tiers.into_iter().flatten().cloned().collect();
        format!("{}: {}", tiers.join(" "), count_programs(fast_path))
    } else {
        match &fast_path.reason {
            Some(reason) => reason.clone(),
            None => format!("mode {}", fast_path.mode),
        }
    };
    PathView {
        mode: fast_path.mode.clone(),
        fast: fast_path.active,
        detail,
        reason: fast_path.reason.clone(),
        remedy: fast_path.remedy.clone(),
        hooks,
    }
}

/// `2 pod_egress, 1 nic_ingress`
fn count_programs(fast_path: &FastPath) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    for hook in &fast_path.hooks {
        *counts.entry(&hook.program).or_default() += 1;
    }
    counts
        .iter()
        .map(|(program, count)| format!("{count} {program}"))
        .collect::<Vec<_>>()
        .join(", ")
}

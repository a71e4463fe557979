//! What the tests share: settings, clusters with a diagnosis when a test fails, traffic with a verdict.

use std::{
    env, fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, anyhow, ensure};
use lab::{
    AgentConfig, Cluster, ClusterConfig, Node, NodeConfig, Pod, process,
    status::Status,
    traffic::udp::{self, UdpPlan, UdpReport},
    wait,
};

/// What a test returns.
pub(crate) type Outcome = anyhow::Result<()>;

/// The error of a test that cannot run here, with the reason: it is counted as skipped.
#[derive(Debug)]
pub(crate) struct Skipped(pub(crate) String);

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

/// The agent under test.
pub(crate) const AGENT: &str = env!("CARGO_BIN_EXE_flannel-agent");

/// How long something may take that the agent does on an event.
pub(crate) const PROMPT: Duration = Duration::from_secs(5);

/// How nodes are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Encapsulation.
    Vxlan,
    /// Routes by the nodes' addresses.
    HostGw,
}

/// Which path packets between nodes are to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// `--fast-path=off`.
    Kernel,
    /// `--fast-path=subnet`.
    Fast,
    /// `--fast-path=flow`.
    Flow,
}

/// What a test is run with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) backend: Backend,
    pub(crate) path: Path,
    /// Whether netfilter attests flows by a mark, with nftables' rules for VXLAN and iptables' for host-gw.
    pub(crate) mark: bool,
    /// A deliberately wrong BPF object to run, by the feature of `flannel-ebpf` that it is built with.
    pub(crate) broken: Option<&'static str>,
}

/// Names the folder of the wrong objects.
pub(crate) const BROKEN_OBJECTS: &str = "FLANNEL_BROKEN_OBJECTS";

impl Path {
    /// `--fast-path`.
    pub(crate) fn mode(self) -> &'static str {
        match self {
            Self::Kernel => "off",
            Self::Fast => "subnet",
            Self::Flow => "flow",
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backend = match self.backend {
            Backend::Vxlan => "vxlan",
            Backend::HostGw => "host_gw",
        };
        let mark = if self.mark { "_by_mark" } else { "" };
        write!(f, "{backend}::{}{mark}", self.path.mode())
    }
}

impl Setting {
    /// The network config.
    pub(crate) fn network(self) -> String {
        let backend = match self.backend {
            Backend::Vxlan => "vxlan",
            Backend::HostGw => "host-gw",
        };
        let nftables = self.mark && self.backend == Backend::Vxlan;
        format!(
            r#"{{"Network":"10.5.0.0/16","EnableNFTables":{nftables},"Backend":{{"Type":"{backend}"}}}}"#
        )
    }

    /// How agents are started.
    pub(crate) fn agent(self) -> AgentConfig {
        let mut agent = AgentConfig::new(AGENT).with_fast_path(self.path.mode());
        if self.mark {
            agent.arguments.push("--fast-path-attest=mark".into());
        }
        if let (Some(broken), Some(folder)) = (self.broken, env::var_os(BROKEN_OBJECTS)) {
            let object = PathBuf::from(folder).join(broken);
            agent
                .arguments
                .push(format!("--bpf-object={}", object.display()));
        }
        agent
    }

    /// A node with an agent.
    pub(crate) fn node(self) -> NodeConfig {
        NodeConfig::agent(&self.agent())
    }

    /// Two nodes with agents and one pod each.
    pub(crate) fn pair(self) -> ClusterConfig {
        self.cluster(vec![self.node(), self.node()])
    }

    /// A cluster with one pod on each node.
    pub(crate) fn cluster(self, nodes: Vec<NodeConfig>) -> ClusterConfig {
        ClusterConfig {
            nodes,
            pods: 1,
            network: self.network(),
            ..ClusterConfig::default()
        }
    }

    /// MTU that pods get on the default underlay, in bytes.
    pub(crate) fn pod_mtu(self) -> usize {
        match self.backend {
            Backend::Vxlan => 1450,
            Backend::HostGw => 1500,
        }
    }
}

/// Why tests of this path cannot run here, if so.
pub(crate) fn missing(path: Path) -> Option<&'static str> {
    static EMBEDDED: OnceLock<bool> = OnceLock::new();
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root");
    }
    let embedded = || {
        let output = Command::new(AGENT).arg("--version").output();
        output.is_ok_and(|output| !String::from_utf8_lossy(&output.stdout).contains("not embedded"))
    };
    (path != Path::Kernel && !EMBEDDED.get_or_init(embedded))
        .then_some("the agent carries no BPF object: build it with `cargo xtask build`")
}

/// Starts a cluster, waits until its packets take the path that they are to take, and runs `test`. A failure shows
/// what the agents say.
pub(crate) fn with_cluster(
    config: ClusterConfig,
    test: impl FnOnce(&mut Cluster) -> Outcome,
) -> Outcome {
    with_unready_cluster(config, |cluster| {
        for node in cluster.nodes() {
            wait_pods_served(node)?;
        }
        test(cluster)
    })
}

/// As [`with_cluster`], without waiting for the fast path.
pub(crate) fn with_unready_cluster(
    config: ClusterConfig,
    test: impl FnOnce(&mut Cluster) -> Outcome,
) -> Outcome {
    let mut cluster = Cluster::start(config)?;
    let result = catch_unwind(AssertUnwindSafe(|| test(&mut cluster)));
    let error = match result {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            anyhow!(text.unwrap_or_else(|| "panicked".to_owned()))
        }
    };
    Err(anyhow!("{error:#}\n{}", diagnosis(&cluster)))
}

/// What an engineer wants to see: each agent's status and the end of its log.
fn diagnosis(cluster: &Cluster) -> String {
    const LINES: usize = 25;
    let mut text = String::new();
    for node in cluster.nodes() {
        let Some(agent) = node.try_agent() else {
            continue;
        };
        let status = agent
            .status()
            .map_or_else(|error| error.to_string(), |status| brief(&status));
        let log = agent.log();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LINES)..].join("\n");
        text += &format!("--- {}: {status}\n{tail}\n", node.name());
    }
    text
}

fn brief(status: &Status) -> String {
    let bad: Vec<_> = status
        .objects
        .iter()
        .filter(|object| object.state != "ok")
        .collect();
    format!(
        "ready {}, lease {:?}, peers {:?}, skipped {:?}, objects not ok {bad:?}, problems {:?}, fast path {:?}",
        status.ready,
        status.lease,
        status.peers,
        status.skipped_leases,
        status.problems,
        status.fast_path
    )
}

/// With the fast path on, waits until it serves all pods of the node.
pub(crate) fn wait_pods_served(node: &Node) -> Outcome {
    let Some(agent) = node.try_agent() else {
        return Ok(());
    };
    if agent.status()?.fast_path.mode == Path::Kernel.mode() {
        return Ok(());
    }
    let pods = node.pods();
    agent.wait_status("a fast path for all pods", |status| {
        status.fast_path.active && pods.iter().all(|pod| serves(status, pod))
    })?;
    Ok(())
}

/// Whether the fast path of the pod's node delivers to it.
pub(crate) fn serves(status: &Status, pod: &Pod) -> bool {
    let address = pod.address().to_string();
    let mut pods = status.fast_path.pods.iter();
    pods.any(|known| known.ip == address && known.problem.is_none())
}

/// Sends numbered packets and asserts that each arrives once, in order and unaltered.
pub(crate) fn udp_arrives(
    from: &dyn lab::traffic::Host,
    to: &dyn lab::traffic::Host,
    packets: u64,
    size: usize,
) -> anyhow::Result<UdpReport> {
    let plan = UdpPlan {
        packets,
        rate: 5000,
        size,
    };
    let report = udp::run(from, to, plan)?;
    all_arrived(&report)?;
    ensure!(report.sent == packets, "not all were sent: {report:?}");
    Ok(report)
}

/// Asserts that each packet that was sent arrived once, in order and unaltered.
pub(crate) fn all_arrived(report: &UdpReport) -> Outcome {
    let faults = report.lost + report.refused + report.duplicated + report.reordered;
    ensure!(
        report.sent > 0 && faults + report.corrupted == 0,
        "not all packets arrived once and in order: {report:?}"
    );
    Ok(())
}

/// Datagrams that go on, a thousand a second, until they are stopped.
pub(crate) const ENDLESS: UdpPlan = UdpPlan {
    packets: u64::MAX,
    rate: 1000,
    size: 64,
};

/// Waits for a condition.
pub(crate) fn eventually(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> anyhow::Result<Result<(), String>>,
) -> Outcome {
    let mut failure = None;
    wait::until(what, limit, || match probe() {
        Ok(answer) => Ok(answer),
        Err(error) => {
            failure = Some(error);
            Ok(Ok(()))
        }
    })?;
    failure.map_or(Ok(()), Err)
}

/// Runs a shell command on a node and returns what it prints.
pub(crate) fn shell(node: &Node, command: &str) -> anyhow::Result<String> {
    Ok(process::run(Some(node.netns()), "sh", &["-c", command])?)
}

/// Index and MAC address of a link on a node; none if there is no such link.
pub(crate) fn link(node: &Node, name: &str) -> anyhow::Result<Option<(u64, String)>> {
    let links = process::run(Some(node.netns()), "ip", &["-json", "link", "show"])?;
    let links: serde_json::Value = serde_json::from_str(&links).context("links of ip -json")?;
    let mut links = links.as_array().into_iter().flatten();
    let found = links.find(|link| link["ifname"] == name);
    Ok(found.map(|link| {
        let mac = link["address"].as_str().unwrap_or_default().to_owned();
        (link["ifindex"].as_u64().unwrap_or_default(), mac)
    }))
}

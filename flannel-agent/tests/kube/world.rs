//! What the tests share: a cluster with a server and our manifest in it, agents as the manifest runs them, and what both
//! say when a test fails.

use std::{fs, panic, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow, ensure};
use lab::{
    Agent, AgentConfig, Cluster, ClusterConfig, Node, NodeConfig, Pod,
    etcd::Etcd,
    kube::{
        apiserver::{ApiServer, Programs},
        audit::Request,
    },
    process,
    state::LabId,
    traffic::udp::{self, UdpPlan},
    wait,
};
use serde_json::Value;

/// What a test returns.
pub(crate) type Outcome = anyhow::Result<()>;

/// The agent under test.
const AGENT: &str = env!("CARGO_BIN_EXE_flannel-agent");
/// The CNI plugin that comes with it.
const PLUGIN: &str = env!("CARGO_BIN_EXE_flannel");
/// What users apply.
pub(crate) const MANIFEST: &str = include_str!("../../deploy/kube-flannel.yml");
/// Names in it.
pub(crate) const NAMESPACE: &str = "kube-flannel";
const ACCOUNT: &str = "flannel";
const CONFIG_MAP: &str = "kube-flannel-cfg";
const DAEMON_SET: &str = "kube-flannel-ds";
/// What the annotations' names begin with.
pub(crate) const PREFIX: &str = "flannel.alpha.coreos.com/";
/// How long something may take that an agent does on an event.
pub(crate) const PROMPT: Duration = Duration::from_secs(10);

/// A cluster whose leases are Node objects. The nodes are there; their objects and agents the test makes.
pub(crate) struct World {
    pub(crate) server: ApiServer,
    cluster: Cluster,
    agents: Vec<Agent>,
}

/// What a cluster's pods have addresses of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Families {
    /// IPv4, as our manifest has it.
    One,
    /// IPv6 too.
    Both,
}

/// Starts nodes and the server with our manifest, prepares agents, and runs `test`. A failure shows what they say.
pub(crate) fn with_world(
    programs: &Programs,
    nodes: usize,
    families: Families,
    test: impl FnOnce(&World) -> Outcome,
) -> Outcome {
    let cluster = Cluster::start(ClusterConfig {
        nodes: vec![NodeConfig::default(); nodes],
        ipv6: families == Families::Both,
        ..ClusterConfig::default()
    })?;
    let server = ApiServer::beside(&cluster, programs.clone())?;
    server.start()?;
    server.apply(MANIFEST)?;
    let mut world = World {
        server,
        cluster,
        agents: Vec::new(),
    };
    world.agents = world.prepare_agents(families)?;
    let result = panic::catch_unwind(panic::AssertUnwindSafe(|| test(&world)));
    match result {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(anyhow!("{error:#}\n{}", world.diagnosis())),
        Err(payload) => {
            eprintln!("{}", world.diagnosis());
            panic::resume_unwind(payload)
        }
    }
}

impl World {
    /// Agents as the DaemonSet runs them, but for the paths of files, and for a kubeconfig in place of a pod's volume.
    fn prepare_agents(&self, families: Families) -> anyhow::Result<Vec<Agent>> {
        let get = |kind: &str, name: &str| -> anyhow::Result<Value> {
            let arguments = ["get", kind, name, "-n", NAMESPACE, "-o", "json"];
            Ok(serde_json::from_str(&self.server.kubectl(&arguments)?)?)
        };
        let config = get("configmap", CONFIG_MAP)?;
        let config = config["data"]["net-conf.json"]
            .as_str()
            .context("the ConfigMap has no net-conf.json")?;
        let mut config: Value = serde_json::from_str(config)?;
        if families == Families::Both {
            config["EnableIPv6"] = true.into();
            config["IPv6Network"] = "fd00:10:244::/48".into();
        }
        let set = get("daemonset", DAEMON_SET)?;
        let arguments = set["spec"]["template"]["spec"]["containers"][0]["args"]
            .as_array()
            .context("the DaemonSet's container has no arguments")?;
        let given: Vec<_> = arguments.iter().filter_map(Value::as_str).collect();
        ensure!(given.contains(&"--kube-subnet-mgr"), "{given:?}");
        let token = self.server.token(NAMESPACE, ACCOUNT)?;
        let prepare = |node: &Arc<Node>| -> anyhow::Result<Agent> {
            let network = node.directory().join("net-conf.json");
            fs::write(&network, config.to_string())?;
            let kubeconfig = node.directory().join("kubeconfig");
            self.server.write_kubeconfig(&kubeconfig, &token)?;
            let mut agent = AgentConfig::new(AGENT).with_fast_path("flow");
            agent.arguments = given.iter().map(|&it| it.to_owned()).collect();
            agent
                .arguments
                .push(format!("--kubeconfig-file={}", kubeconfig.display()));
            agent
                .arguments
                .push(format!("--net-config-path={}", network.display()));
            agent.environment = vec![("NODE_NAME".to_owned(), node.name().to_owned())];
            Ok(node.new_agent(agent))
        };
        self.cluster.nodes().iter().map(prepare).collect()
    }

    /// The server's store.
    pub(crate) fn etcd(&self) -> &Etcd {
        self.cluster.etcd()
    }

    /// The cluster's number.
    pub(crate) fn lab(&self) -> LabId {
        self.cluster.id()
    }

    /// Node `n<number>`.
    pub(crate) fn node(&self, number: u8) -> &Node {
        self.cluster.node(number)
    }

    /// Its agent.
    pub(crate) fn agent(&self, number: u8) -> &Agent {
        &self.agents[usize::from(number) - 1]
    }

    pub(crate) fn agents(&self) -> &[Agent] {
        &self.agents
    }

    /// The subnet of a node's pods.
    pub(crate) fn subnet(number: u8) -> String {
        format!("10.244.{number}.0/24")
    }

    /// Makes a node's object.
    pub(crate) fn create_node(&self, number: u8) -> Outcome {
        let (name, subnet) = (self.node(number).name(), Self::subnet(number));
        Ok(self.server.create_node(name, &[&subnet])?)
    }

    /// Makes all nodes' objects, starts their agents, and waits until they know each other.
    pub(crate) fn start_all(&self) -> Outcome {
        for node in self.cluster.nodes() {
            self.create_node(node.number())?;
        }
        self.start_agents()
    }

    /// Starts all agents, and waits until they know each other.
    pub(crate) fn start_agents(&self) -> Outcome {
        self.agents.iter().try_for_each(Agent::start)?;
        for agent in &self.agents {
            agent.wait_ready()?;
        }
        self.wait_converged()
    }

    /// Waits until all agents know all others.
    pub(crate) fn wait_converged(&self) -> Outcome {
        let peers = self.agents.len() - 1;
        for agent in &self.agents {
            agent.wait_status("knowledge of all peers", |status| {
                status.peers.len() == peers && status.problems.is_empty()
            })?;
        }
        Ok(())
    }

    /// Attaches a pod by our plugin, and waits until the fast path serves it.
    pub(crate) fn add_pod(&self, number: u8) -> anyhow::Result<Pod> {
        let pod = self.node(number).add_pod_by(&PathBuf::from(PLUGIN))?;
        let address = pod.address().to_string();
        self.agent(number)
            .wait_status("a fast path for the pod", |status| {
                let mut pods = status.fast_path.pods.iter();
                status.fast_path.active
                    && pods.any(|known| known.ip == address && known.problem.is_none())
            })?;
        Ok(pod)
    }

    /// A node's annotations that are flannel's, by their names without the prefix.
    pub(crate) fn annotations(&self, number: u8) -> anyhow::Result<Vec<(String, String)>> {
        let node = self.server.node(self.node(number).name())?;
        let all = node["metadata"]["annotations"].as_object();
        let own = all.into_iter().flatten().filter_map(|(name, value)| {
            Some((
                name.strip_prefix(PREFIX)?.to_owned(),
                value.as_str()?.to_owned(),
            ))
        });
        Ok(own.collect())
    }

    /// Requests since there were `before` of them.
    pub(crate) fn requests_since(&self, before: usize) -> anyhow::Result<Vec<Request>> {
        Ok(self.server.requests()?.split_off(before))
    }

    /// A command's output on a node.
    pub(crate) fn shell(&self, number: u8, command: &str) -> anyhow::Result<String> {
        let netns = self.node(number).netns();
        Ok(process::run(Some(netns), "sh", &["-c", command])?)
    }

    /// The hardware address of a node's link.
    pub(crate) fn mac(&self, number: u8, link: &str) -> anyhow::Result<String> {
        let text = self.shell(number, &format!("ip -json link show {link}"))?;
        let links: Value = serde_json::from_str(&text)?;
        let mac = links[0]["address"].as_str();
        Ok(mac
            .with_context(|| format!("{link} has no address: {text}"))?
            .to_owned())
    }

    /// What an engineer wants to see: each agent's status and the end of its log.
    fn diagnosis(&self) -> String {
        const LINES: usize = 25;
        let mut text = String::new();
        for agent in &self.agents {
            let status = agent
                .status()
                .map_or_else(|error| error.to_string(), |status| format!("{status:?}"));
            let log = agent.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(LINES)..].join("\n");
            text += &format!("--- {}: {status}\n{tail}\n", agent.log_path().display());
        }
        text
    }
}

/// Waits for a condition that is looked at by commands.
pub(crate) fn eventually(
    what: &str,
    mut probe: impl FnMut() -> anyhow::Result<Result<(), String>>,
) -> Outcome {
    let mut failure = None;
    wait::until(what, PROMPT, || match probe() {
        Ok(answer) => Ok(answer),
        Err(error) => {
            failure = Some(error);
            Ok(Ok(()))
        }
    })?;
    failure.map_or(Ok(()), Err)
}

/// How many requests of a verb were not refused.
pub(crate) fn served(requests: &[Request], verb: &str) -> usize {
    let served = |request: &&Request| request.verb == verb && is_success(request);
    requests.iter().filter(served).count()
}

/// Whether a request was not refused. A watch goes on, most of the time.
pub(crate) fn is_success(request: &Request) -> bool {
    request.status.is_none_or(|status| status < 300)
}

/// Sends numbered packets from one pod to another, and asserts that all arrive.
pub(crate) fn udp_arrives(from: &Pod, to: &Pod) -> Outcome {
    let plan = UdpPlan {
        packets: 1000,
        rate: 5000,
        size: 64,
    };
    let report = udp::run(from, to, plan)?;
    ensure!(
        report.received == plan.packets && report.corrupted == 0,
        "{report:?}"
    );
    Ok(())
}

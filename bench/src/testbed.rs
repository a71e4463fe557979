//! A cluster of two nodes, one pod on each, and how a number from there is made sure of.

mod send;

use std::{net::Ipv4Addr, path::Path};

use lab::{
    AgentConfig, Cluster, ClusterConfig, Netns, Node, NodeConfig, process, services::Form,
    traffic::Host, underlay,
};

use crate::{
    generator::{self, Generator, Ingress},
    packets::{self, Way},
    path::{Expected, Reading},
    variants::{Backend, Carrier, Rules, Setting},
};
use send::{Flows, Lane};
pub use send::{Pace, STREAM_AGE, STREAM_KEPT, WARM_UP};

/// The pods' network, and the length of the nodes' prefixes.
const NETWORK: (&str, u8) = ("10.5.0.0/16", 24);
/// The bridge that the CNI plugin makes.
pub const BRIDGE: &str = "cni0";
/// The pod's own device.
const POD_DEVICE: &str = "eth0";
/// The device that joins the two nodes without a switch between them.
pub const WIRE: &str = "wire0";
/// Where leases are in etcd.
const LEASES: &str = "/coreos.com/network/subnets/";

/// Why there is no number.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster does not work.
    #[error(transparent)]
    Lab(#[from] lab::Error),
    /// The generator does not work.
    #[error(transparent)]
    Generator(#[from] generator::Error),
    /// The lab's nodes say something else than expected.
    #[error("{what} is {value:?}, which is not {expected}")]
    Unexpected {
        /// What was read.
        what: &'static str,
        /// What it says.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The cluster could not be built, as was said before.
    #[error("{0}")]
    NoBed(String),
    /// The BPF programs cannot be run on single packets.
    #[error("BPF programs on single packets: {0}")]
    Programs(String),
    /// The agent does not do what it is started for.
    #[error("control plane: {0}")]
    Control(String),
    /// Packets are missing, or there are too many.
    #[error("{sent} packets were sent and {arrived} arrived")]
    Lost {
        /// Generated.
        sent: u32,
        /// Seen by the sink.
        arrived: u64,
    },
    /// Packets took another path than the row says.
    #[error(
        "BPF carried {egress} packets out of the first node and {ingress} into the second, not {expected:?}: {detail}"
    )]
    Path {
        /// Counted by the first node's agent.
        egress: u64,
        /// Counted by the second node's agent.
        ingress: u64,
        /// What each should be.
        expected: [Expected; 2],
        /// What the agents say about it.
        detail: String,
    },
}

/// The result of measurements.
pub type Result<T> = std::result::Result<T, Error>;

/// How clusters are built and measured.
#[derive(Clone, Copy, Debug)]
pub struct Means<'a> {
    /// The agent's program.
    pub agent: &'a Path,
    /// The generator's BPF object.
    pub object: &'a Path,
    /// The CPU that carries the packets.
    pub cpu: usize,
    /// Another one, if there is.
    pub other_cpu: Option<usize>,
}

/// What differs in a cluster from the others.
#[derive(Clone, Copy, Debug)]
pub struct Special<'a> {
    /// The pods' network, and the length of the nodes' prefixes.
    pub network: (&'a str, u8),
    /// Further arguments of the agents.
    pub arguments: &'a [&'a str],
}

impl Default for Special<'_> {
    fn default() -> Self {
        Self {
            network: NETWORK,
            arguments: &[],
        }
    }
}

/// Where sockets are opened, and what they are called by the others.
#[derive(Clone, Debug)]
pub struct End {
    netns: Netns,
    address: Ipv4Addr,
}

impl Host for End {
    fn netns(&self) -> &Netns {
        &self.netns
    }

    fn address(&self) -> Ipv4Addr {
        self.address
    }
}

/// A running cluster, from one pod of which packets go to a pod of the other node.
pub struct Testbed {
    carrier: Carrier,
    cluster: Cluster,
    ends: [End; 2],
    /// There and back; none without pods.
    lanes: Vec<Lane>,
    flows: Flows,
}

impl Testbed {
    /// Builds the cluster and loads the generator.
    ///
    /// # Errors
    /// Whatever fails first.
    pub fn start(means: &Means<'_>, setting: Setting, carrier: Carrier) -> Result<Self> {
        Self::start_as(means, setting, carrier, &Special::default())
    }

    /// The same with what a measure needs beyond that.
    ///
    /// # Errors
    /// Whatever fails first.
    pub fn start_as(
        means: &Means<'_>,
        setting: Setting,
        carrier: Carrier,
        special: &Special<'_>,
    ) -> Result<Self> {
        let with_rules = setting.services > 0;
        let service_rules = match setting.rules {
            Rules::Iptables => Form::Iptables,
            Rules::Nftables => Form::Nftables,
        };
        let Some(mode) = carrier.mode() else {
            return Self::start_native();
        };
        let mut agent = AgentConfig::new(means.agent).with_fast_path(mode);
        agent.ip_masq = with_rules;
        let tier = carrier.arguments().iter().copied().map(str::to_owned);
        agent.arguments.extend(tier);
        agent
            .arguments
            .push(format!("--iptables-forward-rules={with_rules}"));
        let arguments = special.arguments.iter().copied().map(str::to_owned);
        agent.arguments.extend(arguments);
        let backend = setting.backend.name();
        let cluster = Cluster::start(ClusterConfig {
            nodes: vec![NodeConfig::agent(&agent); 2],
            pods: 0,
            network: format!(
                r#"{{"Network":"{}","SubnetLen":{},"Backend":{{"Type":"{backend}"}}}}"#,
                special.network.0, special.network.1
            ),
            bridge_netfilter: setting.bridge_netfilter,
            services: setting.services,
            service_rules,
            ..ClusterConfig::default()
        })?;
        for node in cluster.nodes() {
            node.agent().stop()?;
        }
        for (key, _) in cluster.etcd().get_prefix(LEASES)? {
            cluster.etcd().delete(&key)?;
        }
        join(&cluster)?;
        start_agents(&cluster)?;
        if !with_rules {
            cluster
                .nodes()
                .iter()
                .try_for_each(|node| remove_rules(node, carrier))?;
        }
        let pods = [1, 2].map(|node| cluster.node(node).pods().swap_remove(0));
        let lane = |from: usize, to: usize, way| -> Result<Lane> {
            let node = cluster.node(from as u8 + 1);
            let plan = packets::udp(node, &pods[from], &pods[to], way, 1)?;
            let mut generator = Generator::load(means.object, plan, packets::PAYLOAD, means.cpu)?;
            generator.attach_sink(Ingress {
                netns: pods[to].netns(),
                device: POD_DEVICE,
            })?;
            Ok(Lane {
                generator,
                netns: node.netns().clone(),
                device: pods[from].attachment().host_device.clone(),
            })
        };
        let lanes = vec![lane(0, 1, Way::There)?, lane(1, 0, Way::Back)?];
        for pod in &pods {
            check_mtu(pod.netns(), setting.backend)?;
        }
        let ends = pods.map(|pod| End {
            netns: pod.netns().clone(),
            address: pod.address(),
        });
        Ok(Self {
            carrier,
            cluster,
            ends,
            lanes,
            flows: Flows::default(),
        })
    }

    /// Two nodes and the wire between them.
    fn start_native() -> Result<Self> {
        let cluster = Cluster::start(ClusterConfig {
            nodes: vec![NodeConfig::default(); 2],
            bridge_netfilter: false,
            ..ClusterConfig::default()
        })?;
        join(&cluster)?;
        let ends = [1, 2].map(|number| End {
            netns: cluster.node(number).netns().clone(),
            address: wire_address(number),
        });
        Ok(Self {
            carrier: Carrier::Native,
            cluster,
            ends,
            lanes: Vec::new(),
            flows: Flows::default(),
        })
    }

    /// Who carries packets here.
    pub fn carrier(&self) -> Carrier {
        self.carrier
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Where sockets are opened: on the first node and on the second.
    pub fn ends(&self) -> &[End; 2] {
        &self.ends
    }

    /// Runs `work`, and fails if BPF did not carry what was expected of it meanwhile.
    ///
    /// # Errors
    /// Also those of `work`.
    pub fn watch<T>(
        &mut self,
        expected: Expected,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        self.watch_each([expected; 2], work)
    }

    /// The same, with what each node is to carry.
    ///
    /// # Errors
    /// As for the other.
    fn watch_each<T>(
        &mut self,
        expected: [Expected; 2],
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        if self.carrier == Carrier::Native {
            return work(self);
        }
        let before = Reading::take(&self.cluster)?;
        let done = work(self)?;
        Reading::take(&self.cluster)?.check(&before, expected)?;
        Ok(done)
    }
}

/// Fails unless a pod's packets are as large as they are with every other carrier.
fn check_mtu(pod: &Netns, backend: Backend) -> Result<()> {
    let (mtu, expected) = (packets::mtu(pod, POD_DEVICE)?, backend.mtu());
    if mtu == expected {
        return Ok(());
    }
    Err(Error::Unexpected {
        what: "a pod's MTU",
        value: mtu.to_string(),
        expected: match backend {
            Backend::Vxlan => "the wire's less the tunnel",
            Backend::HostGw => "the wire's",
        },
    })
}

/// Removes all netfilter rules and chains of a node, so that its packets do not even meet conntrack. Without the agent's
/// masquerading the CNI plugin does its own, as flannel's CNI plugin tells it to.
///
/// Flows can only be permitted where conntrack sees them, which it does for the sake of a rule: there one stays.
fn remove_rules(node: &Node, carrier: Carrier) -> Result<()> {
    const TRACK: &str = "table inet track {\n\
        chain forward {\n\
        type filter hook forward priority filter;\n\
        ct state established accept\n\
        }\n}\n";
    process::run(Some(node.netns()), "nft", &["flush", "ruleset"])?;
    if carrier.asks_the_kernel() {
        process::run_with_input(Some(node.netns()), "nft", &["-f", "-"], TRACK)?;
    }
    Ok(())
}

fn wire_address(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 110, node)
}

/// Lets the nodes reach each other over one veth, as two machines on one cable: each hop of a switch would cost both
/// paths the same and so hide what the paths themselves cost.
fn join(cluster: &Cluster) -> Result<()> {
    let [first, second] = [1, 2].map(|number| cluster.node(number));
    let other = second.netns().name();
    underlay::ip_batch(
        first.netns(),
        &format!("link add {WIRE} type veth peer name {WIRE} netns {other}\n"),
    )?;
    for node in [first, second] {
        let address = wire_address(node.number());
        underlay::ip_batch(
            node.netns(),
            &format!("address add {address}/24 dev {WIRE}\nlink set {WIRE} up\n"),
        )?;
    }
    Ok(())
}

/// Starts the agents anew, on the wire; pods follow.
fn start_agents(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        node.agent()
            .configure(|config| config.interface = WIRE.to_owned());
        node.agent().start()?;
    }
    for node in cluster.nodes() {
        node.agent().wait_ready()?;
        node.add_pod()?;
    }
    cluster.wait_converged()?;
    Ok(())
}

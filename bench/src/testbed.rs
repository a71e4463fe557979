//! A cluster of two nodes, one pod on each, and how a number from there is made sure of.

use std::{
    net::Ipv4Addr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use flannel_common::generator::Plan;
use lab::{
    AgentConfig, Cluster, ClusterConfig, Netns, Node, NodeConfig, process, traffic::Host, underlay,
};

use crate::{
    generator::{self, Generator, Ingress, Run},
    packets::{self, Way},
    path::{Expected, Reading},
    variants::{Carrier, Setting},
};

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

/// Packets of each flow, at least, that go before a measurement.
const WARM_UP_EACH: u32 = 2;
/// Packets, at least, that go before a measurement, so that neighbours are known and flows attested.
pub const WARM_UP: u32 = 1024;
/// How long it may take until all packets of a warm-up take the path they are to take.
const WARM_UP_LIMIT: Duration = Duration::from_secs(10);
const WARM_UP_PAUSE: Duration = Duration::from_millis(50);
/// Parts in which flows are attested one after the other.
const SLICES: u32 = 20;
/// Age from which conntrack takes UDP that is answered for a stream, and assures it (`nf_conntrack_udp_packet` in
/// net/netfilter/nf_conntrack_proto_udp.c: two seconds and a timer tick).
pub const STREAM_AGE: Duration = Duration::from_millis(2_100);
/// How long conntrack surely remembers a stream without packets (`nf_conntrack_udp_timeout_stream` is 120 s).
pub const STREAM_KEPT: Duration = Duration::from_secs(60);

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
        /// What both should be.
        expected: Expected,
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

/// A generator at one pod and a sink in the other.
struct Lane {
    generator: Generator,
    netns: Netns,
    device: String,
}

impl Lane {
    /// Sends packets the whole way. That some do not arrive is an error.
    fn run(&mut self, packets: u32) -> Result<Run> {
        let at = Ingress {
            netns: &self.netns,
            device: &self.device,
        };
        all_arrive(&mut self.generator, at, packets)
    }
}

/// How packets are spread over time.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Packets that follow each other at once.
    pub packets: u32,
    /// Time from one such pass to the next. None is left out, whatever the one before took.
    pub interval: Duration,
    /// Passes of a window.
    pub passes: u32,
    /// Windows.
    pub windows: u32,
    /// Time over which the flows are spread beforehand, so that they are not all revalidated at once.
    pub spread: Duration,
}

/// The flows that generated packets are of.
#[derive(Clone, Copy, Debug)]
struct Flows {
    number: u32,
    /// When their packets were last seen in both directions.
    used: Option<Instant>,
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
        let Some(mode) = carrier.mode() else {
            return Self::start_native();
        };
        let mut agent = AgentConfig::new(means.agent).with_fast_path(mode);
        agent.ip_masq = with_rules;
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
            bridge_netfilter: with_rules,
            services: setting.services,
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
        let ends = pods.map(|pod| End {
            netns: pod.netns().clone(),
            address: pod.address(),
        });
        Ok(Self {
            carrier,
            cluster,
            ends,
            lanes,
            flows: Flows {
                number: 1,
                used: None,
            },
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
            flows: Flows {
                number: 1,
                used: None,
            },
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

    /// Sends packets of permitted flows along the whole way.
    ///
    /// # Errors
    /// If not every single one arrived, or not every single one took the path that this cluster is for.
    pub fn send(&mut self, flows: u32, packets: u32) -> Result<Run> {
        self.prime(flows, Duration::ZERO)?;
        let expected = Expected::Exactly(if self.carrier.is_fast() {
            packets.into()
        } else {
            0
        });
        self.warm_up()?;
        let run = self.watch(expected, |bed| bed.lane(Way::There).run(packets))?;
        self.flows.used = Some(Instant::now());
        Ok(run)
    }

    /// Sends packets of permitted flows again and again, each flow equally often; what each window cost.
    ///
    /// # Errors
    /// As for [`Testbed::send`].
    pub fn send_paced(&mut self, flows: u32, pace: &Pace) -> Result<Vec<Run>> {
        self.prime(flows, pace.spread)?;
        let passes = pace.windows * pace.passes;
        let packets = u64::from(passes) * u64::from(pace.packets);
        let expected = Expected::Exactly(if self.carrier.is_fast() { packets } else { 0 });
        self.warm_up()?;
        let runs = self.watch(expected, |bed| {
            let start = Instant::now();
            (0..passes)
                .map(|pass| {
                    let due = pace.interval * pass;
                    thread::sleep(due.saturating_sub(start.elapsed()));
                    bed.lane(Way::There).run(pace.packets)
                })
                .collect::<Result<Vec<_>>>()
        })?;
        self.flows.used = Some(Instant::now());
        let windows = runs.chunks(pace.passes as usize);
        Ok(windows
            .filter_map(|runs| runs.iter().copied().reduce(Run::add))
            .collect())
    }

    /// Sends packets that are never to be fast, as `change` makes them of the usual ones.
    ///
    /// # Errors
    /// If not every single one arrived, or BPF carried any.
    pub fn send_slow(
        &mut self,
        flows: u32,
        packets: u32,
        change: impl FnOnce(&mut Plan),
    ) -> Result<Run> {
        self.set_flows(flows)?;
        let usual = self.lane(Way::There).generator.plan();
        let none = Expected::Exactly(0);
        self.lane(Way::There).generator.change(change)?;
        let send =
            |bed: &mut Self, packets| bed.watch(none, |bed| bed.lane(Way::There).run(packets));
        let run = retry(|| send(self, WARM_UP)).and_then(|_| send(self, packets));
        self.lane(Way::There)
            .generator
            .change(|plan| *plan = usual)?;
        run
    }

    /// Stops the agents, which leaves everything as it is, and ends all packets where the wire reaches the second node.
    ///
    /// # Errors
    /// If the sink cannot be attached.
    pub fn end_at_wire(&mut self) -> Result<()> {
        for node in self.cluster.nodes() {
            node.agent().stop()?;
        }
        let netns = self.cluster.node(2).netns().clone();
        let at = Ingress {
            netns: &netns,
            device: WIRE,
        };
        Ok(self.lane(Way::There).generator.attach_wire_sink(at)?)
    }

    /// Sends packets to random ones of `subnets` subnets from `first` on, which are 2^`shift` addresses apart. No route
    /// of the kernel leads there: what arrives at the wire has been carried by BPF.
    ///
    /// # Errors
    /// If not every single one arrived.
    pub fn send_to_wire(
        &mut self,
        first: u32,
        subnets: u32,
        shift: u32,
        packets: u32,
    ) -> Result<Run> {
        let lane = self.lane(Way::There);
        lane.generator.change(|plan| {
            (plan.subnets, plan.subnet_shift) = (subnets, shift);
            // The second address of the subnet.
            packets::send_to(plan, first + 2);
        })?;
        retry(|| lane.run(WARM_UP))?;
        lane.run(packets)
    }

    /// Makes packets that the sink takes at once.
    ///
    /// # Errors
    /// If it did not see every single one.
    pub fn send_nowhere(&mut self, flows: u32, packets: u32) -> Result<Run> {
        self.set_flows(flows)?;
        let netns = self.ends[1].netns.clone();
        let at = Ingress {
            netns: &netns,
            device: POD_DEVICE,
        };
        let generator = &mut self.lane(Way::There).generator;
        all_arrive(generator, at, WARM_UP)?;
        all_arrive(generator, at, packets)
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
        if self.carrier == Carrier::Native {
            return work(self);
        }
        let before = Reading::take(&self.cluster)?;
        let done = work(self)?;
        Reading::take(&self.cluster)?.check(&before, expected)?;
        Ok(done)
    }

    /// Makes conntrack know the flows of generated packets, as streams that are answered, and the fast path by and by.
    fn prime(&mut self, flows: u32, spread: Duration) -> Result<()> {
        let kept = self
            .flows
            .used
            .is_some_and(|used| used.elapsed() < STREAM_KEPT);
        if self.flows.number == flows && kept {
            return Ok(());
        }
        self.set_flows(flows)?;
        self.exchange()?;
        if self.carrier == Carrier::Flow {
            thread::sleep(STREAM_AGE);
            retry(|| self.lane(Way::Back).run(flows))?;
            let slices = if flows < SLICES { 1 } else { SLICES };
            let start = Instant::now();
            for slice in 0..slices {
                let due = spread * slice / slices;
                thread::sleep(due.saturating_sub(start.elapsed()));
                retry(|| self.lane(Way::There).run(flows.div_ceil(slices)))?;
            }
        }
        self.flows.used = Some(Instant::now());
        Ok(())
    }

    /// One packet of each flow and its answer.
    fn exchange(&mut self) -> Result<()> {
        let flows = self.flows.number;
        for way in [Way::There, Way::Back] {
            retry(|| self.lane(way).run(flows))?;
        }
        Ok(())
    }

    /// Until neighbours are resolved and, for BPF, pods are known and flows attested.
    fn warm_up(&mut self) -> Result<()> {
        let packets = WARM_UP.max(WARM_UP_EACH * self.flows.number);
        let expected = Expected::Exactly(if self.carrier.is_fast() {
            packets.into()
        } else {
            0
        });
        retry(|| self.watch(expected, |bed| bed.lane(Way::There).run(packets))).map(drop)
    }

    fn set_flows(&mut self, flows: u32) -> Result<()> {
        if self.flows.number != flows {
            self.flows = Flows {
                number: flows,
                used: None,
            };
            for lane in &mut self.lanes {
                lane.generator
                    .change(|plan: &mut Plan| plan.flows = flows)?;
            }
        }
        Ok(())
    }

    /// # Panics
    /// Without pods: no measure sends generated packets there.
    fn lane(&mut self, way: Way) -> &mut Lane {
        &mut self.lanes[way as usize]
    }
}

/// Tries until packets arrive, and on the path that they are to take.
fn retry(mut attempt: impl FnMut() -> Result<Run>) -> Result<Run> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(Error::Lost { .. } | Error::Path { .. }) if start.elapsed() < WARM_UP_LIMIT => {
                thread::sleep(WARM_UP_PAUSE);
            }
            done => return done,
        }
    }
}

fn all_arrive(generator: &mut Generator, at: Ingress<'_>, packets: u32) -> Result<Run> {
    let run = generator.run(at, packets)?;
    if run.arrived == u64::from(packets) {
        return Ok(run);
    }
    Err(Error::Lost {
        sent: packets,
        arrived: run.arrived,
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
    if carrier == Carrier::Flow {
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

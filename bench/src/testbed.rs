//! A cluster of two nodes, the packets between their pods, and how a number from there is made sure of.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use flannel_common::{
    addr::Mac,
    checksum,
    generator::{Headers, Plan},
    wire::{
        Be16,
        ethernet::{self, Ethernet},
        ipv4::{self, Ipv4},
        udp::{self, Udp},
    },
};
use lab::{
    AgentConfig, Cluster, ClusterConfig, Node, NodeConfig, Pod, process,
    status::{Counters, Status},
    underlay,
};
use serde::Deserialize;

use crate::{
    generator::{self, Generator, Ingress, Run},
    variants::{Carrier, Setting},
};

/// Bytes behind the UDP header.
pub const PAYLOAD: usize = 64;

/// The pods' network in all clusters.
const NETWORK: &str = "10.5.0.0/16";
/// The bridge that the CNI plugin makes.
const BRIDGE: &str = "cni0";
/// The pod's own device.
const POD_DEVICE: &str = "eth0";
/// The device that joins the two nodes without a switch between them.
const WIRE: &str = "wire0";
/// Where leases are in etcd.
const LEASES: &str = "/coreos.com/network/subnets/";

/// UDP ports of generated packets: the first flow's source, and the destination of all.
const SOURCE_PORT: u16 = 20_000;
const DESTINATION_PORT: u16 = 9; // discard (RFC 863)
const TTL: u8 = 64;

/// Packets that go before each measurement, so that neighbours are known and conntrack has an entry for each flow, of
/// which there are no more.
pub const WARM_UP: u32 = 1024;
/// How long it may take until all packets of a warm-up take the path they are to take.
const WARM_UP_LIMIT: Duration = Duration::from_secs(10);
const WARM_UP_PAUSE: Duration = Duration::from_millis(50);

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
        "BPF carried {egress} packets out of the first node and {ingress} into the second, not {expected}: {detail}"
    )]
    Path {
        /// Counted by the first node's agent.
        egress: u64,
        /// Counted by the second node's agent.
        ingress: u64,
        /// What both should be.
        expected: u64,
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
    /// Flows that take turns.
    pub flows: u16,
    /// The CPU that carries the packets.
    pub cpu: usize,
}

/// A running cluster, from one pod of which packets go to a pod of the other node.
pub struct Testbed {
    carrier: Carrier,
    cluster: Cluster,
    from: Pod,
    to: Pod,
    generator: Generator,
}

impl Testbed {
    /// Builds the cluster and loads the generator.
    ///
    /// # Errors
    /// Whatever fails first.
    pub fn start(means: &Means<'_>, setting: Setting, carrier: Carrier) -> Result<Self> {
        let with_rules = setting.services > 0;
        let mut agent = AgentConfig::new(means.agent).with_fast_path(match carrier {
            Carrier::Subnet => "subnet",
            Carrier::Kernel | Carrier::KernelAgain | Carrier::Generator => "off",
        });
        agent.ip_masq = with_rules;
        agent
            .arguments
            .push(format!("--iptables-forward-rules={with_rules}"));
        let backend = setting.backend.name();
        let cluster = Cluster::start(ClusterConfig {
            nodes: vec![NodeConfig::agent(&agent); 2],
            pods: 0,
            network: format!(r#"{{"Network":"{NETWORK}","Backend":{{"Type":"{backend}"}}}}"#),
            bridge_netfilter: with_rules,
            services: setting.services,
            ..ClusterConfig::default()
        })?;
        join_directly(&cluster)?;
        if !with_rules {
            cluster
                .nodes()
                .iter()
                .try_for_each(|node| remove_rules(node))?;
        }
        let [from, to] = [1, 2].map(|node| cluster.node(node).pods().swap_remove(0));
        let plan = plan(cluster.node(1), &from, &to, means.flows)?;
        let mut generator = Generator::load(means.object, plan, PAYLOAD, means.cpu)?;
        generator.attach_sink(Ingress {
            netns: to.netns(),
            device: POD_DEVICE,
        })?;
        Ok(Self {
            carrier,
            cluster,
            from,
            to,
            generator,
        })
    }

    /// Sends packets along the whole way.
    ///
    /// # Errors
    /// If not every single one arrived, or not every single one took the path that this cluster is for.
    pub fn measure(&mut self, packets: u32) -> Result<Run> {
        self.warm_up()?;
        self.verified(packets)
    }

    /// Makes packets that the sink takes at once.
    ///
    /// # Errors
    /// If it did not see every single one.
    pub fn measure_generator(&mut self, packets: u32) -> Result<Run> {
        let netns = self.to.netns().clone();
        let at = Ingress {
            netns: &netns,
            device: POD_DEVICE,
        };
        self.all_arrive(at, WARM_UP)?;
        self.all_arrive(at, packets)
    }

    /// Until neighbours are resolved and, for BPF, pods are known.
    fn warm_up(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            match self.verified(WARM_UP) {
                Err(Error::Lost { .. } | Error::Path { .. }) if start.elapsed() < WARM_UP_LIMIT => {
                    thread::sleep(WARM_UP_PAUSE);
                }
                done => return done.map(drop),
            }
        }
    }

    fn verified(&mut self, packets: u32) -> Result<Run> {
        let netns = self.cluster.node(1).netns().clone();
        let device = self.from.attachment().host_device.clone();
        let at = Ingress {
            netns: &netns,
            device: &device,
        };
        let before = self.status()?;
        let run = self.all_arrive(at, packets)?;
        let after = self.status()?;
        let expected = match self.carrier {
            Carrier::Subnet => u64::from(packets),
            Carrier::Kernel | Carrier::KernelAgain | Carrier::Generator => 0,
        };
        check_path(&before, &after, expected)?;
        Ok(run)
    }

    fn all_arrive(&mut self, at: Ingress<'_>, packets: u32) -> Result<Run> {
        let run = self.generator.run(at, packets)?;
        if run.arrived == u64::from(packets) {
            return Ok(run);
        }
        Err(Error::Lost {
            sent: packets,
            arrived: run.arrived,
        })
    }

    fn status(&self) -> Result<[Status; 2]> {
        let status = |node| self.cluster.node(node).agent().status();
        Ok([status(1)?, status(2)?])
    }
}

/// Fails unless BPF carried as many packets out of the first node and into the second as it should have.
fn check_path(before: &[Status; 2], after: &[Status; 2], expected: u64) -> Result<()> {
    let counted = |node: usize| -> Counters {
        after[node]
            .fast_path
            .counters
            .since(&before[node].fast_path.counters)
    };
    let (first, second) = (counted(0), counted(1));
    if (first.fast_egress, second.fast_ingress) == (expected, expected) {
        return Ok(());
    }
    let why = |status: &Status, counted: &Counters| match &status.fast_path.reason {
        Some(reason) => reason.clone(),
        None => format!("declined {:?}", counted.declined),
    };
    Err(Error::Path {
        egress: first.fast_egress,
        ingress: second.fast_ingress,
        expected,
        detail: format!(
            "first node: {}; second node: {}",
            why(&after[0], &first),
            why(&after[1], &second)
        ),
    })
}

/// Packets from one pod to the other, as the first would send them.
fn plan(node: &Node, from: &Pod, to: &Pod, flows: u16) -> Result<Plan> {
    let mut ip = Ipv4 {
        version_ihl: ipv4::VERSION_IHL,
        total_len: Be16::new((ipv4::LEN + udp::LEN + PAYLOAD) as u16),
        ttl: TTL,
        protocol: ipv4::UDP,
        source: from.address().into(),
        destination: to.address().into(),
        ..Ipv4::default()
    };
    ip.checksum = checksum::ipv4_header(&ip);
    Ok(Plan {
        headers: Headers {
            ethernet: Ethernet {
                destination: parse_mac(&bridge_mac(node)?)?,
                source: parse_mac(&from.attachment().mac)?,
                ethertype: ethernet::IPV4,
            },
            ip,
            udp: Udp {
                source: Be16::new(SOURCE_PORT),
                destination: Be16::new(DESTINATION_PORT),
                len: Be16::new((udp::LEN + PAYLOAD) as u16),
                checksum: Be16::default(),
            },
        },
        flows,
    })
}

/// Removes all netfilter rules and chains of a node, so that its packets do not even meet conntrack. Without the agent's
/// masquerading the CNI plugin does its own, as flannel's CNI plugin tells it to.
fn remove_rules(node: &Node) -> Result<()> {
    process::run(Some(node.netns()), "nft", &["flush", "ruleset"])?;
    Ok(())
}

fn bridge_mac(node: &Node) -> Result<String> {
    #[derive(Deserialize)]
    struct Link {
        address: String,
    }
    let text = process::run(
        Some(node.netns()),
        "ip",
        &["-json", "link", "show", "dev", BRIDGE],
    )?;
    let links: Vec<Link> = serde_json::from_str(&text).unwrap_or_default();
    let link = links.into_iter().next();
    link.map(|link| link.address)
        .ok_or_else(|| Error::Unexpected {
            what: "the answer of ip link show",
            value: text,
            expected: "a list with one link",
        })
}

fn parse_mac(text: &str) -> Result<Mac> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .map(Mac)
        .ok_or_else(|| Error::Unexpected {
            what: "a link's address",
            value: text.to_owned(),
            expected: "a MAC address",
        })
}

/// Lets the nodes reach each other over one veth, as two machines on one cable: each hop of a switch would cost both
/// paths the same and so hide what the paths themselves cost. Pods follow.
fn join_directly(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        node.agent().stop()?;
    }
    for (key, _) in cluster.etcd().get_prefix(LEASES)? {
        cluster.etcd().delete(&key)?;
    }
    let [first, second] = [1, 2].map(|number| cluster.node(number));
    let other = second.netns().name();
    underlay::ip_batch(
        first.netns(),
        &format!("link add {WIRE} type veth peer name {WIRE} netns {other}\n"),
    )?;
    for node in [first, second] {
        let address = format!("192.168.110.{}/24", node.number());
        underlay::ip_batch(
            node.netns(),
            &format!("address add {address} dev {WIRE}\nlink set {WIRE} up\n"),
        )?;
        node.agent()
            .configure(|config| config.interface = WIRE.to_owned());
        node.agent().start()?;
    }
    for node in [first, second] {
        node.agent().wait_ready()?;
        node.add_pod()?;
    }
    cluster.wait_converged()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_is_six_bytes() {
        assert_eq!(
            parse_mac("02:00:5e:10:00:ff").unwrap(),
            Mac([2, 0, 0x5e, 0x10, 0, 0xff])
        );
        for wrong in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:ff:00",
            "02:00:5e:10:00:xx",
        ] {
            assert!(parse_mac(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_packet_on_another_path_is_an_error() {
        let status = |egress, ingress| {
            let mut status = [Status::default(), Status::default()];
            status[0].fast_path.counters.fast_egress = egress;
            status[1].fast_path.counters.fast_ingress = ingress;
            status
        };
        let before = status(5, 7);
        assert!(check_path(&before, &status(105, 107), 100).is_ok());
        assert!(check_path(&before, &status(105, 106), 100).is_err());
        assert!(check_path(&before, &status(104, 107), 100).is_err());
        assert!(check_path(&before, &status(106, 107), 100).is_err());
        assert!(check_path(&before, &status(5, 7), 0).is_ok());
        assert!(check_path(&before, &status(6, 7), 0).is_err());
    }
}

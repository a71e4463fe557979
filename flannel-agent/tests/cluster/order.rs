//! Packets arrive in the order in which they were sent, as on the kernel's path: in bursts, in the moment when flows
//! turn fast, in writes of all sizes, and on two processors not worse than there.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use lab::{
    Cluster, ClusterConfig, Netns, Node, NodeConfig, Pod, Underlay,
    counters::Protocols,
    process,
    traffic::tcp::{TcpFlow, TcpPlan},
};

use crate::dialog::{self, Dialog};
use crate::flow::on_one_processor;
use crate::pair::{counters, first_pod};
use crate::support::{Outcome, Path, Setting, wait_pods_served, with_cluster};

/// Counters of a pod that grow when segments arrive in another order than they were sent, or are sent again.
const DISORDER: [&str; 5] = [
    "TcpExt.TCPOFOQueue",
    "TcpExt.TCPSACKReorder",
    "TcpExt.TCPDSACKRecv",
    "TcpExt.TCPDSACKOfoRecv",
    "Tcp.RetransSegs",
];
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Two nodes whose links carry single packets; flows are asked after every 50 ms.
fn single_packets(setting: Setting) -> ClusterConfig {
    let mut agent = setting.agent();
    agent.arguments.push("--fast-path-revalidate=50ms".into());
    ClusterConfig {
        underlay: Underlay {
            offloads: false,
            ..Underlay::default()
        },
        ..setting.cluster(vec![NodeConfig::agent(&agent), NodeConfig::agent(&agent)])
    }
}

/// Sums of [`DISORDER`] in both pods.
fn disorder(pods: [&Pod; 2]) -> anyhow::Result<[i64; 5]> {
    let counts = [
        Protocols::read(pods[0].netns())?,
        Protocols::read(pods[1].netns())?,
    ];
    Ok(DISORDER.map(|name| counts[0].get(name) + counts[1].get(name)))
}

/// Asserts that the flows were fast, if they were to be.
fn were_fast(setting: Setting, nodes: [&Node; 2], least: u64) -> Outcome {
    for node in nodes {
        let counted = counters(node)?;
        ensure!(
            setting.path == Path::Kernel
                || (counted.fast_egress >= least && counted.fast_ingress >= least),
            "{}: not fast: {counted:?}",
            node.name()
        );
    }
    Ok(())
}

/// Connections whose server begins with all that it has, so that each turns fast under a burst; and the same with writes
/// of all sizes on several connections at a time.
pub(crate) fn bursts_stay_in_order(setting: Setting) -> Outcome {
    /// One connection after the other, and those that run together.
    const ROUNDS: usize = 12;
    const TOGETHER: usize = 3;
    with_cluster(single_packets(setting), |cluster| {
        let nodes: [&Node; 2] = [cluster.node(1), cluster.node(2)];
        let (client, server) = (first_pod(nodes[0])?, first_pod(nodes[1])?);
        on_one_processor(|| -> Outcome {
            for round in 0..ROUNDS {
                burst(&client, &server, 1, &[BURST]).with_context(|| format!("round {round}"))?;
            }
            burst(&client, &server, TOGETHER, &MIXED).context("all sizes")
        })??;
        let found = disorder([&client, &server])?;
        // A processor that is busy elsewhere lets timers expire: segments that are sent again prove nothing here.
        ensure!(found[..2] == [0; 2], "{DISORDER:?} are {found:?}");
        were_fast(setting, nodes, 1000)
    })
}

/// What a server sends as soon as somebody connects, in bytes.
const BURST: usize = 4_000_000;
/// Sizes of writes, over and over.
const MIXED: [usize; 9] = [1, 65_536, 80, 1448, 7, 30_000, 1449, 3, 9000];

/// Connects to a server that sends at once, in writes of these sizes, and takes all that comes.
fn burst(client: &Pod, server: &Pod, connections: usize, sizes: &[usize]) -> Outcome {
    let listener = server
        .netns()
        .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    let port = listener.local_addr()?.port();
    let content: Vec<u8> = (0..BURST).map(|index| (index * 7 % 251) as u8).collect();
    thread::scope(|scope| {
        let listener = &listener;
        let content = &content;
        let senders = (0..connections).map(|_| {
            scope.spawn(move || -> Outcome {
                let (mut stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(LIMIT))?;
                let mut rest = &content[..];
                for size in sizes.iter().cycle() {
                    let (now, later) = rest.split_at((*size).min(rest.len()));
                    stream.write_all(now)?;
                    rest = later;
                    if rest.is_empty() {
                        break;
                    }
                }
                Ok(())
            })
        });
        let senders: Vec<_> = senders.collect();
        let receivers = (0..connections).map(|_| {
            scope.spawn(move || -> Outcome {
                let target = (server.address(), port);
                let mut stream = client.netns().run(|| TcpStream::connect(target))??;
                stream.set_read_timeout(Some(LIMIT))?;
                let mut got = Vec::with_capacity(BURST);
                stream.read_to_end(&mut got)?;
                ensure!(got == *content, "{} bytes, or other ones", got.len());
                Ok(())
            })
        });
        let receivers: Vec<_> = receivers.collect();
        for thread in receivers.into_iter().chain(senders) {
            thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        Ok(())
    })
}

/// Datagrams that are sent in bursts while their flows become assured and so turn fast, and again after the fast path
/// was off: each arrives once, none overtakes another.
pub(crate) fn datagrams_stay_in_order(setting: Setting) -> Outcome {
    /// How long bursts go on: flows are assured after two seconds.
    const BEGINNING: Duration = Duration::from_millis(2600);
    const AGAIN: Duration = Duration::from_millis(400);
    const FLOWS: usize = 8;
    with_cluster(single_packets(setting), |cluster| {
        let nodes: [&Node; 2] = [cluster.node(1), cluster.node(2)];
        let (client, server) = (first_pod(nodes[0])?, first_pod(nodes[1])?);
        on_one_processor(|| -> Outcome {
            let mut flows = dialog::open(&client, &server, FLOWS)?
                .into_iter()
                .map(Sequence::new)
                .collect::<anyhow::Result<Vec<_>>>()?;
            bursts(&mut flows, BEGINNING)?;
            were_fast(setting, nodes, 100)?;
            if setting.path == Path::Kernel {
                return Ok(());
            }
            for _ in 0..2 {
                for mode in ["off", "flow"] {
                    for node in nodes {
                        // Bursts go on meanwhile.
                        thread::scope(|scope| {
                            let change = scope.spawn(|| set_mode(node, mode));
                            bursts(&mut flows, AGAIN)?;
                            change.join().map_err(|_| anyhow!("a thread panicked"))?
                        })
                        .with_context(|| format!("{mode} at {}", node.name()))?;
                    }
                }
            }
            bursts(&mut flows, AGAIN)?;
            were_fast(setting, nodes, 100)
        })?
    })
}

fn set_mode(node: &Node, mode: &str) -> Outcome {
    let agent = node.agent();
    let socket = format!("--status-socket={}", agent.socket().display());
    // An agent that has no processor for a while may hang up.
    let ask = || agent.command_output(&["fast-path", mode, &socket]);
    ask().or_else(|_| ask())?;
    wait_pods_served(node)
}

/// A flow of numbered datagrams.
struct Sequence {
    dialog: Dialog,
    sent: u64,
    received: u64,
}

impl Sequence {
    /// Datagrams per burst, and bytes in each.
    const BURST: u64 = 20;
    const SIZE: u16 = 100;

    fn new(dialog: Dialog) -> anyhow::Result<Self> {
        dialog.exchange()?;
        dialog.segment(Self::SIZE)?;
        Ok(Self {
            dialog,
            sent: 0,
            received: 0,
        })
    }

    /// Sends a burst that the node's interface cuts into datagrams.
    fn send(&mut self) -> Outcome {
        let mut burst = Vec::new();
        for number in self.sent..self.sent + Self::BURST {
            burst.extend(number.to_be_bytes());
            burst.resize(burst.len() + usize::from(Self::SIZE) - 8, 0x5a);
        }
        self.sent += Self::BURST;
        self.dialog.client.send(&burst)?;
        Ok(())
    }

    /// Takes what has arrived, which must be the next in order.
    fn take(&mut self) -> Outcome {
        let mut wrong = None;
        let next = &mut self.received;
        self.dialog.arrived(|datagram| {
            let number = datagram
                .first_chunk()
                .map(|bytes| u64::from_be_bytes(*bytes));
            if number != Some(*next) && wrong.is_none() {
                wrong = Some(format!("{number:?} instead of {next}"));
            }
            *next += 1;
        })?;
        ensure!(wrong.is_none(), "out of order: {wrong:?}");
        Ok(())
    }
}

/// Sends bursts on all flows for some time, with an answer to each, and waits until all have arrived.
fn bursts(flows: &mut [Sequence], time: Duration) -> Outcome {
    let start = Instant::now();
    while start.elapsed() < time {
        for flow in &mut *flows {
            flow.send()?;
            flow.take()?;
            let client = flow.dialog.client.local_addr()?;
            flow.dialog.server.send_to(b"answer", client).ok();
        }
        thread::sleep(Duration::from_millis(1));
    }
    for flow in flows {
        while flow.received < flow.sent {
            ensure!(
                start.elapsed() < time + LIMIT,
                "{} of {} datagrams arrived",
                flow.received,
                flow.sent
            );
            flow.take()?;
        }
        ensure!(flow.received == flow.sent, "datagrams arrived twice");
    }
    Ok(())
}

/// Many streams over two processors, each packet on the one that its flow's hash says: all are whole, all are fast,
/// and they are not more often out of order than on the kernel's path.
pub(crate) fn two_processors_are_as_one(setting: Setting) -> Outcome {
    if thread::available_parallelism()?.get() < 2 {
        return Ok(());
    }
    with_cluster(setting.pair(), |cluster| {
        let nodes: [&Node; 2] = [cluster.node(1), cluster.node(2)];
        let pods = [first_pod(nodes[0])?, first_pod(nodes[1])?];
        spread(cluster, &pods)?;
        let [mut kernel, mut fast] = [0; 2];
        for _ in 0..3 {
            for (mode, found) in [("off", &mut kernel), ("flow", &mut fast)] {
                for node in nodes {
                    set_mode(node, mode)?;
                }
                let before = disorder([&pods[0], &pods[1]])?;
                streams(&pods[0], &pods[1]).with_context(|| mode.to_owned())?;
                let after = disorder([&pods[0], &pods[1]])?;
                *found += after[0] - before[0] + after[1] - before[1];
                if mode == "flow" {
                    were_fast(setting, nodes, STREAMS as u64 * BYTES / (64 << 10) / 2)?;
                }
            }
        }
        ensure!(
            fast <= 2 * kernel + SOME,
            "out of order: {fast} segments, on the kernel's path {kernel}"
        );
        Ok(())
    })
}

/// Streams at a time, and bytes of each.
const STREAMS: usize = 16;
const BYTES: u64 = 20_000_000;
/// So many of some hundred thousand segments may be out of order by chance.
const SOME: i64 = 200;

fn streams(client: &Pod, server: &Pod) -> Outcome {
    let plan = TcpPlan {
        bytes: BYTES,
        rate: None,
    };
    let flows: Vec<_> = (0..STREAMS)
        .map(|_| TcpFlow::start(client, server, plan))
        .collect::<lab::Result<_>>()?;
    for flow in flows {
        let report = flow.finish();
        ensure!(report.is_intact(), "{report:?}");
    }
    Ok(())
}

/// Lets both processors receive, on the nodes' interfaces and on both ends of the pods' veths.
fn spread(cluster: &Cluster, pods: &[Pod; 2]) -> Outcome {
    let set = |netns: &Netns, link: &str| {
        // The files show the namespace that they are mounted in.
        let script = format!(
            "mount -t sysfs sysfs /sys && for f in /sys/class/net/{link}/queues/rx-*/rps_cpus; do echo 3 > $f; done"
        );
        let arguments = ["--mount", "--propagation", "private", "sh", "-c", &script];
        process::run(Some(netns), "unshare", &arguments)
    };
    for (node, pod) in cluster.nodes().iter().zip(pods) {
        set(node.netns(), "eth0")?;
        set(node.netns(), &pod.attachment().host_device)?;
        set(pod.netns(), "eth0")?;
    }
    Ok(())
}

//! What differs from kernel to kernel: a short proof that packets are fast, for every kernel that is tried, and traffic
//! that only some kernels know.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path as FilePath;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lab::traffic::icmp::Pinger;
use lab::traffic::rtt::{EchoServer, Transport, round_trips};
use lab::traffic::tcp::{self, TcpPlan};
use lab::wait::patient;
use lab::{Cluster, ClusterConfig, Netns, Node, NodeConfig, process, underlay};
use rustix::net::{AddressFamily, SocketType, bind, connect, ipproto, listen, socket, sockopt};

use crate::service_pair::{Pair, with_pair};
use crate::support::{Outcome, Setting, shell, wait_pods_served, with_cluster};

/// How long a request may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);
/// Requests of one look at the counters.
const TRIPS: u64 = 300;
/// How many of them may miss the fast path at each hook: handshake and end.
const FEW: u64 = 10;
/// How long a flow may take to be fast: the agent may still be hearing of the pods' arrival, and emulated processors are
/// slow.
const SETTLED: Duration = Duration::from_secs(20);
/// How many bytes one stream sends.
const STREAM: u64 = 2_000_000;

/// Ping and a stream arrive, and nearly all packets of a connection are fast at all four hooks on their way.
pub(crate) fn both_directions_are_fast(setting: Setting) -> Outcome {
    with_pair(setting.pair(), |pair| {
        ping(pair.client.netns(), pair.server.address())?;
        all_legs_are_fast(pair)?;
        for (from, to) in [(&pair.client, &pair.server), (&pair.server, &pair.client)] {
            let before = pair.count()?;
            let plan = TcpPlan {
                bytes: STREAM,
                rate: None,
            };
            let report = tcp::run(from, to, plan)?;
            ensure!(
                report.is_intact() && report.received == STREAM,
                "{report:?}"
            );
            let fast = pair.count()?.since(&before);
            ensure!(
                fast.iter().all(|packets| *packets > 0),
                "a stream that was not fast: {fast:?}"
            );
        }
        Ok(())
    })
}

/// Sends requests until nearly all of them, and of their answers, are fast.
fn all_legs_are_fast(pair: &Pair<'_>) -> Outcome {
    let start = Instant::now();
    loop {
        let before = pair.count()?;
        let mut flow = pair.open(pair.direct(), Transport::Tcp, 0, patient(LIMIT))?;
        for _ in 0..TRIPS {
            flow.ask()?;
        }
        flow.close()?;
        let now = pair.count()?;
        let fast = now.since(&before);
        if fast.iter().all(|packets| *packets >= TRIPS - FEW) {
            return Ok(());
        }
        ensure!(
            start.elapsed() < patient(SETTLED),
            "of {TRIPS} requests not all were fast: {fast:?}: {:?}",
            now.all_since(&before)
        );
    }
}

fn ping(from: &Netns, target: Ipv4Addr) -> Outcome {
    let times = Pinger::new(from)?.round(&[target], patient(LIMIT))?;
    ensure!(times[0].is_some(), "no answer from {target}");
    Ok(())
}

/// A mark that the node puts on what comes from other nodes does not follow a fast packet into its pod: older kernels
/// take nothing off a packet that a program hands over.
pub(crate) fn marks_of_the_node_stay_on_it(setting: Setting) -> Outcome {
    /// A bit that nobody else uses.
    const MARK: &str = "0x8000/0x8000";
    let mut agent = setting.agent();
    // The VXLAN device keeps the mark of what it takes packets out of.
    agent.arguments.push("--fast-path-ingress=vtep".into());
    let nodes = vec![NodeConfig::agent(&agent), NodeConfig::agent(&agent)];
    with_cluster(setting.cluster(nodes), |cluster| {
        let (from, to) = (cluster.node(1), cluster.node(2));
        let (client, server) = (from.pods().remove(0), to.pods().remove(0));
        shell(
            to,
            &format!(
                "iptables -w -t mangle -A PREROUTING -i eth0 -p udp -j MARK --set-mark {MARK}"
            ),
        )?;
        process::run(
            Some(server.netns()),
            "iptables",
            &["-w", "-A", "INPUT", "-m", "mark", "--mark", MARK],
        )?;
        let echo = EchoServer::start(server.netns())?;
        let address = SocketAddr::new(server.address().into(), echo.port());
        let before = to.agent().status()?.fast_path.counters;
        let start = Instant::now();
        loop {
            round_trips(&client, address, Transport::Tcp, TRIPS as usize, 64, LIMIT)?;
            let counted = to.agent().status()?.fast_path.counters.since(&before);
            if counted.fast_ingress > TRIPS {
                break;
            }
            ensure!(start.elapsed() < SETTLED, "not fast: {counted:?}");
        }
        let marked = process::run(
            Some(to.netns()),
            "iptables",
            &["-t", "mangle", "-nvxL", "PREROUTING"],
        )?;
        let seen = process::run(Some(server.netns()), "iptables", &["-nvxL", "INPUT"])?;
        ensure!(packets(&marked) > 0, "no packet was marked: {marked}");
        ensure!(
            packets(&seen) == 0,
            "the pod sees the node's mark: {seen}, marked: {marked}"
        );
        Ok(())
    })
}

/// Packets that met the one rule of a chain that iptables lists.
fn packets(listing: &str) -> u64 {
    let rule = listing.lines().nth(2).unwrap_or_default();
    let count = rule.split_whitespace().next().unwrap_or_default();
    count.parse().unwrap_or_default()
}

/// The VLAN of the nodes, and one within it.
const TAG: u16 = 100;
const INNER_TAG: u16 = 200;

/// There once the kernel has VLANs.
const VLANS: &str = "/proc/net/vlan";

/// What is missing for VLANs.
pub(crate) fn lacks_vlan() -> Option<&'static str> {
    is_absent(VLANS, "8021q").then_some("the kernel has no VLANs (CONFIG_VLAN_8021Q)")
}

/// Whether something of the kernel is not there, even as a module.
pub(crate) fn is_absent(path: &str, module: &str) -> bool {
    let path = FilePath::new(path);
    if !path.exists() {
        // A module on most distributions. If it is not there either, the path still does not exist.
        process::run(None, "modprobe", &[module]).ok();
    }
    !path.exists()
}

/// Nodes that reach each other by a tagged interface are fast; frames with a further tag, which pass that interface too,
/// are left to the kernel, which delivers them.
pub(crate) fn tagged_uplink(setting: Setting) -> Outcome {
    // A node that moves to another address gets another lease, so pods come after that.
    let config = ClusterConfig {
        pods: 0,
        ..setting.pair()
    };
    with_cluster(config, |cluster| {
        let nodes: [&Node; 2] = [cluster.node(1), cluster.node(2)];
        for node in nodes {
            move_to_tagged(cluster, node)?;
        }
        for (node, other) in nodes.into_iter().zip(nodes.into_iter().rev()) {
            let address = tagged_address(other, TAG).to_string();
            node.agent()
                .wait_status("the peer's tagged address", |status| {
                    status.ready && status.peers.iter().any(|peer| peer.public_ip == address)
                })?;
        }
        let (client, server) = (nodes[0].add_pod()?, nodes[1].add_pod()?);
        for node in nodes {
            wait_pods_served(node)?;
        }
        let pair = Pair::of(nodes, client, server)?;
        all_legs_are_fast(&pair)?;

        let before = pair.count()?;
        let inner = tagged_address(pair.server_node, INNER_TAG);
        ping(pair.client_node.netns(), inner)?;
        for counted in pair.count()?.all_since(&before) {
            let tagged = counted.declined.get("nic_ingress/vlan").copied();
            ensure!(tagged.unwrap_or_default() > 0, "{counted:?}");
        }
        Ok(())
    })
}

/// Gives the node's agent a tagged interface instead of its own, and its former address' lease back.
fn move_to_tagged(cluster: &Cluster, node: &Node) -> Outcome {
    node.agent().stop()?;
    let lease = node.subnet_env()?.subnet.key();
    cluster
        .etcd()
        .delete(&format!("{}/subnets/{lease}", lab::etcd::PREFIX))?;
    // There is none for host-gw.
    shell(node, "ip link delete flannel.1 2>/dev/null || true")?;
    let outer = add_tagged(node, "eth0", TAG)?;
    add_tagged(node, &outer, INNER_TAG)?;
    node.agent().configure(|config| config.interface = outer);
    node.agent().start()?;
    Ok(())
}

/// Adds an interface for a VLAN upon another, with an address that tells node and VLAN; returns its name.
fn add_tagged(node: &Node, upon: &str, tag: u16) -> anyhow::Result<String> {
    let name = format!("{upon}.{tag}");
    let address = tagged_address(node, tag);
    underlay::ip_batch(
        node.netns(),
        &format!(
            "link add link {upon} name {name} type vlan id {tag}\n\
             address add {address}/24 dev {name}\n\
             link set {name} up\n"
        ),
    )?;
    Ok(name)
}

fn tagged_address(node: &Node, tag: u16) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, tag as u8, node.number())
}

/// Whether the kernel has no SCTP.
pub(crate) fn lacks_sctp() -> Option<&'static str> {
    sctp_socket()
        .is_err()
        .then_some("the kernel has no SCTP (CONFIG_IP_SCTP)")
}

fn sctp_socket() -> rustix::io::Result<OwnedFd> {
    socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::SCTP))
}

/// SCTP between pods arrives, by the kernel alone.
pub(crate) fn sctp_is_the_kernels(setting: Setting) -> Outcome {
    const PORT: u16 = 5001;
    with_cluster(setting.pair(), |cluster| {
        let [from, to] = cluster.nodes() else {
            unreachable!("two nodes were asked for")
        };
        let (client, server) = (from.pods().remove(0), to.pods().remove(0));
        let counters = || -> anyhow::Result<_> {
            Ok([from.agent().status()?, to.agent().status()?]
                .map(|status| status.fast_path.counters))
        };
        let before = counters()?;
        let target = SocketAddrV4::new(server.address(), PORT);
        let listener = server.netns().run(|| -> rustix::io::Result<_> {
            let socket = sctp_socket()?;
            bind(&socket, &target)?;
            listen(&socket, 1)?;
            // Sockets of either protocol are read, written and accepted by the same calls.
            Ok(TcpListener::from(socket))
        })??;
        let echo = thread::spawn(move || -> std::io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(patient(LIMIT)))?;
            let mut request = [0; 1000];
            stream.read_exact(&mut request)?;
            stream.write_all(&request)
        });
        let mut stream = client
            .netns()
            .run(|| -> rustix::io::Result<_> {
                let socket = sctp_socket()?;
                sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(patient(LIMIT)))?;
                connect(&socket, &SocketAddr::from(target))?;
                Ok(TcpStream::from(socket))
            })?
            .context("association")?;
        stream.set_read_timeout(Some(patient(LIMIT)))?;
        let sent: Vec<u8> = (0..1000).map(|number| number as u8).collect();
        stream.write_all(&sent)?;
        let mut answer = vec![0; sent.len()];
        stream.read_exact(&mut answer).context("the echo")?;
        ensure!(answer == sent, "the echo is not what was sent");
        echo.join().expect("the echo does not panic")?;
        let now = counters()?;
        for (end, (now, before)) in now.iter().zip(&before).enumerate() {
            let counted = now.since(before);
            let named = |name| counted.declined.get(name).copied().unwrap_or_default();
            // INIT, COOKIE ECHO, DATA and their answers.
            ensure!(
                named("pod_egress/protocol") >= 3
                    && counted.fast_egress == 0
                    && counted.fast_ingress == 0,
                "node {end}: {counted:?}"
            );
        }
        Ok(())
    })
}

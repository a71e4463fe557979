//! What runs between the pods: of every kind something, in both directions.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use lab::{
    Cluster, Netns, Node, Pod,
    services::{self, Service},
    traffic::{
        icmp::Pinger,
        rtt::Transport,
        whoami::{Questioner, WhoAmI},
    },
    underlay::Segment,
};
use rustix::net::sockopt;

use super::traffic::{Builder, Gauge, Traffic};
use crate::pair::first_pod;
use crate::support::Outcome;

/// The port that every pod answers at.
const PORT: u16 = 8080;
/// The port of the machine outside.
const OUTSIDE: u16 = 8090;
/// Pause between datagrams, each way.
const DATAGRAMS: Duration = Duration::from_millis(2);
/// Pause between pings, questions and connections of a kind.
const PAUSE: Duration = Duration::from_millis(20);
/// How long an answer may take. Later ones are broken connections.
const LIMIT: Duration = Duration::from_secs(5);
/// Linux sends a SYN again after a second (RFC 6298 section 2): a connection that takes so long has lost a packet.
const SYN_AGAIN: Duration = Duration::from_millis(990);
/// Bytes of a datagram, whose first eight are its number.
const SIZE: usize = 64;
/// Receive buffer in bytes.
const BUFFER: usize = 16 << 20;
/// Services beside those that are asked.
const FILLERS: usize = 20;

/// Servers on pods and outside; they answer until this is dropped.
pub(crate) struct Servers(#[expect(dead_code, reason = "they end when dropped")] Vec<WhoAmI>);

/// Starts all flows among the pods of three nodes. The first two are each other's peers in everything; the third has
/// datagrams and streams with the first.
pub(crate) fn start(cluster: &Cluster) -> anyhow::Result<(Traffic, Servers)> {
    let nodes = cluster.nodes();
    let pods = nodes.iter().map(|node| first_pod(node));
    let pods: Vec<Pod> = pods.collect::<anyhow::Result<_>>()?;
    let mut servers = vec![WhoAmI::start(cluster.switch(), "outside", OUTSIDE)?];
    for (node, pod) in nodes.iter().zip(&pods) {
        servers.push(WhoAmI::start(pod.netns(), node.name(), PORT)?);
    }
    let services: Vec<SocketAddrV4> = (1..=2)
        .map(|number| SocketAddrV4::new(Ipv4Addr::new(10, 96, 200, number), 80))
        .collect();
    for node in nodes {
        kube_proxy(node, &services, &pods)?;
    }
    let outside = SocketAddrV4::new(Segment::First.gateway(), OUTSIDE);
    let mut flows = Builder::new();
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0)] {
        let (source, target) = (&pods[from], &pods[to]);
        let name = |kind: &str| format!("{kind} {} → {}", nodes[from].name(), nodes[to].name());
        flows.stream(name("stream"), source, target)?;
        if from < to {
            let back = format!("datagrams {} → {}", nodes[to].name(), nodes[from].name());
            datagrams(&mut flows, [source, target], [name("datagrams"), back])?;
        }
    }
    for (from, to) in [(0, 1), (1, 0)] {
        let (netns, own) = (pods[from].netns(), pods[from].address());
        let target = pods[to].address();
        let name = |kind: &str| format!("{kind} {} → {}", nodes[from].name(), nodes[to].name());
        pings(&mut flows, name("ping"), netns, target)?;
        let straight = Expected {
            server: nodes[to].name().to_owned(),
            client: own,
        };
        let masqueraded = Expected {
            server: "outside".to_owned(),
            client: nodes[from].address(),
        };
        let direct = SocketAddrV4::new(target, PORT);
        connections(
            &mut flows,
            name("connections"),
            netns,
            direct,
            straight.clone(),
        );
        let kind = format!("service {} → {}", nodes[from].name(), nodes[to].name());
        questions(&mut flows, kind, netns, services[to], straight)?;
        let kind = format!("{} → outside", nodes[from].name());
        questions(&mut flows, kind, netns, outside, masqueraded)?;
    }
    let ends = pods.iter().map(Pod::netns).chain([cluster.switch()]);
    let traffic = flows.watch(ends.cloned().collect())?;
    Ok((traffic, Servers(servers)))
}

/// kube-proxy's rules for a service on each of the first two pods, and its rule against what conntrack calls invalid.
fn kube_proxy(node: &Node, services: &[SocketAddrV4], pods: &[Pod]) -> Outcome {
    let mut all = services::filler(FILLERS);
    for (number, (service, pod)) in services.iter().zip(pods).enumerate() {
        let endpoint = SocketAddrV4::new(pod.address(), PORT);
        all.push(Service::new(format!("s{number}"), *service, vec![endpoint]));
    }
    services::install(node.netns(), &all)?;
    crate::support::shell(
        node,
        "iptables -w -I FORWARD -m conntrack --ctstate INVALID -j DROP",
    )?;
    Ok(())
}

/// Packets that conntrack has called invalid on a node, and that were dropped for it.
pub(crate) fn invalid(node: &Node) -> anyhow::Result<u64> {
    let count = "iptables -w -nvxL FORWARD | awk '/INVALID/ { print $1 }'";
    let printed = crate::support::shell(node, count)?;
    printed.trim().parse().context("a count of packets")
}

/// Numbered datagrams both ways on one flow.
fn datagrams(flows: &mut Builder, pods: [&Pod; 2], names: [String; 2]) -> Outcome {
    let bind = |pod: &Pod| -> anyhow::Result<UdpSocket> {
        let socket = pod.netns().run(|| UdpSocket::bind((pod.address(), 0)))??;
        socket.set_read_timeout(Some(PAUSE))?;
        // A busy machine must not look like a lossy network.
        sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)?;
        Ok(socket)
    };
    let ends = [bind(pods[0])?, bind(pods[1])?];
    ends[0].connect(ends[1].local_addr()?)?;
    ends[1].connect(ends[0].local_addr()?)?;
    for ((from, to), name) in [(0, 1), (1, 0)].into_iter().zip(names) {
        let gauge = flows.gauge(name);
        let (source, sink) = (ends[from].try_clone()?, ends[to].try_clone()?);
        let mut number = 0_u64;
        let sender = gauge.clone();
        flows.repeat(DATAGRAMS, move || {
            let mut packet = [0; SIZE];
            packet[..8].copy_from_slice(&number.to_be_bytes());
            number += 1;
            match source.send(&packet) {
                Ok(_) => true,
                Err(error) => {
                    sender.failed(format!("datagram {number} was refused: {error}"));
                    false
                }
            }
        });
        let mut next = 0_u64;
        let mut lost = 0;
        flows.repeat(Duration::ZERO, move || {
            let mut packet = [0; SIZE];
            let Ok(SIZE) = sink.recv(&mut packet) else {
                return true; // nothing in time
            };
            let mut number = [0; 8];
            number.copy_from_slice(&packet[..8]);
            let number = u64::from_be_bytes(number);
            if number < next {
                gauge.failed(format!(
                    "datagram {number} came after {}, or twice",
                    next - 1
                ));
                return false;
            }
            lost += number - next;
            next = number + 1;
            gauge.lost(lost);
            gauge.arrived();
            true
        });
    }
    Ok(())
}

/// Echo requests, one at a time.
fn pings(flows: &mut Builder, name: String, netns: &Netns, to: Ipv4Addr) -> Outcome {
    let mut pinger = Pinger::new(netns)?;
    let gauge = flows.gauge(name);
    let mut lost = 0;
    flows.repeat(PAUSE, move || {
        match pinger.round(&[to], LIMIT) {
            Ok(times) if times[0].is_some() => gauge.arrived(),
            Ok(_) => {
                lost += 1;
                gauge.lost(lost);
            }
            Err(error) => gauge.failed(error.to_string()),
        }
        true
    });
    Ok(())
}

/// Who must answer, and whom for.
#[derive(Clone)]
struct Expected {
    server: String,
    client: Ipv4Addr,
}

impl Expected {
    /// Asks once, and tells the gauge.
    fn ask(&self, questioner: &mut Questioner, gauge: &Gauge) -> bool {
        match questioner.ask() {
            Ok(answer) if answer.server == self.server && *answer.client.ip() == self.client => {
                gauge.arrived();
                true
            }
            Ok(answer) => {
                gauge.failed(format!("answered by {answer:?}"));
                false
            }
            Err(error) => {
                gauge.failed(error.to_string());
                false
            }
        }
    }
}

/// A new connection each time, for one question.
fn connections(
    flows: &mut Builder,
    name: String,
    netns: &Netns,
    to: SocketAddrV4,
    expected: Expected,
) {
    let gauge = flows.gauge(name);
    let netns = netns.clone();
    let mut lost = 0;
    flows.repeat(PAUSE, move || {
        let begun = Instant::now();
        let mut questioner = match Questioner::open(&netns, to, Transport::Tcp, 0, LIMIT) {
            Ok(questioner) => questioner,
            Err(error) => {
                gauge.failed(error.to_string());
                return false;
            }
        };
        if begun.elapsed() >= SYN_AGAIN {
            lost += 1;
            gauge.lost(lost);
        }
        expected.ask(&mut questioner, &gauge) && {
            if let Err(error) = questioner.close() {
                gauge.failed(error.to_string());
            }
            true
        }
    });
}

/// One connection, and a question every so often.
fn questions(
    flows: &mut Builder,
    name: String,
    netns: &Netns,
    to: SocketAddrV4,
    expected: Expected,
) -> Outcome {
    let gauge = flows.gauge(name);
    let mut questioner = Questioner::open(netns, to, Transport::Tcp, 0, LIMIT)?;
    flows.repeat(PAUSE, move || expected.ask(&mut questioner, &gauge));
    Ok(())
}

//! A pod on each of two nodes, and traffic between them that both sides take part in, as flows must be to turn fast.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use lab::{Agent, Cluster, Node, Pod, status::Counters};

use crate::support::{Outcome, Setting, eventually, with_cluster};

/// How long a request may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);
/// How long a flow may take to turn fast.
const TURNS_FAST: Duration = Duration::from_secs(10);
/// Pause between requests of a flow that is waited for.
const PAUSE: Duration = Duration::from_millis(2);
/// Bytes of a request.
const REQUEST: usize = 64;

/// Two nodes with a pod each.
pub(crate) struct Pair<'a> {
    pub(crate) nodes: [&'a Node; 2],
    pub(crate) pods: [Pod; 2],
}

impl<'a> Pair<'a> {
    pub(crate) fn of(cluster: &'a Cluster) -> anyhow::Result<Self> {
        let [first, second, ..] = cluster.nodes() else {
            bail!("two nodes were asked for");
        };
        Ok(Self {
            nodes: [first, second],
            pods: [first_pod(first)?, first_pod(second)?],
        })
    }

    /// What both nodes have counted.
    pub(crate) fn counters(&self) -> anyhow::Result<[Counters; 2]> {
        Ok([counters(self.nodes[0])?, counters(self.nodes[1])?])
    }

    /// What both nodes have counted after `before`.
    pub(crate) fn since(&self, before: &[Counters; 2]) -> anyhow::Result<[Counters; 2]> {
        let now = self.counters()?;
        Ok([now[0].since(&before[0]), now[1].since(&before[1])])
    }
}

/// Two nodes with agents that have further arguments.
pub(crate) fn with_pair(
    setting: Setting,
    arguments: &[&str],
    test: impl FnOnce(&Pair<'_>) -> Outcome,
) -> Outcome {
    let mut agent = setting.agent();
    agent
        .arguments
        .extend(arguments.iter().map(|&it| it.into()));
    let node = || lab::NodeConfig::agent(&agent);
    with_cluster(setting.cluster(vec![node(), node()]), |cluster| {
        test(&Pair::of(cluster)?)
    })
}

pub(crate) fn first_pod(node: &Node) -> anyhow::Result<Pod> {
    node.pods().first().cloned().context("a node without a pod")
}

pub(crate) fn agent(node: &Node) -> anyhow::Result<&Agent> {
    node.try_agent().context("a node without an agent")
}

pub(crate) fn counters(node: &Node) -> anyhow::Result<Counters> {
    Ok(agent(node)?.status()?.fast_path.counters)
}

/// Packets that the hooks behind the kernel have counted under this name.
pub(crate) fn learned(counters: &Counters, outcome: &str) -> u64 {
    sum(&counters.attest, outcome)
}

/// Packets that the hooks in front of the kernel have left to it under this name.
pub(crate) fn declined(counters: &Counters, outcome: &str) -> u64 {
    sum(&counters.declined, outcome)
}

fn sum(counters: &std::collections::BTreeMap<String, u64>, outcome: &str) -> u64 {
    let named = counters
        .iter()
        .filter(|(name, _)| name.rsplit('/').next() == Some(outcome));
    named.map(|(_, count)| count).sum()
}

/// Whether packets were fast at both nodes, out and in.
pub(crate) fn all_fast(counted: &[Counters; 2], packets: u64) -> bool {
    counted
        .iter()
        .all(|node| node.fast_egress >= packets && node.fast_ingress >= packets)
}

/// A connection between the two pods. The first pod's end is the first.
pub(crate) struct Connection {
    pub(crate) ends: [TcpStream; 2],
}

impl Connection {
    /// Connects the first pod to the second, from the given port if it is not zero, to the given one.
    pub(crate) fn open(pair: &Pair<'_>, from: u16, to: u16) -> anyhow::Result<Self> {
        let [client, server] = &pair.pods;
        let listener = server
            .netns()
            .run(|| reusable_listener(to))?
            .context("listen")?;
        let target = SocketAddr::new(server.address().into(), listener.local_addr()?.port());
        let stream = client
            .netns()
            .run(|| connect_from(from, target))?
            .with_context(|| format!("connect from port {from}"))?;
        // The last packet of the handshake may be lost.
        listener.set_nonblocking(true)?;
        let mut accepted = None;
        eventually("a connection", LIMIT, || {
            accepted = listener.accept().ok();
            Ok(accepted.as_ref().map(drop).ok_or_else(|| "none".into()))
        })?;
        let (accepted, _) = accepted.context("no connection")?;
        accepted.set_nonblocking(false)?;
        for end in [&stream, &accepted] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(LIMIT))?;
            end.set_write_timeout(Some(LIMIT))?;
        }
        Ok(Self {
            ends: [stream, accepted],
        })
    }

    /// The ports of both ends.
    pub(crate) fn ports(&self) -> anyhow::Result<[u16; 2]> {
        Ok([
            self.ends[0].local_addr()?.port(),
            self.ends[1].local_addr()?.port(),
        ])
    }

    /// A request and its answer.
    pub(crate) fn exchange(&mut self) -> Outcome {
        let [client, server] = &mut self.ends;
        pass(client, server)?;
        pass(server, client)
    }

    /// Sends from one end to the other: `from` is the number of the end.
    pub(crate) fn send(&mut self, from: usize, bytes: usize) -> Outcome {
        let [first, second] = &mut self.ends;
        let (from, to) = if from == 0 {
            (first, second)
        } else {
            (second, first)
        };
        let mut sender = from.try_clone()?;
        thread::scope(|scope| {
            let sent = scope.spawn(move || sender.write_all(&vec![7; bytes]));
            let mut rest = bytes;
            let mut buffer = vec![0; 64 << 10];
            while rest > 0 {
                let length = to.read(&mut buffer).context("receive")?;
                ensure!(length > 0, "ended with {rest} bytes to come");
                ensure!(buffer[..length].iter().all(|byte| *byte == 7), "altered");
                rest -= length;
            }
            sent.join().expect("no panic").context("send")?;
            Ok(())
        })
    }
}

fn pass(from: &mut TcpStream, to: &mut TcpStream) -> Outcome {
    let mut received = [0; REQUEST];
    from.write_all(&[1; REQUEST]).context("send")?;
    to.read_exact(&mut received).context("receive")?;
    ensure!(received == [1; REQUEST], "altered");
    Ok(())
}

/// Repeats `exchange` until packets are fast at both nodes, out and in.
pub(crate) fn until_fast(pair: &Pair<'_>, exchange: impl FnMut() -> Outcome) -> Outcome {
    until_fast_at(pair, &[0, 1], exchange)
}

/// As [`until_fast`], at these nodes.
pub(crate) fn until_fast_at(
    pair: &Pair<'_>,
    nodes: &[usize],
    mut exchange: impl FnMut() -> Outcome,
) -> Outcome {
    const ENOUGH: u64 = 20;
    let start = Instant::now();
    let mut before = pair.counters()?;
    loop {
        for _ in 0..2 * ENOUGH {
            exchange()?;
            thread::sleep(PAUSE);
        }
        let counted = pair.since(&before)?;
        let fast = |node: &usize| {
            let node = &counted[*node];
            node.fast_egress >= ENOUGH && node.fast_ingress >= ENOUGH
        };
        if nodes.iter().all(fast) {
            return Ok(());
        }
        ensure!(
            start.elapsed() < TURNS_FAST,
            "not fast after {:?}: {counted:?}",
            start.elapsed()
        );
        before = pair.counters()?;
    }
}

fn reusable_listener(port: u16) -> std::io::Result<TcpListener> {
    // The standard library sets SO_REUSEADDR, so a port in TIME_WAIT can be had again.
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
}

/// Connects from a port that may still be in TIME_WAIT.
fn connect_from(port: u16, to: SocketAddr) -> std::io::Result<TcpStream> {
    use rustix::net::{
        AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt,
    };
    let kind = SocketType::STREAM;
    let socket = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // That of the handshake too (socket(7)).
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(LIMIT))?;
    bind(
        &socket,
        &SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
    )?;
    connect(&socket, &to)?;
    Ok(socket.into())
}

/// Datagrams between the two pods, on one flow. The first pod's end is the first.
pub(crate) struct Datagrams {
    ends: [UdpSocket; 2],
}

/// What became of numbered datagrams.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
}

impl Datagrams {
    /// Opens both ends, on the given ports or on free ones if these are zero.
    pub(crate) fn open(pair: &Pair<'_>, ports: [u16; 2]) -> anyhow::Result<Self> {
        let bound = |end: usize| -> anyhow::Result<UdpSocket> {
            let pod = &pair.pods[end];
            let bind = || UdpSocket::bind((pod.address(), ports[end]));
            // What another test starts in this moment may still hold the socket that had the port.
            let start = Instant::now();
            let socket = loop {
                match pod.netns().run(bind)? {
                    Err(error)
                        if error.kind() == ErrorKind::AddrInUse && start.elapsed() < LIMIT =>
                    {
                        thread::sleep(PAUSE);
                    }
                    bound => break bound?,
                }
            };
            socket.set_read_timeout(Some(LIMIT))?;
            Ok(socket)
        };
        let ends = [bound(0)?, bound(1)?];
        ends[0].connect(ends[1].local_addr()?)?;
        ends[1].connect(ends[0].local_addr()?)?;
        Ok(Self { ends })
    }

    /// The ports of both ends.
    pub(crate) fn ports(&self) -> anyhow::Result<[u16; 2]> {
        Ok([
            self.ends[0].local_addr()?.port(),
            self.ends[1].local_addr()?.port(),
        ])
    }

    /// A request and its answer.
    pub(crate) fn exchange(&self) -> Outcome {
        let mut buffer = [0; REQUEST];
        for (from, to) in [(0, 1), (1, 0)] {
            self.ends[from].send(&[2; REQUEST]).context("send")?;
            self.ends[to].recv(&mut buffer).context("receive")?;
        }
        Ok(())
    }

    /// Sends numbered datagrams from one end every `pause` for as long as `during` takes, and sees what the other gets.
    pub(crate) fn numbered(
        &self,
        from: usize,
        pause: Duration,
        during: impl FnOnce() -> Outcome,
    ) -> anyhow::Result<Received> {
        /// After so long nothing comes any more.
        const QUIET: Duration = Duration::from_millis(500);
        let (source, sink) = (&self.ends[from], &self.ends[1 - from]);
        let done = std::sync::atomic::AtomicBool::new(false);
        let over = || done.load(std::sync::atomic::Ordering::Relaxed);
        sink.set_read_timeout(Some(QUIET))?;
        let received = thread::scope(|scope| {
            let sender = scope.spawn(|| -> anyhow::Result<u64> {
                let mut number = 0u64;
                while !over() {
                    match source.send(&number.to_be_bytes()) {
                        Ok(_) => number += 1,
                        // What ICMP has said of an earlier one.
                        Err(error) if error.kind() == ErrorKind::HostUnreachable => {}
                        Err(error) => return Err(error).context("send"),
                    }
                    thread::sleep(pause);
                }
                Ok(number)
            });
            let receiver = scope.spawn(|| -> anyhow::Result<Received> {
                let mut seen = BTreeSet::new();
                let mut received = Received::default();
                let mut buffer = [0; 8];
                loop {
                    match sink.recv(&mut buffer) {
                        Ok(_) => {
                            let number = u64::from_be_bytes(buffer);
                            received.reordered +=
                                u64::from(seen.last().is_some_and(|last| *last > number));
                            received.duplicated += u64::from(!seen.insert(number));
                        }
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            if over() {
                                received.lost = seen.len() as u64;
                                return Ok(received);
                            }
                        }
                        Err(error) => return Err(error).context("receive"),
                    }
                }
            });
            let result = during();
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            let sent = sender.join().expect("no panic")?;
            let mut received = receiver.join().expect("no panic")?;
            result?;
            received.sent = sent;
            received.lost = sent - received.lost;
            anyhow::Ok(received)
        })?;
        sink.set_read_timeout(Some(LIMIT))?;
        Ok(received)
    }
}

impl Received {
    /// Asserts that each datagram arrived once and in order.
    pub(crate) fn intact(&self) -> Outcome {
        ensure!(
            self.sent > 0 && self.lost + self.duplicated + self.reordered == 0,
            "not all datagrams arrived once and in order: {self:?}"
        );
        Ok(())
    }
}

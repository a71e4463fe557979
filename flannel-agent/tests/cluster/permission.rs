//! What the kernel was told to do to flows between pods, and that the permitted fast path never gets past it: service
//! NAT and policies.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lab::{
    Node, Pod,
    services::{self, Service},
    status::Counters,
    traffic::rtt::{EchoServer, Transport, round_trips},
};

use crate::support::{Outcome, Path, Setting, shell, with_cluster};

/// The cluster address of the service under test; no filler has it.
pub(crate) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 200, 1);
/// Its port.
pub(crate) const SERVICE_PORT: u16 = 80;
/// Services beside it.
const FILLERS: usize = 20;
/// Round trips of one check: for longer than the agent takes to hear of new pods.
const TRIPS: usize = 20_000;
/// How long a request may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);
/// How long an answer may take that is not lost.
pub(crate) const ANSWER: Duration = Duration::from_millis(300);
/// After so long conntrack calls an answered UDP flow assured.
pub(crate) const ASSURED: Duration = Duration::from_millis(2500);
/// How long a flow may stay fast after the kernel has been told to drop it: revalidation and grace at their defaults,
/// and some time to notice.
const REVOKED: Duration = Duration::from_millis(2500 + 300);

/// By then the agent has heard of all that the pods' arrival has changed.
const SETTLED: Duration = Duration::from_millis(500);

/// A client on one node, a server on another.
pub(crate) struct Pair<'a> {
    pub(crate) client_node: &'a Node,
    pub(crate) server_node: &'a Node,
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    pub(crate) echo: EchoServer,
}

impl Pair<'_> {
    pub(crate) fn direct(&self) -> SocketAddr {
        SocketAddr::new(self.server.address().into(), self.echo.port())
    }

    pub(crate) fn service(&self) -> SocketAddr {
        SocketAddr::new(SERVICE.into(), SERVICE_PORT)
    }

    /// Loads kube-proxy's rules on both nodes, as every node has them, for TCP; UDP is a rule beside.
    fn install_service(&self) -> Outcome {
        let port = self.echo.port();
        let endpoint = SocketAddrV4::new(self.server.address(), port);
        let mut all = services::filler(FILLERS);
        all.push(Service {
            name: "echo".into(),
            cluster: SocketAddrV4::new(SERVICE, SERVICE_PORT),
            endpoints: vec![endpoint],
        });
        for node in [self.client_node, self.server_node] {
            services::install(node.netns(), &all)?;
            let udp = format!(
                "iptables -w -t nat -I PREROUTING -d {SERVICE}/32 -p udp --dport {SERVICE_PORT} -j DNAT --to-destination {endpoint}"
            );
            shell(node, &udp)?;
        }
        Ok(())
    }

    pub(crate) fn counters(&self) -> anyhow::Result<[Counters; 2]> {
        Ok([counters(self.client_node)?, counters(self.server_node)?])
    }
}

fn counters(node: &Node) -> anyhow::Result<Counters> {
    let agent = node.try_agent().context("a node without an agent")?;
    Ok(agent.status()?.fast_path.counters)
}

pub(crate) fn with_pair(setting: Setting, test: impl FnOnce(&Pair<'_>) -> Outcome) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let [client_node, server_node] = cluster.nodes() else {
            bail!("two nodes were asked for");
        };
        let pod = |node: &Node| node.pods().first().cloned().context("a node without a pod");
        let server = pod(server_node)?;
        test(&Pair {
            client_node,
            server_node,
            client: pod(client_node)?,
            echo: EchoServer::start(server.netns())?,
            server,
        })
    })
}

/// Which of a flow's four legs are fast: out and in at the client's node, out and in at the server's.
pub(crate) type Legs = [bool; 4];

/// A flow between pods that nobody touches.
pub(crate) const DIRECT: Legs = [true, true, true, true];
/// A flow to a service: translated at the client's node, plain at the server's.
pub(crate) const CLUSTER_IP: Legs = [false, false, true, true];

/// Asserts which legs carried packets since `before`.
pub(crate) fn assert_legs(
    pair: &Pair<'_>,
    path: Path,
    before: &[Counters; 2],
    expected: Legs,
) -> Outcome {
    let now = pair.counters()?;
    let counted = [now[0].since(&before[0]), now[1].since(&before[1])];
    let legs = [
        counted[0].fast_egress > 0,
        counted[0].fast_ingress > 0,
        counted[1].fast_egress > 0,
        counted[1].fast_ingress > 0,
    ];
    let expected = if path == Path::Kernel {
        [false; 4]
    } else {
        expected
    };
    ensure!(
        legs == expected,
        "fast legs {legs:?}, not {expected:?}: {counted:?}"
    );
    Ok(())
}

/// Connections to a service's address work, and only the legs that nobody translates are fast.
pub(crate) fn services_work(setting: Setting) -> Outcome {
    with_pair(setting, |pair| {
        pair.install_service()?;
        let before = pair.counters()?;
        round_trips(
            &pair.client,
            pair.service(),
            Transport::Tcp,
            TRIPS,
            1000,
            LIMIT,
        )?;
        assert_legs(pair, setting.path, &before, CLUSTER_IP).context("to the service")?;
        let before = pair.counters()?;
        round_trips(
            &pair.client,
            pair.direct(),
            Transport::Tcp,
            TRIPS,
            1000,
            LIMIT,
        )?;
        assert_legs(pair, setting.path, &before, DIRECT).context("directly")
    })
}

/// One port, first straight to the pod, then to the service in front of it, and the other way round, after conntrack has
/// forgotten: answers come from whom the question went to.
pub(crate) fn one_port_after_conntrack_forgot(setting: Setting) -> Outcome {
    with_pair(setting, |pair| {
        let before = pair.counters()?;
        take_turns(pair, [false, true, false, true], || {
            for node in [pair.client_node, pair.server_node] {
                // Fails when there is nothing to delete.
                shell(node, "conntrack -D -p udp >/dev/null 2>&1 || true")?;
                let left = shell(node, "conntrack -L -p udp 2>/dev/null")?;
                let left = left.lines().filter(|line| line.contains("ASSURED")).count();
                ensure!(left == 0, "{}: {left} flows are not forgotten", node.name());
            }
            Ok(())
        })?;
        assert_legs(pair, setting.path, &before, DIRECT)
    })
}

/// The same while conntrack remembers the other: to tell the two apart it translates the port of the second.
pub(crate) fn one_port_for_pod_and_service(setting: Setting) -> Outcome {
    with_pair(setting, |pair| {
        take_turns(pair, [true, false, true, false], || Ok(()))
    })
}

/// Asks the service or the pod itself from one port, each for so long that its flow is assured.
fn take_turns(pair: &Pair<'_>, to_service: [bool; 4], between: impl Fn() -> Outcome) -> Outcome {
    pair.install_service()?;
    let socket = pair
        .client
        .netns()
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    socket.set_read_timeout(Some(ANSWER))?;
    for (round, to_service) in to_service.into_iter().enumerate() {
        let target = if to_service {
            pair.service()
        } else {
            pair.direct()
        };
        let start = Instant::now();
        let mut wrong = Vec::new();
        while start.elapsed() < ASSURED {
            if let Err(error) = answered(&socket, target) {
                wrong.push(error.to_string());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        ensure!(
            wrong.is_empty(),
            "round {round}, to {target}: {} wrong: {:?}",
            wrong.len(),
            wrong.first()
        );
        between()?;
    }
    Ok(())
}

/// Asks `target` and wants the answer from there.
pub(crate) fn answered(socket: &UdpSocket, target: SocketAddr) -> anyhow::Result<()> {
    let mut answer = [0; 64];
    socket.send_to(b"question", target)?;
    let (length, from) = socket.recv_from(&mut answer).context("no answer")?;
    ensure!(
        from == target && &answer[..length] == b"question",
        "an answer of {length} bytes from {from}"
    );
    Ok(())
}

/// A rule in front of everything that drops a connection's packets ends it on the fast path too, on either node, and a
/// new connection never gets past it; without the rule it goes on.
pub(crate) fn policies_are_obeyed(setting: Setting) -> Outcome {
    with_pair(setting, |pair| {
        let (client, server) = (pair.client.address(), pair.server.address());
        for node in [pair.client_node, pair.server_node] {
            let connect = || -> anyhow::Result<TcpStream> {
                let to = pair.direct();
                let stream = pair
                    .client
                    .netns()
                    .run(|| TcpStream::connect_timeout(&to, Duration::from_millis(800)))??;
                stream.set_read_timeout(Some(ANSWER))?;
                stream.set_nodelay(true)?;
                Ok(stream)
            };
            let mut stream = connect()?;
            let before = pair.counters()?;
            // The agent may still be hearing of the pods' arrival.
            let start = Instant::now();
            while start.elapsed() < SETTLED {
                exchange(&mut stream)?;
            }
            assert_legs(pair, setting.path, &before, DIRECT)?;
            let rule = format!("FORWARD -s {client} -d {server} -j DROP");
            shell(node, &format!("iptables -w -I {rule}"))?;
            let revoked = Instant::now();
            let ended = loop {
                if exchange(&mut stream).is_err() {
                    break revoked.elapsed().saturating_sub(ANSWER);
                }
                ensure!(
                    revoked.elapsed() < REVOKED,
                    "{}: still carried after {:?}",
                    node.name(),
                    revoked.elapsed()
                );
                std::thread::sleep(Duration::from_millis(5));
            };
            ensure!(ended < REVOKED, "{}: ended after {ended:?}", node.name());
            ensure!(
                connect().is_err(),
                "{}: a new connection got past the policy",
                node.name()
            );
            shell(node, &format!("iptables -w -D {rule}"))?;
            stream.set_read_timeout(Some(LIMIT))?;
            let mut late = [0; 8];
            stream
                .read_exact(&mut late)
                .context("the connection does not go on without the rule")?;
            exchange(&mut stream)?;
        }
        Ok(())
    })
}

/// Sends eight bytes and waits for their echo.
fn exchange(stream: &mut TcpStream) -> anyhow::Result<()> {
    let mut answer = [0; 8];
    stream.write_all(b"question")?;
    match stream.read_exact(&mut answer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => bail!("no answer"),
        other => Ok(other?),
    }
}

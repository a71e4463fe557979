//! The fast path for IPv6, beside IPv4 on the same nodes: what turns fast, what stays the kernel's, and that nothing is lost
//! or altered by it.

mod frames;
mod pair;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::ensure;
use lab::{
    process,
    status::Counters,
    traffic::{
        Host as _,
        rtt::{EchoServer, Transport, round_trips},
        tcp::{self, TcpPlan},
    },
};

pub(crate) use self::frames::frames_are_those_that_the_kernel_sends;
use self::pair::{Asked, Pair, WRONG, with_pair};
use crate::flow::{mostly_fast, of, on_one_processor};
use crate::support::{Outcome, Path, Setting, eventually, shell, udp_arrives};

/// How long a request may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Bytes of a stream.
const STREAM: u64 = 300_000_000;
/// Requests of a connection.
const REQUESTS: usize = 500;
/// Revalidation and grace, together, as they are by default, and some time to spare.
const REVOKED: Duration = Duration::from_millis(2_500 + 300);
/// A service's address: in the pods' network, but in no node's subnet.
const SERVICE: Ipv6Addr = Ipv6Addr::new(0xfd00, 5, 0, 0xffff, 0, 0, 0, 0x10);

/// Streams of aggregates and of single packets are fast in both directions from their handshake on and arrive in order,
/// while the kernel is asked again every 50 ms; those of IPv4 beside them too.
pub(crate) fn streams_are_fast_and_in_order(setting: Setting) -> Outcome {
    for offloads in [true, false] {
        let again = ["--fast-path-revalidate=50ms", "--fast-path-grace=500ms"];
        with_pair(setting, offloads, &again, |pair| {
            let plan = TcpPlan {
                bytes: STREAM,
                rate: None,
            };
            let [from, to] = &pair.ends;
            for ipv6 in [true, false] {
                let before = (pair.counters()?, pair.wrong()?);
                let report = on_one_processor(|| {
                    if ipv6 {
                        tcp::run(from, to, plan)
                    } else {
                        tcp::run(&pair.pods[0], &pair.pods[1], plan)
                    }
                })??;
                ensure!(report.is_intact(), "{report:?}");
                let counted = pair.since(&before.0)?;
                mostly_fast("sender", &counted[0])?;
                mostly_fast("receiver", &counted[1])?;
                // Aggregates are in order by themselves, and so few that some may wait for others.
                if !offloads {
                    ensure!(
                        pair.wrong()? == before.1,
                        "IPv6 {ipv6}: {WRONG:?}: {:?}, before {:?}, {counted:?}",
                        pair.wrong()?,
                        before.1
                    );
                }
                if setting.path == Path::Flow {
                    for counted in &counted {
                        ensure!(of(counted, "probe-done") > 0, "no probe: {counted:?}");
                        ensure!(of(counted, "killed") == 0, "{counted:?}");
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Datagrams that are answered turn fast once conntrack calls them assured, and arrive once, in order and unaltered; those
/// that nobody answers stay the kernel's.
pub(crate) fn datagrams_turn_fast_when_assured(setting: Setting) -> Outcome {
    with_pair(setting, true, &[], |pair| {
        let [from, to] = &pair.ends;
        let before = pair.counters()?;
        udp_arrives(from, to, 500, 999)?;
        let counted = pair.since(&before)?;
        ensure!(counted[0].fast_egress == 0, "nobody answered: {counted:?}");
        let echo = EchoServer::start_for(to.netns(), to.ip())?;
        let flow = Asked::open(from, SocketAddr::new(to.ip(), echo.port()))?;
        flow.until_assured()?;
        let before = pair.counters()?;
        for _ in 0..REQUESTS {
            flow.ask()?;
        }
        let counted = pair.since(&before)?;
        mostly_fast("client", &counted[0])?;
        mostly_fast("server", &counted[1])
    })
}

/// Connections come and go whole, and leave conntrack as the kernel's path leaves it: their first and last packets are the
/// kernel's.
pub(crate) fn connections_close_properly(setting: Setting) -> Outcome {
    with_pair(setting, true, &[], |pair| {
        let [from, to] = &pair.ends;
        let echo = EchoServer::start_for(to.netns(), to.ip())?;
        let address = SocketAddr::new(to.ip(), echo.port());
        let before = pair.counters()?;
        for _ in 0..20 {
            round_trips(from, address, Transport::Tcp, 50, 64, LIMIT)?;
        }
        let counted = pair.since(&before)?;
        mostly_fast_out("client", &counted[0])?;
        mostly_fast_out("server", &counted[1])?;
        for node in pair.nodes {
            let list = format!(
                "conntrack -L -f ipv6 -p tcp --dport {} 2>/dev/null",
                echo.port()
            );
            let entries = shell(node, &list)?;
            let open = entries
                .lines()
                .filter(|line| !line.contains("TIME_WAIT") && !line.contains(" CLOSE "))
                .count();
            ensure!(
                open == 0 && entries.lines().count() >= 20,
                "{}: not closed:\n{entries}",
                node.name()
            );
        }
        Ok(())
    })
}

/// Of short connections too, most packets are fast.
fn mostly_fast_out(what: &str, counted: &Counters) -> Outcome {
    ensure!(counted.fast_egress > 500, "{what}: {counted:?}");
    Ok(())
}

/// A connection to a service is the kernel's where its addresses are rewritten, and fast where they are not; one to the
/// pod itself, from the same port afterwards, is fast everywhere.
pub(crate) fn rewritten_flows_are_the_kernels(setting: Setting) -> Outcome {
    with_pair(setting, true, &[], |pair| {
        let [from, to] = &pair.ends;
        let echo = EchoServer::start_for(to.netns(), to.ip())?;
        let direct = SocketAddr::new(to.ip(), echo.port());
        let service = SocketAddr::new(SERVICE.into(), echo.port());
        shell(
            pair.nodes[0],
            &format!(
                "nft 'add table ip6 services; \
                 add chain ip6 services pre {{ type nat hook prerouting priority dstnat; }}; \
                 add rule ip6 services pre ip6 daddr {SERVICE} dnat to {}'",
                to.ip()
            ),
        )?;
        let before = pair.counters()?;
        round_trips(from, service, Transport::Tcp, REQUESTS, 64, LIMIT)?;
        let [client, server] = pair.since(&before)?;
        ensure!(
            client.fast_egress == 0 && client.fast_ingress == 0,
            "rewritten, but fast: {client:?}"
        );
        mostly_fast("server", &server)?;
        let before = pair.counters()?;
        round_trips(from, direct, Transport::Tcp, REQUESTS, 64, LIMIT)?;
        let counted = pair.since(&before)?;
        mostly_fast("client", &counted[0])?;
        mostly_fast("server", &counted[1])
    })
}

/// A policy that forbids a running flow ends it in time, on the client's node as on the server's.
pub(crate) fn revoked_flows_end(setting: Setting) -> Outcome {
    with_pair(setting, true, &[], |pair| {
        let [from, to] = &pair.ends;
        let echo = EchoServer::start_for(to.netns(), to.ip())?;
        for node in pair.nodes {
            let flow = Asked::open(from, SocketAddr::new(to.ip(), echo.port()))?;
            flow.until_assured()?;
            let before = pair.counters()?;
            for _ in 0..REQUESTS {
                flow.ask()?;
            }
            mostly_fast(node.name(), &pair.since(&before)?[0])?;
            let deny = format!(
                "nft 'add table ip6 policies; \
                 add chain ip6 policies forward {{ type filter hook forward priority filter; }}; \
                 add rule ip6 policies forward ip6 saddr {} ip6 daddr {} drop'",
                from.ip(),
                to.ip()
            );
            shell(node, &deny)?;
            let denied = Instant::now();
            while flow.ask().is_ok() {
                ensure!(
                    denied.elapsed() < REVOKED,
                    "{}: answers after {:?}",
                    node.name(),
                    denied.elapsed()
                );
            }
            ensure!(flow.ask().is_err(), "{}: not for good", node.name());
            shell(node, "nft delete table ip6 policies")?;
            eventually("answers again", LIMIT, || {
                Ok(flow.ask().map_err(|error| error.to_string()))
            })?;
        }
        Ok(())
    })
}

/// What the fast path never takes: ping, datagrams in fragments, packets whose hops end on the way.
pub(crate) fn what_is_declined_the_kernel_carries(setting: Setting) -> Outcome {
    /// The largest payload of a datagram that is one fragment too many.
    const LARGE: usize = 4_000;
    with_pair(setting, true, &[], |pair| {
        let [from, to] = &pair.ends;
        let target = to.ip().to_string();
        let ping = |arguments: &[&str]| {
            let mut all = vec!["-6", "-n", "-q", "-i", "0.01", "-W", "2"];
            all.extend(arguments);
            all.push(&target);
            process::run(Some(from.netns()), "ping", &all)
        };
        ping(&["-c", "20"])?;
        ping(&["-c", "20", "-s", "4000"])?;
        udp_arrives(from, to, 50, LARGE)?;
        // Three hops lead there: both nodes and the pod itself.
        ping(&["-c", "3", "-t", "3"])?;
        ensure!(
            ping(&["-c", "1", "-t", "2"]).is_err(),
            "a hop was not counted"
        );
        let flow = [from, to].map(|end| end.ip());
        hops_are_counted(pair, flow)
    })
}

/// A datagram of a fast flow reaches the pod with two hops less.
fn hops_are_counted(pair: &Pair<'_>, [_, to]: [IpAddr; 2]) -> Outcome {
    let [from, end] = &pair.ends;
    let echo = EchoServer::start_for(end.netns(), to)?;
    let flow = Asked::open(from, SocketAddr::new(to, echo.port()))?;
    flow.until_assured()?;
    let rule = "nft 'add table ip6 hops; \
                add chain ip6 hops in { type filter hook input priority 0; }; \
                add rule ip6 hops in meta l4proto udp ip6 hoplimit 62 counter'";
    process::run(Some(end.netns()), "sh", &["-c", rule])?;
    for _ in 0..REQUESTS {
        flow.ask()?;
    }
    let counted = process::run(Some(end.netns()), "nft", &["list", "table", "ip6", "hops"])?;
    ensure!(
        counted.contains(&format!("packets {REQUESTS} ")),
        "of {REQUESTS}: {counted}"
    );
    Ok(())
}

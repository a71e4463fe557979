//! The life of a flow: how it ends, pauses, outlives timeouts and comes back, with conntrack in the state that it would
//! be in without a fast path.

use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lab::{Node, NodeConfig};
use rustix::net::sockopt::set_socket_linger;

use crate::pair::{Connection, Datagrams, Pair, agent, all_fast, declined, until_fast, with_pair};
use crate::support::{Outcome, PROMPT, Path, Setting, eventually, shell, with_cluster};

/// Round trips of a check.
const TRIPS: u64 = 100;
/// How long conntrack keeps a connection that was reset, in seconds.
const AFTER_RESET: u64 = 10;

/// A connection that ends by FIN or RST while it is fast leaves conntrack at both nodes as one does that never was: it is
/// closing, for so long only. The next one from the same port is fast again.
pub(crate) fn connections_end_as_in_the_kernel(setting: Setting) -> Outcome {
    with_pair(setting, &[], |pair| {
        let mut connection = Connection::open(pair, 0, 0)?;
        let ports = connection.ports()?;
        carried(pair, setting.path, &mut connection)?;
        // Who closes first keeps the port for a while: the server, which may be connected to again.
        let [client, server] = connection.ends;
        drop(server);
        drop(client);
        for node in pair.nodes {
            conntrack_says(node, ports, |state, _| state == "TIME_WAIT")?;
        }
        let mut connection = Connection::open(pair, ports[0], ports[1]).context("after FIN")?;
        carried(pair, setting.path, &mut connection).context("after FIN")?;
        for end in [0, 1] {
            let [client, server] = connection.ends;
            let (resets, other) = if end == 0 {
                (client, server)
            } else {
                (server, client)
            };
            set_socket_linger(&resets, Some(Duration::ZERO))?;
            drop(resets);
            drop(other);
            for node in pair.nodes {
                conntrack_says(node, ports, |state, rest| {
                    state == "CLOSE" || rest <= AFTER_RESET
                })?;
            }
            connection = Connection::open(pair, ports[0], ports[1]).context("after RST")?;
            carried(pair, setting.path, &mut connection).context("after RST")?;
        }
        Ok(())
    })
}

/// Exchanges until all legs are fast, if they are to be.
fn carried(pair: &Pair<'_>, path: Path, connection: &mut Connection) -> Outcome {
    if path == Path::Flow {
        return until_fast(pair, || connection.exchange());
    }
    (0..TRIPS).try_for_each(|_| connection.exchange())
}

/// Waits until conntrack says so of the connection: its state, and the seconds that it is kept.
fn conntrack_says(node: &Node, [from, to]: [u16; 2], holds: impl Fn(&str, u64) -> bool) -> Outcome {
    let list =
        format!("conntrack -L -p tcp --orig-port-src {from} --orig-port-dst {to} 2>/dev/null");
    eventually("the end of a connection", PROMPT, || {
        let entries = shell(node, &list)?;
        let mut words = entries.split_whitespace().skip(2);
        let rest = words.next().and_then(|rest| rest.parse().ok());
        let state = words.next().unwrap_or_default();
        let holds = entries.lines().count() == 1 && rest.is_some_and(|rest| holds(state, rest));
        Ok(holds
            .then_some(())
            .ok_or_else(|| format!("{}: {entries}", node.name())))
    })
}

/// After one side has said all that it has to say, the other's long answer stays fast.
pub(crate) fn half_closed_downloads_stay_fast(setting: Setting) -> Outcome {
    /// Bytes of the answer, and of the largest aggregate.
    const ANSWER: usize = 200 << 20;
    const AGGREGATE: usize = 64 << 10;
    with_pair(setting, &[], |pair| {
        for silent in [0, 1] {
            let mut connection = Connection::open(pair, 0, 0)?;
            until_fast(pair, || connection.exchange())?;
            connection.ends[silent].shutdown(Shutdown::Write)?;
            let before = pair.counters()?;
            connection.send(1 - silent, ANSWER)?;
            let counted = pair.since(&before)?;
            let sent = counted[1 - silent].fast_egress;
            let received = counted[silent].fast_ingress;
            let least = (ANSWER / AGGREGATE) as u64 * 9 / 10;
            ensure!(
                sent >= least && received >= least,
                "of at least {least} packets {sent} were sent and {received} received fast: {counted:?}"
            );
            let closing: u64 = counted.iter().map(|node| declined(node, "closing")).sum();
            ensure!(
                closing > 0 || declined(&counted[silent], "tcp-control") > 0,
                "no FIN was seen: {counted:?}"
            );
        }
        Ok(())
    })
}

/// A flow that was silent for longer than an attestation lasts is slow, and then fast again; nothing is lost. So is one
/// whose ports are used again at once.
pub(crate) fn flows_come_back(setting: Setting) -> Outcome {
    let short = ["--fast-path-revalidate=200ms", "--fast-path-grace=100ms"];
    /// Longer than both.
    const IDLE: Duration = Duration::from_millis(600);
    with_pair(setting, &short, |pair| {
        let mut connection = Connection::open(pair, 0, 0)?;
        let datagrams = Datagrams::open(pair, [0; 2])?;
        until_fast(pair, || connection.exchange()).context("TCP")?;
        until_fast(pair, || datagrams.exchange()).context("UDP")?;
        thread::sleep(IDLE);
        let before = pair.counters()?;
        connection.exchange().context("TCP after a pause")?;
        datagrams.exchange().context("UDP after a pause")?;
        let counted = pair.since(&before)?;
        for node in &counted {
            ensure!(
                // An acknowledgment follows what has just been attested.
                declined(node, "stale") >= 4 && node.fast_egress + node.fast_ingress <= 2,
                "not stale after {IDLE:?}: {counted:?}"
            );
        }
        until_fast(pair, || connection.exchange()).context("TCP again")?;
        until_fast(pair, || datagrams.exchange()).context("UDP again")?;
        let ports = datagrams.ports()?;
        drop(datagrams);
        let datagrams = Datagrams::open(pair, ports)?;
        datagrams.exchange().context("UDP from the same ports")?;
        until_fast(pair, || datagrams.exchange()).context("UDP from the same ports")
    })
}

/// A flow that only one side speaks on lives for as long as it does so, however soon conntrack forgets, also when it is
/// told to forget sooner while the flow is fast.
pub(crate) fn one_way_datagrams_outlive_short_timeouts(setting: Setting) -> Outcome {
    /// How long conntrack keeps a flow that was answered, in seconds.
    const STREAM: u64 = 3;
    const SHORTER: u64 = 2;
    /// Pause between datagrams.
    const PAUSE: Duration = Duration::from_millis(5);
    /// The agent looks at the settings at least as often as this.
    const NOTICED: Duration = Duration::from_secs(15);
    with_pair(setting, &[], |pair| {
        let forget = |seconds: u64| -> Outcome {
            let seconds = seconds.to_string();
            for node in pair.nodes {
                node.netns().sysctl(&[
                    ("net/netfilter/nf_conntrack_udp_timeout", &seconds),
                    ("net/netfilter/nf_conntrack_udp_timeout_stream", &seconds),
                ])?;
            }
            Ok(())
        };
        let adapted = |seconds: u64| {
            pair.nodes.iter().try_for_each(|node| {
                let what = format!("revalidation within {seconds} s");
                eventually(&what, NOTICED, || {
                    let now = agent(node)?.status()?.fast_path.revalidate_ms;
                    let adapted = now.is_some_and(|now| now > 0 && now <= seconds * 1000 / 2);
                    Ok(adapted.then_some(()).ok_or_else(|| format!("{now:?}")))
                })
            })
        };
        forget(STREAM)?;
        for node in pair.nodes {
            agent(node)?.restart()?;
        }
        adapted(STREAM)?;
        let datagrams = Datagrams::open(pair, [0; 2])?;
        until_fast(pair, || datagrams.exchange())?;
        let entry = {
            let [from, to] = datagrams.ports()?;
            format!("conntrack -L -p udp --orig-port-src {from} --orig-port-dst {to} 2>/dev/null")
        };
        let lives = |limit: Duration| -> Outcome {
            let start = Instant::now();
            while start.elapsed() < limit {
                for node in pair.nodes {
                    let entries = shell(node, &entry)?;
                    ensure!(
                        entries.contains("ASSURED"),
                        "{}: forgotten after {:?}: {entries}",
                        node.name(),
                        start.elapsed()
                    );
                }
                thread::sleep(PAUSE * 20);
            }
            Ok(())
        };
        let before = pair.counters()?;
        let received = datagrams.numbered(0, PAUSE, || lives(Duration::from_secs(3 * STREAM)))?;
        received.intact()?;
        let counted = pair.since(&before)?;
        let (out, into) = (counted[0].fast_egress, counted[1].fast_ingress);
        ensure!(
            out > received.sent / 2 && into > received.sent / 2,
            "of {} datagrams {out} were sent and {into} received fast: {counted:?}",
            received.sent
        );
        let received = datagrams.numbered(0, PAUSE, || {
            forget(SHORTER)?;
            adapted(SHORTER)
        })?;
        received.intact().context("told to forget sooner")?;
        until_fast(pair, || datagrams.exchange())?;
        datagrams
            .numbered(0, PAUSE, || lives(Duration::from_secs(3 * SHORTER)))?
            .intact()
    })
}

/// Where only one of two nodes has a fast path, all works, and that node's legs are fast.
pub(crate) fn one_node_alone_is_fast(setting: Setting) -> Outcome {
    let stock = NodeConfig::agent(&setting.agent().with_fast_path("off"));
    for fast in [0, 1] {
        let nodes = if fast == 0 {
            vec![setting.node(), stock.clone()]
        } else {
            vec![stock.clone(), setting.node()]
        };
        with_cluster(setting.cluster(nodes), |cluster| {
            let pair = &Pair::of(cluster)?;
            let mut connection = Connection::open(pair, 0, 0)?;
            // Until the first packets have left the queues.
            for _ in 0..TRIPS {
                connection.exchange()?;
                thread::sleep(Duration::from_millis(1));
            }
            let before = pair.counters()?;
            for end in [0, 1] {
                connection.send(end, 20 << 20)?;
            }
            for _ in 0..TRIPS {
                connection.exchange()?;
            }
            let counted = pair.since(&before)?;
            let [on, off] = [&counted[fast], &counted[1 - fast]];
            ensure!(
                all_fast(&[on.clone(), on.clone()], TRIPS)
                    && !all_fast(&[off.clone(), off.clone()], 1),
                "node {} has the fast path: {counted:?}",
                fast + 1
            );
            Ok(())
        })?;
    }
    Ok(())
}

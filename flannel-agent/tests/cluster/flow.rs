//! Flow permission: what turns fast, when, and that nothing is lost or overtaken by it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use lab::{
    ClusterConfig, Node, NodeConfig, Pod, Underlay,
    counters::Protocols,
    status::Counters,
    traffic::{
        rtt::{EchoServer, Transport, round_trips},
        tcp::{self, TcpPlan},
    },
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

use crate::pair::counters;
use crate::support::{Outcome, Setting, shell, udp_arrives, with_cluster};

/// How many bytes a stream sends: long enough for many revalidations.
const STREAM: u64 = 2_000_000_000;
/// How many bytes a stream of aggregates sends.
const AGGREGATED: u64 = 500_000_000;
/// How long a request may take.
const LIMIT: Duration = Duration::from_secs(5);
/// One packet in so many may take the kernel's path: handshake, end, turning fast.
const TOLERANCE: u64 = 50;
/// Counters of a pod that grow when segments arrive in another order than they were sent.
const OUT_OF_ORDER: [&str; 2] = ["TcpExt.TCPOFOQueue", "TcpExt.TCPSACKReorder"];

/// A stream is fast in both directions from its handshake on, stays in order while it turns fast and while it is
/// revalidated every 50 ms, and leaves no probe behind.
pub(crate) fn a_stream_stays_in_order(setting: Setting) -> Outcome {
    stays_in_order(setting, "--fast-path-ingress=nic")
}

/// So it does where packets from other nodes are taken up behind the VXLAN device, which merges them: a probe is merged
/// with none, for it would be dropped with it. (Its time to live keeps it apart, by which GRO goes: `inet_gro_receive`.)
pub(crate) fn a_stream_that_the_device_merges_stays_in_order(setting: Setting) -> Outcome {
    stays_in_order(setting, "--fast-path-ingress=vtep")
}

/// As [`a_stream_stays_in_order`], on the receive tier that `argument` asks for.
pub(crate) fn stays_in_order(setting: Setting, argument: &str) -> Outcome {
    let mut agent = setting.agent();
    agent.arguments.extend([
        "--fast-path-revalidate=50ms".into(),
        "--fast-path-grace=500ms".into(),
        argument.into(),
    ]);
    // Single packets: an aggregate is in order by itself.
    let config = ClusterConfig {
        underlay: Underlay {
            offloads: false,
            ..Underlay::default()
        },
        ..setting.cluster(vec![NodeConfig::agent(&agent), NodeConfig::agent(&agent)])
    };
    with_cluster(config, |cluster| {
        let [from, to] = cluster.nodes() else {
            unreachable!("two nodes were asked for")
        };
        let (client, server) = (pod(from)?, pod(to)?);
        // The agent is ready before everything is attached.
        to.agent().wait_status(argument, |status| {
            let tier = status.fast_path.ingress.as_deref();
            tier.is_some_and(|tier| argument.ends_with(tier))
        })?;
        let order = |pod: &Pod| {
            let counters = Protocols::read(pod.netns())?;
            anyhow::Ok(OUT_OF_ORDER.map(|name| counters.get(name)))
        };
        let before = (counters(from)?, counters(to)?);
        let plan = TcpPlan {
            bytes: STREAM,
            rate: None,
        };
        // Over veths, a stream whose ends run on several processors is reordered on any path.
        let report = on_one_processor(|| tcp::run(&client, &server, plan))??;
        ensure!(report.is_intact(), "{report:?}");
        let sent = counters(from)?.since(&before.0);
        let received = counters(to)?.since(&before.1);
        mostly_fast("sender", &sent)?;
        mostly_fast("receiver", &received)?;
        let disorder = (order(&client)?, order(&server)?);
        ensure!(
            disorder == ([0; 2], [0; 2]),
            "out of order: {disorder:?}, retransmits {}, {sent:?}, {received:?}",
            report.retransmits
        );
        for (node, counted) in [(from, &sent), (to, &received)] {
            let done: u64 = of(counted, "probe-done");
            ensure!(done > 0, "{}: no probe: {counted:?}", node.name());
            ensure!(of(counted, "killed") == 0, "{}: {counted:?}", node.name());
        }
        Ok(())
    })
}

/// Aggregates are judged by their segments, so a stream of them is fast although each is many times the MTU.
pub(crate) fn aggregates_are_fast(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let [from, to] = cluster.nodes() else {
            unreachable!("two nodes were asked for")
        };
        let (client, server) = (pod(from)?, pod(to)?);
        let before = (counters(from)?, counters(to)?);
        let plan = TcpPlan {
            bytes: AGGREGATED,
            rate: None,
        };
        let report = tcp::run(&client, &server, plan)?;
        ensure!(report.is_intact(), "{report:?}");
        let sent = counters(from)?.since(&before.0);
        let received = counters(to)?.since(&before.1);
        mostly_fast("sender", &sent)?;
        mostly_fast("receiver", &received)?;
        let single = AGGREGATED / setting.pod_mtu() as u64;
        ensure!(
            sent.fast_egress < single / 4,
            "no aggregates: {} packets: {sent:?}",
            sent.fast_egress
        );
        Ok(())
    })
}

/// Datagrams that are answered are fast once conntrack calls them assured; those that are not answered never are; a
/// question and its answer leave nothing behind.
pub(crate) fn datagrams_turn_fast_when_assured(setting: Setting) -> Outcome {
    /// After so long conntrack calls an answered flow assured (`nf_conntrack_udp_packet`).
    const UNTIL_ASSURED: Duration = Duration::from_secs(2);
    /// Round trips to begin with, and too many.
    const FIRST: usize = 50_000;
    const LAST: usize = 3_200_000;
    with_cluster(setting.pair(), |cluster| {
        let [from, to] = cluster.nodes() else {
            unreachable!("two nodes were asked for")
        };
        let (client, server) = (pod(from)?, pod(to)?);
        let echo = EchoServer::start(server.netns())?;
        let address = SocketAddr::new(server.address().into(), echo.port());
        let before = counters(from)?;
        for _ in 0..200 {
            round_trips(&client, address, Transport::Udp, 1, 64, LIMIT)?;
        }
        let dns = counters(from)?.since(&before);
        ensure!(
            of(&dns, "created") == 0 && dns.fast_egress == 0,
            "questions and answers made entries: {dns:?}"
        );
        udp_arrives(&client, &server, 1000, 100)?;
        let one_way = counters(from)?.since(&before);
        ensure!(one_way.fast_egress == 0, "nobody answered: {one_way:?}");

        let before = (counters(from)?, counters(to)?);
        let client_flow = |count| round_trips(&client, address, Transport::Udp, count, 64, LIMIT);
        // One socket, so one flow, for longer than conntrack takes to call it assured.
        let mut count = FIRST;
        while client_flow(count)?.0.iter().sum::<Duration>() < 2 * UNTIL_ASSURED {
            ensure!(count < LAST, "{count} round trips took no time");
            count *= 2;
        }
        let counted = (
            counters(from)?.since(&before.0),
            counters(to)?.since(&before.1),
        );
        ensure!(
            counted.0.fast_egress > 0 && counted.1.fast_ingress > 0,
            "a flow of seconds never turned fast: {counted:?}"
        );
        Ok(())
    })
}

/// Short connections come and go whole, and leave conntrack as the kernel's path leaves it: closed.
pub(crate) fn connections_close_properly(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let [from, to] = cluster.nodes() else {
            unreachable!("two nodes were asked for")
        };
        let (client, server) = (pod(from)?, pod(to)?);
        let echo = EchoServer::start(server.netns())?;
        let address = SocketAddr::new(server.address().into(), echo.port());
        for _ in 0..20 {
            round_trips(&client, address, Transport::Tcp, 50, 64, LIMIT)?;
        }
        for node in [from, to] {
            let list = format!("conntrack -L -p tcp --dport {} 2>/dev/null", echo.port());
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

pub(crate) fn pod(node: &Node) -> anyhow::Result<Pod> {
    let mut pods = node.pods();
    ensure!(!pods.is_empty(), "a node without a pod");
    Ok(pods.swap_remove(0))
}

/// Packets by what was learned from them, at both hooks that learn.
pub(crate) fn of(counters: &Counters, outcome: &str) -> u64 {
    let named = |name: &&String| name.rsplit('/').next() == Some(outcome);
    let names = counters.attest.keys().filter(named);
    names.map(|name| counters.attest[name]).sum()
}

/// Asserts that nearly all packets of pods were fast, out and in.
pub(crate) fn mostly_fast(what: &str, counted: &Counters) -> Outcome {
    let declined = |hook: &str| {
        let names = counted.declined.iter();
        let of_flows = names.filter(|(name, _)| {
            name.starts_with(hook)
                && !name.ends_with("/not-ip")
                && !name.ends_with("/no-pod")
                && !name.ends_with("/protocol")
                && !name.ends_with("/probe")
        });
        of_flows.map(|(_, count)| count).sum::<u64>()
    };
    for (fast, slow) in [
        (counted.fast_egress, declined("pod_egress/")),
        (counted.fast_ingress, declined("nic_ingress/")),
    ] {
        ensure!(
            fast > 100 && slow <= fast / TOLERANCE,
            "{what}: {fast} fast, {slow} slow: {counted:?}"
        );
    }
    Ok(())
}

/// Runs `work`, and the threads that it starts, on the processor that this thread is on.
pub(crate) fn on_one_processor<T>(work: impl FnOnce() -> T) -> anyhow::Result<T> {
    let before = sched_getaffinity(None)?;
    let mut one = CpuSet::new();
    one.set(sched_getcpu());
    sched_setaffinity(None, &one)?;
    let result = work();
    sched_setaffinity(None, &before)?;
    Ok(result)
}

//! Flows while the agent is away, and while the node around them changes: each goes on, and only those that a change
//! concerns are slow for a moment.

use std::fs;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lab::{ClusterConfig, Node, Pod};
use rustix::process::Signal;

use crate::pair::{Connection, Datagrams, Pair, agent, declined, learned, until_fast, with_pair};
use crate::support::{Outcome, Setting, eventually, shell, wait_pods_served, with_cluster};

/// Pause between datagrams.
const PAUSE: Duration = Duration::from_millis(1);
/// Round trips of a check.
const TRIPS: u64 = 100;
/// The hooks in front of the kernel.
const HOOKS: [&str; 2] = ["pod_egress", "nic_ingress"];

/// Programs that hear nothing of a hanging agent for too long leave all to the kernel, until it is back.
pub(crate) fn without_a_heartbeat_the_kernel_carries(setting: Setting) -> Outcome {
    /// Longer than the heartbeat.
    const HANGS: Duration = Duration::from_millis(3500);
    with_pair(setting, &["--fast-path-heartbeat=2s"], |pair| {
        let datagrams = Datagrams::open(pair, [0; 2])?;
        let mut connection = Connection::open(pair, 0, 0)?;
        until_fast(pair, || datagrams.exchange())?;
        until_fast(pair, || connection.exchange())?;
        let before = pair.counters()?;
        for node in pair.nodes {
            agent(node)?.signal(Signal::STOP)?;
        }
        let result = exchange_for(HANGS, &datagrams, &mut connection);
        for node in pair.nodes {
            agent(node)?.signal(Signal::CONT)?;
        }
        result?;
        for node in pair.nodes {
            // It has much to catch up with.
            agent(node)?.wait_status("a sign of life", |_| true)?;
        }
        let counted = pair.since(&before)?;
        for node in &counted {
            for hook in HOOKS {
                let name = format!("{hook}/no-heartbeat");
                let count = node.declined.get(&name).copied().unwrap_or_default();
                ensure!(count > 100, "{count} packets under {name}: {counted:?}");
            }
        }
        until_fast(pair, || datagrams.exchange()).context("with the agent back")?;
        until_fast(pair, || connection.exchange()).context("with the agent back")
    })
}

/// While a killed agent is away flows stay fast, and nothing is lost when it comes back.
pub(crate) fn flows_stay_fast_without_the_agent(setting: Setting) -> Outcome {
    const AWAY: Duration = Duration::from_secs(3);
    with_pair(setting, &[], |pair| {
        let datagrams = Datagrams::open(pair, [0; 2])?;
        let mut connection = Connection::open(pair, 0, 0)?;
        until_fast(pair, || datagrams.exchange())?;
        until_fast(pair, || connection.exchange())?;
        let before = pair.counters()?;
        for node in pair.nodes {
            agent(node)?.kill()?;
        }
        let trips = exchange_for(AWAY, &datagrams, &mut connection)?;
        let received = datagrams.numbered(0, PAUSE, || {
            for node in pair.nodes {
                agent(node)?.start()?;
                agent(node)?.wait_ready()?;
                wait_pods_served(node)?;
                connection.exchange()?;
            }
            Ok(())
        })?;
        received.intact()?;
        let counted = pair.since(&before)?;
        for node in &counted {
            ensure!(
                node.fast_egress >= trips && node.fast_ingress >= trips,
                "not fast for {trips} round trips without the agent: {counted:?}"
            );
        }
        until_fast(pair, || datagrams.exchange()).context("with the agent back")?;
        until_fast(pair, || connection.exchange()).context("with the agent back")
    })
}

/// Round trips on both flows for so long; how many.
fn exchange_for(
    time: Duration,
    datagrams: &Datagrams,
    connection: &mut Connection,
) -> anyhow::Result<u64> {
    let start = Instant::now();
    let mut trips = 0;
    while start.elapsed() < time {
        datagrams.exchange().context("UDP")?;
        connection.exchange().context("TCP")?;
        trips += 1;
        thread::sleep(PAUSE);
    }
    Ok(trips)
}

/// Pods that come and go make no flow of other pods cold; a pod that is made anew with its old address starts cold, alone.
pub(crate) fn pods_that_come_and_go_make_no_other_cold(setting: Setting) -> Outcome {
    const CRASHES: usize = 5;
    let config = ClusterConfig {
        pods: 2,
        ..setting.pair()
    };
    with_cluster(config, |cluster| {
        let (of_old, of_new) = (&Pair::of(cluster)?, &mut Pair::of(cluster)?);
        let [_, node] = of_old.nodes;
        let datagrams = Datagrams::open(of_old, [0; 2])?;
        until_fast(of_old, || datagrams.exchange())?;
        let before = of_old.counters()?;
        for _ in 0..CRASHES {
            let pod = node.add_pod()?;
            wait_pods_served(node)?;
            datagrams.exchange()?;
            node.delete_pod(pod)?;
            (0..TRIPS).try_for_each(|_| datagrams.exchange())?;
        }
        stayed_fast(of_old, &before, CRASHES as u64 * TRIPS)?;

        // The second pods' flow, whose server is made anew.
        for (end, node) in of_old.nodes.iter().enumerate() {
            of_new.pods[end] = node.pods().get(1).context("a second pod")?.clone();
        }
        let first = Datagrams::open(of_new, [0; 2])?;
        until_fast(of_new, || first.exchange())?;
        let ports = first.ports()?;
        drop(first);
        of_new.pods[1] = make_anew(node, &of_new.pods[1])?;
        wait_pods_served(node)?;
        let again = Datagrams::open(of_new, ports)?;
        let before = of_new.counters()?;
        again.exchange().context("with the new pod")?;
        let cold = declined(&of_new.since(&before)?[1], "no-flow");
        ensure!(cold > 0, "the new pod's flow is not cold");
        until_fast(of_new, || again.exchange())?;
        let before = of_old.counters()?;
        (0..TRIPS).try_for_each(|_| datagrams.exchange())?;
        stayed_fast(of_old, &before, TRIPS)
    })
}

/// Asserts that of so many round trips nearly all were fast (the first may follow a pause), and that no flow began anew.
fn stayed_fast(pair: &Pair<'_>, before: &[lab::status::Counters; 2], trips: u64) -> Outcome {
    let counted = pair.since(before)?;
    let most = trips - trips / 10;
    for node in &counted {
        ensure!(
            node.fast_egress >= most
                && node.fast_ingress >= most
                && declined(node, "no-flow") == 0
                && learned(node, "created") == 0,
            "a flow has become cold: {counted:?}"
        );
    }
    Ok(())
}

/// Deletes a pod and makes another with its address.
fn make_anew(node: &Node, pod: &Pod) -> anyhow::Result<Pod> {
    let address = pod.address();
    node.delete_pod(pod.clone())?;
    // Addresses are given out in turn: the one before it was the last.
    let before = Ipv4Addr::from(u32::from(address) - 1).to_string();
    let find = format!(
        "find {} -name 'last_reserved_ip.*'",
        node.directory().join("cni").display()
    );
    let files = shell(node, &find)?;
    ensure!(!files.is_empty(), "no record of the last address");
    for file in files.lines() {
        fs::write(file, &before)?;
    }
    let made = node.add_pod()?;
    ensure!(
        made.address() == address,
        "the new pod has {} instead of {address}",
        made.address()
    );
    // The kernel believes in the old pod's MAC for a while, on any path.
    shell(node, "ip neighbour flush dev cni0")?;
    Ok(made)
}

/// A node whose tunnel gets another address is met anew; flows to other nodes do not notice.
pub(crate) fn a_changed_lease_makes_its_own_flows_cold(setting: Setting) -> Outcome {
    const MAC: &str = "02:00:00:00:be:ef";
    const LEASES: &str = "/coreos.com/network/subnets/";
    let nodes = vec![setting.node(), setting.node(), setting.node()];
    with_cluster(setting.cluster(nodes), |cluster| {
        let to_second = &Pair::of(cluster)?;
        let third = cluster.node(3);
        let to_third = &Pair {
            nodes: [to_second.nodes[0], third],
            pods: [
                to_second.pods[0].clone(),
                third.pods().first().context("a pod")?.clone(),
            ],
        };
        let stays = Datagrams::open(to_second, [0; 2])?;
        let changes = Datagrams::open(to_third, [0; 2])?;
        until_fast(to_second, || stays.exchange())?;
        until_fast(to_third, || changes.exchange())?;

        let lease = agent(third)?.status()?.lease.context("no lease")?.subnet;
        let key = format!("{LEASES}{}", lease.replace('/', "-"));
        let values = cluster.etcd().get_prefix(&key)?;
        let (_, value) = values.first().with_context(|| format!("no key {key}"))?;
        let mut value: serde_json::Value = serde_json::from_str(value)?;
        value["BackendData"]["VtepMAC"] = MAC.into();
        // Nobody changes it back.
        agent(third)?.kill()?;
        shell(third, &format!("ip link set flannel.1 address {MAC}"))?;
        let before = to_second.counters()?;
        cluster.etcd().put(&key, &value.to_string())?;
        for node in to_second.nodes {
            eventually("the new address", crate::support::PROMPT, || {
                let known = shell(node, "bridge fdb show dev flannel.1")?;
                Ok(known.contains(MAC).then_some(()).ok_or(known))
            })?;
        }
        (0..TRIPS).try_for_each(|_| stays.exchange())?;
        stayed_fast(to_second, &before, TRIPS)?;
        let before = to_second.counters()?;
        // The fast path of the third node knows itself by the address that it had: the kernel carries what comes.
        changes.exchange().context("with the new address")?;
        let counted = to_second.since(&before)?;
        for hook in HOOKS {
            ensure!(
                counted[0].declined.get(&format!("{hook}/no-flow")) > Some(&0),
                "the flow is not cold at {hook}: {counted:?}"
            );
        }
        agent(third)?.start()?;
        agent(third)?.wait_ready()?;
        until_fast(to_third, || changes.exchange()).context("with the new address")
    })
}

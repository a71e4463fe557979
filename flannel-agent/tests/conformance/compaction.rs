//! Histories that etcd has forgotten.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::{Cluster, Node};
use rustix::process::Signal;

use crate::peers::{compact, key, own_key, routes, value, vxlan_value};
use crate::setting::agents;
use crate::support::{Outcome, PROMPT, eventually, with_unready_cluster};

const NETWORK: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
/// A key that no node can get as its subnet.
const PEER: &str = "10.5.0.0-25";
const ROUTE: &str = "10.5.0.0/25 via 10.5.0.0 dev flannel.1 onlink\n";

fn put_peer(cluster: &Cluster) -> Outcome {
    let peer = vxlan_value("192.168.100.77", "0e:00:00:00:00:77");
    Ok(cluster.etcd().put(&key(PEER), &peer)?)
}

fn peer_is(node: &Node, there: bool) -> Outcome {
    eventually("the peer's route", 2 * PROMPT, || {
        let now = routes(node, "10.5.0.0/25")?;
        let wanted = if there { ROUTE } else { "" };
        Ok((now == wanted).then_some(()).ok_or(now))
    })
}

/// Compaction under a running watch: later changes arrive.
pub(crate) fn while_watching() -> Outcome {
    with_unready_cluster(agents(1, 0, NETWORK), |cluster| {
        let node = cluster.node(1);
        put_peer(cluster)?;
        peer_is(node, true)?;
        compact(cluster)?;
        cluster.etcd().delete(&key(PEER))?;
        peer_is(node, false)?;
        put_peer(cluster)?;
        compact(cluster)?;
        peer_is(node, true)
    })
}

/// Compaction while no agent ran.
pub(crate) fn before_the_start() -> Outcome {
    with_unready_cluster(agents(1, 0, NETWORK), |cluster| {
        let node = cluster.node(1);
        put_peer(cluster)?;
        peer_is(node, true)?;
        node.agent().stop()?;
        cluster.etcd().delete(&key(PEER))?;
        compact(cluster)?;
        node.agent().start()?;
        node.agent().wait_ready()?;
        peer_is(node, false)?;
        put_peer(cluster)?;
        peer_is(node, true)
    })
}

/// The own key deleted, and that forgotten, while the agent could not watch: it is there again, with the same value.
pub(crate) fn over_the_own_key() -> Outcome {
    with_unready_cluster(agents(1, 0, NETWORK), |cluster| {
        let node = cluster.node(1);
        let own = own_key(node)?;
        let before = value(cluster, &own)?;
        node.agent().signal(Signal::STOP)?;
        // Ends the watch; the agent that hangs cannot begin another.
        cluster.etcd().stop()?;
        cluster.etcd().start()?;
        cluster.etcd().delete(&own)?;
        compact(cluster)?;
        node.agent().signal(Signal::CONT)?;
        eventually("the own lease", 2 * PROMPT, || {
            let now = value(cluster, &own).unwrap_or_default();
            Ok((now == before).then_some(()).ok_or(now))
        })?;
        node.agent().check_running()?;
        ensure!(own_key(node)? == own, "{}", node.subnet_env()?);
        Ok(())
    })
}

/// After a compaction that it has missed, the agent is not busy with it.
pub(crate) fn is_no_loop() -> Outcome {
    const OBSERVED: Duration = Duration::from_secs(3);
    /// Of one processor.
    const IDLE: f64 = 0.1;
    with_unready_cluster(agents(1, 0, NETWORK), |cluster| {
        let node = cluster.node(1);
        node.agent().signal(Signal::STOP)?;
        cluster.etcd().stop()?;
        cluster.etcd().start()?;
        for _ in 0..20 {
            put_peer(cluster)?;
        }
        compact(cluster)?;
        node.agent().signal(Signal::CONT)?;
        peer_is(node, true)?;
        thread::sleep(Duration::from_secs(1));
        let lines = node.agent().log().lines().count();
        let before = cpu_time(node.agent().pid()?)?;
        thread::sleep(OBSERVED);
        let used = cpu_time(node.agent().pid()?)? - before;
        let said = node.agent().log().lines().count() - lines;
        ensure!(
            used.as_secs_f64() < IDLE * OBSERVED.as_secs_f64() && said < 10,
            "{used:?} of {OBSERVED:?}, {said} lines"
        );
        Ok(())
    })
}

/// Processor time that a process has used.
fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    /// Of a clock tick, on every architecture that Linux has (`USER_HZ`).
    const TICK: Duration = Duration::from_millis(10);
    /// Fields behind the name (`proc_pid_stat(5)`): user time is field 14, system time 15.
    const USER_TIME: usize = 14 - 3;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("a name in brackets")?;
    let times = fields.split(' ').skip(USER_TIME).take(2);
    let ticks = times.map(str::parse::<u32>).sum::<Result<u32, _>>()?;
    Ok(TICK * ticks)
}

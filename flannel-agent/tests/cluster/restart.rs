//! Agents and etcd end, in good order or not, while traffic runs: nothing is lost and no connection is reset.

use std::{thread, time::Duration};

use anyhow::{Context, ensure};
use lab::{
    Cluster, Node, Pod,
    traffic::{
        tcp::{TcpFlow, TcpPlan},
        udp::{UdpFlow, UdpPlan, UdpReport},
    },
};

use crate::meter::Meter;
use crate::support::{
    Outcome, Setting, all_arrived, eventually, udp_arrives, wait_pods_served, with_cluster,
};

/// Packets that cross a restart at least.
const PACKETS: u64 = 10_000;
/// Packets of the long run.
const MANY_PACKETS: u64 = 100_000;
/// Packets per second.
const RATE: u32 = 5000;
/// Bytes per second of the stream beside them: few packets beside the numbered ones, whose path is counted.
const STREAM_RATE: u64 = 200_000;
/// How long etcd is away: longer than an agent's first attempts to reach it again.
const OUTAGE: Duration = Duration::from_secs(2);

/// Numbered packets and a stream from one pod to another, until they are stopped.
struct Traffic {
    udp: UdpFlow,
    tcp: TcpFlow,
}

impl Traffic {
    fn start(from: &Pod, to: &Pod) -> anyhow::Result<Self> {
        let udp = UdpPlan {
            packets: u64::MAX,
            rate: RATE,
            size: 64,
        };
        let tcp = TcpPlan {
            bytes: u64::MAX,
            rate: Some(STREAM_RATE),
        };
        Ok(Self {
            tcp: TcpFlow::start(from, to, tcp)?,
            udp: UdpFlow::start(from, to, udp)?,
        })
    }

    /// Lets so many packets arrive.
    fn wait_arrived(&self, packets: u64) -> Outcome {
        let time = Duration::from_secs(packets / u64::from(RATE)) * 2 + Duration::from_secs(10);
        eventually("packets", time, || {
            let arrived = self.udp.arrived();
            Ok((arrived >= packets)
                .then_some(())
                .ok_or_else(|| format!("{arrived} of {packets}")))
        })
    }

    /// Ends both and asserts that nothing was lost or reset.
    fn stop(self) -> anyhow::Result<UdpReport> {
        let udp = self.udp.stop()?;
        let tcp = self.tcp.stop();
        all_arrived(&udp)?;
        ensure!(tcp.is_intact() && tcp.received > 0, "{tcp:?}");
        Ok(udp)
    }
}

pub(crate) fn agents_restart(setting: Setting) -> Outcome {
    across(setting, PACKETS, |node| {
        node.agent().restart().context("restart")?;
        wait_pods_served(node)
    })
}

pub(crate) fn agents_are_killed(setting: Setting) -> Outcome {
    across(setting, PACKETS, kill_and_start)
}

pub(crate) fn agents_are_killed_in_a_long_run(setting: Setting) -> Outcome {
    across(setting, MANY_PACKETS, |node| {
        // Spread over the run.
        thread::sleep(Duration::from_secs(3));
        kill_and_start(node)
    })
}

/// The running agents are told to carry other traffic, one after the other and back: nothing is lost by it.
pub(crate) fn modes_change(setting: Setting) -> Outcome {
    cross(setting, PACKETS, |node| {
        for mode in ["off", "flow", "subnet", "off", "subnet", "flow"] {
            let agent = node.agent();
            let socket = format!("--status-socket={}", agent.socket().display());
            let said = agent.command_output(&["fast-path", mode, &socket])?;
            ensure!(said.contains(mode), "{said}");
            let status = agent.status()?;
            let fast = &status.fast_path;
            ensure!(
                fast.mode == mode && fast.active == (mode != "off"),
                "{mode}: {fast:?}"
            );
            ensure!(
                fast.hooks.is_empty() == (mode == "off"),
                "{mode}: {:?}",
                fast.hooks
            );
        }
        wait_pods_served(node)
    })
}

fn kill_and_start(node: &Node) -> Outcome {
    let agent = node.agent();
    agent.kill()?;
    agent.start()?;
    agent.wait_ready()?;
    wait_pods_served(node)
}

/// As [`cross`], and nearly all packets take the path of the setting: programs and counters outlive the agent.
fn across(setting: Setting, packets: u64, end: impl Fn(&Node) -> Outcome) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let (from, to) = (cluster.node(1), cluster.node(2));
        let meter = Meter::start(from, to)?;
        let report = with_traffic(from, to, packets, end)?;
        meter.expect(setting.path, report.sent)
    })
}

/// Does `end` to the agents with traffic running, of which nothing may be lost.
fn cross(setting: Setting, packets: u64, end: impl Fn(&Node) -> Outcome) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        with_traffic(cluster.node(1), cluster.node(2), packets, end).map(drop)
    })
}

/// Does `end` to the sender's agent and then to the receiver's, twice, with traffic running.
fn with_traffic(
    from: &Node,
    to: &Node,
    packets: u64,
    end: impl Fn(&Node) -> Outcome,
) -> anyhow::Result<UdpReport> {
    let traffic = Traffic::start(&from.pods()[0], &to.pods()[0])?;
    for node in [from, to, from, to] {
        end(node).with_context(|| node.name().to_owned())?;
    }
    traffic.wait_arrived(packets)?;
    let report = traffic.stop()?;
    ensure!(report.received >= packets, "{report:?}");
    Ok(report)
}

pub(crate) fn etcd_is_away(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let (source, target) = (first_pod(cluster, 1), first_pod(cluster, 2));
        let traffic = Traffic::start(&source, &target)?;
        cluster.etcd().stop()?;
        thread::sleep(OUTAGE);
        for number in [1, 2] {
            let status = cluster.node(number).agent().status()?;
            ensure!(
                status.peers.len() == 1 && status.problems.iter().any(|text| text.contains("etcd")),
                "without etcd n{number} must keep its peer and say what is wrong: {status:?}"
            );
        }
        cluster.etcd().start()?;
        let third = cluster
            .add_node(&setting.node())
            .context("a node joins after the outage")?;
        let pod = third.add_pod()?;
        wait_pods_served(&third)?;
        cluster.etcd().kill()?;
        cluster.etcd().start()?;
        let meter = Meter::start(cluster.node(1), &third)?;
        udp_arrives(&source, &pod, 1000, 64).context("to the node that joined")?;
        meter.expect(setting.path, 1000)?;
        traffic.stop().map(drop)
    })
}

fn first_pod(cluster: &Cluster, number: u8) -> Pod {
    cluster.node(number).pods()[0].clone()
}

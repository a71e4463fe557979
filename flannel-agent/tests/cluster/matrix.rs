//! Every backend on every path: each pod and node reaches each other, whole and in order.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, ensure};
use lab::{
    Cluster, ClusterConfig, Node, Pod, Underlay,
    traffic::{
        Host,
        icmp::Pinger,
        tcp::{self, TcpPlan},
        tools::{self, PingPlan},
    },
    underlay,
};

use crate::meter::Meter;
use crate::support::{
    Outcome, PROMPT, Path, Setting, eventually, udp_arrives, wait_pods_served, with_cluster,
};

/// IPv4 and UDP or ICMP headers, in bytes.
const HEADERS: usize = 28;
/// How many sequenced packets one check sends.
const PACKETS: u64 = 2000;
/// How many bytes one stream check sends.
const STREAM: u64 = 20_000_000;
/// The largest aggregate, in bytes: a stream has at least one packet per so many bytes.
const AGGREGATE: u64 = 64 << 10;

pub(crate) fn with_offloads(setting: Setting) -> Outcome {
    pods_reach_pods(setting, true)
}

pub(crate) fn without_offloads(setting: Setting) -> Outcome {
    pods_reach_pods(setting, false)
}

fn pods_reach_pods(setting: Setting, offloads: bool) -> Outcome {
    let underlay = Underlay {
        offloads,
        ..Underlay::default()
    };
    let config = ClusterConfig {
        underlay,
        pods: 2,
        ..setting.pair()
    };
    with_cluster(config, |cluster| {
        all_answer_all(cluster)?;
        let (first, second) = (cluster.node(1), cluster.node(2));
        for (from, to) in [(first, second), (second, first)] {
            let (source, target) = (&from.pods()[0], &to.pods()[1]);
            let meter = Meter::start(from, to)?;
            udp_arrives(source, target, PACKETS, 64).context("small packets")?;
            meter.expect(setting.path, PACKETS)?;
            let largest = setting.pod_mtu() - HEADERS;
            let meter = Meter::start(from, to)?;
            udp_arrives(source, target, PACKETS / 4, largest).context("packets of MTU size")?;
            meter.expect(setting.path, PACKETS / 4)?;
            stream_arrives(setting, from, to).context("stream")?;
        }
        hosts_and_pods(first, second).context("between node n1 and pod of n2")?;
        hosts_and_pods(second, first).context("between node n2 and pod of n1")
    })
}

/// Pings between all pods, and from each node to each pod.
fn all_answer_all(cluster: &Cluster) -> Outcome {
    let pods: Vec<Pod> = cluster
        .nodes()
        .iter()
        .flat_map(|node| node.pods())
        .collect();
    let targets: Vec<Ipv4Addr> = pods.iter().map(Pod::address).collect();
    let pods = pods.iter().map(|pod| (pod.name(), pod.netns()));
    let nodes = cluster
        .nodes()
        .iter()
        .map(|node| (node.name(), node.netns()));
    for (name, netns) in pods.chain(nodes) {
        let times = Pinger::new(netns)?.round(&targets, Duration::from_secs(2))?;
        ensure!(
            times.iter().all(Option::is_some),
            "{name} pinged {targets:?}: {times:?}"
        );
    }
    Ok(())
}

fn stream_arrives(setting: Setting, from: &Node, to: &Node) -> Outcome {
    let meter = Meter::start(from, to)?;
    let plan = TcpPlan {
        bytes: STREAM,
        rate: None,
    };
    let report = tcp::run(&from.pods()[1], &to.pods()[0], plan)?;
    ensure!(
        report.is_intact() && report.received == STREAM,
        "{report:?}"
    );
    meter.expect(setting.path, STREAM / AGGREGATE)
}

/// A node's own sockets and the pods of the other node.
fn hosts_and_pods(host: &Node, other: &Node) -> Outcome {
    let pod = &other.pods()[0];
    let ends: [(&dyn Host, &dyn Host); 2] = [(host, pod), (pod, host)];
    for (from, to) in ends {
        udp_arrives(from, to, 200, 64)?;
        let plan = TcpPlan {
            bytes: STREAM / 10,
            rate: None,
        };
        let report = tcp::run(from, to, plan)?;
        ensure!(report.is_intact() && report.received > 0, "{report:?}");
    }
    Ok(())
}

/// Pods whose MTU is too large for the way: with DF they learn the right one, without they are fragmented.
pub(crate) fn large_packets(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let (from, to) = (cluster.node(1), cluster.node(2));
        let (source, target) = (&from.pods()[0], &to.pods()[0]);
        udp_arrives(source, target, 200, 4000).context("fragments made by the pod")?;

        let mtu = setting.pod_mtu();
        let too_large = mtu + 20;
        let device = &source.attachment().host_device;
        underlay::ip_batch(
            source.netns(),
            &format!("link set eth0 mtu {}\n", mtu + 100),
        )?;
        underlay::ip_batch(
            from.netns(),
            &format!("link set {device} mtu {}\n", mtu + 100),
        )?;
        wait_pods_served(from)?;

        // Sockets of a pod that does not look for the path's MTU do not set DF.
        source
            .netns()
            .sysctl(&[("net/ipv4/ip_no_pmtu_disc", "1")])?;
        udp_arrives(source, target, 200, too_large - HEADERS)
            .context("packets without DF, fragmented by the node")?;

        source
            .netns()
            .sysctl(&[("net/ipv4/ip_no_pmtu_disc", "0")])?;

        let forbidden = PingPlan {
            size: too_large - HEADERS,
            dont_fragment: true,
            ..PingPlan::default()
        };
        let report = tools::ping(source.netns(), target.address(), forbidden)?;
        let told = format!("mtu = {mtu}");
        ensure!(
            report.received == 0 && report.errors.iter().any(|line| line.contains(&told)),
            "a packet of {too_large} bytes with DF must be answered with {told:?}: {report:?}"
        );
        flush_learned_mtu(source)?;

        // The first large packet is lost, the answer to it teaches the MTU, and what follows is cut to it.
        let socket = source
            .netns()
            .run(|| std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
        socket.send_to(&vec![0; too_large - HEADERS], (target.address(), 9))?;
        let learned = format!("mtu {mtu}");
        eventually("the path's MTU in the pod", PROMPT, || {
            let route = route_to(source, target)?;
            Ok(route.contains(&learned).then_some(()).ok_or(route))
        })?;
        udp_arrives(source, target, 200, too_large - HEADERS)
            .context("packets cut to the learned MTU")?;
        if setting.path == Path::Fast {
            let meter = Meter::start(from, to)?;
            udp_arrives(source, target, 200, 64)?;
            meter.expect(Path::Fast, 200)?;
        }
        Ok(())
    })
}

fn route_to(from: &Pod, to: &Pod) -> anyhow::Result<String> {
    let address = to.address().to_string();
    Ok(lab::process::run(
        Some(from.netns()),
        "ip",
        &["route", "get", &address],
    )?)
}

fn flush_learned_mtu(pod: &Pod) -> Outcome {
    Ok(underlay::ip_batch(pod.netns(), "route flush cache\n")?)
}

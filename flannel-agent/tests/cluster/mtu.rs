//! Pods whose MTU is larger than the way's, and streams that learn it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::{
    ClusterConfig, Node, Underlay, counters,
    traffic::tcp::{TcpFlow, TcpPlan},
    underlay,
};

use crate::support::{Outcome, Setting, eventually, with_cluster};

/// How much larger pods believe packets may be, in bytes.
const EXCESS: usize = 200;
/// Bytes per second of the stream.
const RATE: u64 = 50_000_000;
/// How often the sender forgets what it has learned.
const TIMES: u64 = 5;
/// How much arrives in between.
const STEP: u64 = RATE / 5;
/// How long that may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How long nothing may arrive: an answer that teaches the MTU takes no time, and without it the stream waits until it is
/// no longer fast.
const GAP: Duration = Duration::from_secs(1);

/// Aggregates whose segments are too large for the way are the kernel's to answer, also in the middle of a fast flow:
/// the sender learns the MTU, again and again, and the stream goes on.
pub(crate) fn a_stream_learns_the_mtu(setting: Setting) -> Outcome {
    // Segments that are really made: a wire that takes aggregates would hide that they do not fit.
    let config = ClusterConfig {
        underlay: Underlay {
            offloads: false,
            ..Underlay::default()
        },
        ..setting.pair()
    };
    with_cluster(config, |cluster| {
        let nodes = [&**cluster.node(1), &**cluster.node(2)];
        let mtu = setting.pod_mtu() + EXCESS;
        for node in nodes {
            believe(node, mtu)?;
        }
        let [sender, receiver] = nodes.map(|node| node.pods().swap_remove(0));
        let plan = TcpPlan {
            bytes: u64::MAX,
            rate: Some(RATE),
        };
        let stream = TcpFlow::start(&sender, &receiver, plan)?;
        let before = nodes[0].agent().status()?.fast_path.counters;
        let dropped = dropped(nodes[0])?;
        for _ in 0..TIMES {
            underlay::ip_batch(sender.netns(), "route flush cache\n")?;
            let wanted = stream.received() + STEP;
            eventually("more of the stream", LIMIT, || {
                let received = stream.received();
                let arrived = (received >= wanted).then_some(());
                Ok(arrived.ok_or_else(|| format!("the stream does not learn the MTU: {received}")))
            })?;
        }
        let counted = nodes[0].agent().status()?.fast_path.counters.since(&before);
        let too_large = self::dropped(nodes[0])? - dropped;
        ensure!(
            too_large == 0,
            "{too_large} packets were sent that the wire does not take"
        );
        let report = stream.stop();
        ensure!(
            report.failure.is_none() && report.corrupted_at.is_none() && report.longest_gap < GAP,
            "the stream does not learn the MTU: {report:?}"
        );
        let declined = counted.declined.get("pod_egress/mtu").copied();
        ensure!(
            counted.fast_egress > 0 && declined.unwrap_or(0) >= TIMES - 1,
            "not fast, or nothing too large: {counted:?}"
        );
        Ok(())
    })
}

/// Packets that the node has sent in vain.
fn dropped(node: &Node) -> anyhow::Result<u64> {
    let links = counters::links(node.netns())?;
    let uplink = links.get("eth0").context("a node without eth0")?;
    Ok(uplink.tx_dropped + uplink.tx_errors)
}

/// Gives a pod, its veth and the bridge a larger MTU.
fn believe(node: &Node, mtu: usize) -> Outcome {
    let pod = &node.pods()[0];
    underlay::ip_batch(pod.netns(), &format!("link set eth0 mtu {mtu}\n"))?;
    let veth = &pod.attachment().host_device;
    underlay::ip_batch(
        node.netns(),
        &format!("link set {veth} mtu {mtu}\nlink set cni0 mtu {mtu}\n"),
    )?;
    Ok(())
}

//! Nodes and pods come and go; kernel and fast path follow.

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use lab::{Node, Pod, etcd::PREFIX, traffic::udp::UdpFlow};

use crate::meter::Meter;
use crate::support::{
    Backend, ENDLESS, Outcome, PROMPT, Path, Setting, all_arrived, eventually, link, serves, shell,
    udp_arrives, wait_pods_served, with_cluster,
};

/// Packets of one check.
const PACKETS: u64 = 1000;
/// How soon a new pod is fast.
const SOON: Duration = Duration::from_millis(100);
/// How many pods are timed; odd, for the median.
const PODS: usize = 5;

pub(crate) fn join_and_leave(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let (first, second) = (cluster.node(1).clone(), cluster.node(2).clone());
        let others = UdpFlow::start(&first.pods()[0], &second.pods()[0], ENDLESS)?;

        let third = cluster.add_node(&setting.node())?;
        let pod = third.add_pod()?;
        wait_pods_served(&third)?;
        let meter = Meter::start(&third, &second)?;
        udp_arrives(&pod, &second.pods()[0], PACKETS, 64).context("from the new node")?;
        meter.expect(setting.path, PACKETS)?;
        udp_arrives(&second.pods()[0], &pod, PACKETS, 64).context("to the new node")?;

        let subnet = third.subnet_env()?.subnet;
        let mac = link(&third, "flannel.1")?.map_or_else(String::new, |(_, mac)| mac);
        let traces = [
            subnet.address.to_string(),
            lab::traffic::Host::address(&*third).to_string(),
            mac,
        ];
        ensure!(
            traces_of(&second, &traces)?.contains(&traces[0]),
            "the new node's route must be there"
        );
        cluster.remove_node(third.number())?;
        cluster
            .etcd()
            .delete(&format!("{PREFIX}/subnets/{}", subnet.key()))?;
        for node in [&first, &second] {
            eventually(
                "the end of all entries for the node that left",
                PROMPT,
                || {
                    let left = traces_of(node, &traces)?;
                    Ok(left.is_empty().then_some(()).ok_or(left))
                },
            )?;
        }
        not_sent_fast(&second, &second.pods()[0], &pod)?;
        all_arrived(&others.stop()?).context("between the nodes that stayed")
    })
}

/// Lines of routes, FDB and permanent neighbours that mention any of these.
fn traces_of(node: &Node, traces: &[String]) -> anyhow::Result<String> {
    let entries = shell(
        node,
        "ip route show; bridge fdb show; ip neighbour show nud permanent",
    )?;
    let mention = |line: &&str| {
        traces
            .iter()
            .any(|trace| !trace.is_empty() && line.contains(trace.as_str()))
    };
    Ok(entries
        .lines()
        .filter(mention)
        .collect::<Vec<_>>()
        .join("\n"))
}

/// Asserts that BPF sends no packet to an address whose node has gone.
fn not_sent_fast(node: &Node, from: &Pod, gone: &Pod) -> Outcome {
    let before = node.agent().status()?.fast_path.counters;
    let socket = from.netns().run(|| UdpSocket::bind("0.0.0.0:0"))??;
    for _ in 0..20 {
        // An answer from the network to an earlier packet may be the error here.
        socket.send_to(&[0; 16], (gone.address(), 9)).ok();
    }
    let counted = node.agent().status()?.fast_path.counters.since(&before);
    // Others' packets run at a thousand per second, but not from this node.
    ensure!(counted.fast_egress == 0, "{counted:?}");
    Ok(())
}

pub(crate) fn pods_come_and_go(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let (from, to) = (cluster.node(1), cluster.node(2));
        let source = &from.pods()[0];
        let mut delays = Vec::new();
        let mut pods = Vec::new();
        for _ in 0..PODS {
            let pod = to.add_pod()?;
            if setting.path == Path::Fast {
                let start = Instant::now();
                eventually("the pod in the fast path", PROMPT, || {
                    let status = to.agent().status()?;
                    Ok(serves(&status, &pod)
                        .then_some(())
                        .ok_or_else(|| format!("{:?}", status.fast_path.pods)))
                })?;
                delays.push(start.elapsed());
            }
            pods.push(pod);
        }
        delays.sort();
        // The median: the machine runs other tests meanwhile.
        if let Some(median) = delays.get(PODS / 2) {
            ensure!(*median < SOON, "pods were fast only after {delays:?}");
        }

        let pod = pods.pop().context("a pod was made")?;
        let meter = Meter::start(from, to)?;
        udp_arrives(source, &pod, PACKETS, 64).context("to a new pod")?;
        meter.expect(setting.path, PACKETS)?;
        let meter = Meter::start(to, from)?;
        udp_arrives(&pod, source, PACKETS, 64).context("from a new pod")?;
        meter.expect(setting.path, PACKETS)?;

        let gone = pod.address().to_string();
        to.delete_pod(pod)?;
        eventually("the end of the pod in the fast path", PROMPT, || {
            let pods = to.agent().status()?.fast_path.pods;
            let listed = pods.iter().any(|pod| pod.ip == gone);
            Ok((!listed).then_some(()).ok_or_else(|| format!("{pods:?}")))
        })?;
        udp_arrives(source, &pods[0], PACKETS, 64)
            .context("to a pod that stayed")
            .map(drop)
    })
}

/// Behind a router, VXLAN reaches a node as any other; host-gw cannot, says so, and serves the others.
pub(crate) fn behind_a_router(setting: Setting) -> Outcome {
    let nodes = vec![setting.node(), setting.node(), setting.node().routed()];
    with_cluster(setting.cluster(nodes), |cluster| {
        let (near, far) = (cluster.node(1), cluster.node(3));
        if setting.backend == Backend::Vxlan {
            for (from, to) in [(near, far), (far, near)] {
                let meter = Meter::start(from, to)?;
                udp_arrives(&from.pods()[0], &to.pods()[0], PACKETS, 64)?;
                meter.expect(setting.path, PACKETS)?;
            }
            return Ok(());
        }
        let subnet = far.subnet_env()?.subnet.to_string();
        let peers = near.agent().status()?.peers;
        let shown = peers.iter().find(|peer| peer.subnet == subnet);
        ensure!(
            shown.is_some_and(|peer| peer.via == "none" && peer.problem.is_some()),
            "{peers:?}"
        );
        let other = cluster.node(2);
        let meter = Meter::start(near, other)?;
        udp_arrives(&near.pods()[0], &other.pods()[0], PACKETS, 64)?;
        meter.expect(setting.path, PACKETS)?;
        not_sent_fast(near, &near.pods()[0], &far.pods()[0])
    })
}

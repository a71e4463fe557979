//! Errors that the kernel answers with, also to flows that are fast: the path's MTU, hops that end.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::{
    Node, Pod,
    capture::{Capture, Direction, Frame},
    traffic::tcp::{TcpFlow, TcpPlan},
    underlay,
};

use crate::dialog;
use crate::pair::{counters, first_pod as pod};
use crate::support::{Backend, Outcome, PROMPT, Path, Setting, eventually, with_cluster};

/// Bytes that a stream carries at each stage.
const STAGE: u64 = 30_000_000;
/// How long that may take.
const LIMIT: Duration = Duration::from_secs(20);
/// By how much the path gets narrower, in bytes.
const NARROWER: usize = 200;

/// Datagrams of a fast flow whose time to live ends are answered by the same hops as on the kernel's path, and those
/// behind the last arrive.
pub(crate) fn hops_are_the_kernels(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let nodes = [cluster.node(1), cluster.node(2)];
        let (client, server) = (pod(nodes[0])?, pod(nodes[1])?);
        let dialog = dialog::assured(&client, &server, 1)?.remove(0);
        let before = counters(nodes[0])?;
        let subnet = |node: &Node| node.subnet_env().map(|env| env.subnet);
        let hops = [
            subnet(nodes[0])?.host(1),
            match setting.backend {
                Backend::Vxlan => subnet(nodes[1])?.address,
                Backend::HostGw => nodes[1].address(),
            },
        ];
        let capture = Capture::start(client.netns(), "eth0")?;
        for (ttl, hop) in (1..).zip(hops) {
            dialog.exchange().context("between")?;
            dialog.client.set_ttl(ttl)?;
            dialog.client.send(b"expires")?;
            capture
                .wait_for("an answer", PROMPT, |frame| is_expired(frame, hop))
                .with_context(|| format!("TTL {ttl} must end at {hop}"))?;
            // The error is the next call's result.
            dialog.client.take_error()?;
            dialog.client.set_ttl(64)?;
        }
        for ttl in [3, 4] {
            dialog.client.set_ttl(ttl)?;
            dialog.exchange().with_context(|| format!("TTL {ttl}"))?;
        }
        let counted = counters(nodes[0])?.since(&before);
        let ended = counted.declined.get("pod_egress/ttl").copied();
        ensure!(
            setting.path == Path::Kernel || (counted.fast_egress > 0 && ended == Some(1)),
            "the flow must be fast but for what ends at this node: {counted:?}"
        );
        Ok(())
    })
}

/// "Time exceeded" from an address.
fn is_expired(frame: &Frame, hop: Ipv4Addr) -> bool {
    const TIME_EXCEEDED: u8 = 11;
    frame.direction == Direction::In
        && frame.bytes.len() > 34
        && frame.bytes[23] == 1
        && frame.bytes[34] == TIME_EXCEEDED
        && frame.bytes[26..30] == hop.octets()
}

/// The way between the nodes gets narrower while a stream and a datagram flow are fast: the stream goes on, and the
/// pod learns the same MTU as on the kernel's path.
pub(crate) fn a_narrower_path_is_learned(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let nodes = [cluster.node(1), cluster.node(2)];
        let (client, server) = (pod(nodes[0])?, pod(nodes[1])?);
        let dialog = dialog::assured(&client, &server, 1)?.remove(0);
        let plan = TcpPlan {
            bytes: u64::MAX,
            rate: None,
        };
        let before = counters(nodes[0])?;
        let flow = TcpFlow::start(&client, &server, plan)?;
        let stage = |what: &str| {
            let from = flow.received();
            eventually(what, LIMIT, || {
                let bytes = flow.received() - from;
                Ok((bytes >= STAGE)
                    .then_some(())
                    .ok_or_else(|| format!("{bytes} bytes")))
            })
        };
        let outcome = stage("bytes on the wide path").and_then(|()| {
            narrow(cluster.switch(), nodes)?;
            stage("bytes on the narrow path")
        });
        let counted = counters(nodes[0])?.since(&before);
        let report = flow.stop();
        outcome.with_context(|| format!("{report:?}, {counted:?}"))?;
        ensure!(report.is_intact(), "{report:?}");
        ensure!(
            setting.path == Path::Kernel || counted.fast_egress > 100,
            "never fast: {counted:?}"
        );
        datagrams_learn(setting, &client, &server, &dialog)
    })
}

/// Makes the links between the nodes narrower, at both ends: what is larger does not get through.
fn narrow(switch: &lab::Netns, nodes: [&std::sync::Arc<Node>; 2]) -> Outcome {
    let mtu = 1500 - NARROWER;
    for node in nodes {
        underlay::ip_batch(node.netns(), &format!("link set eth0 mtu {mtu}\n"))?;
        underlay::ip_batch(switch, &format!("link set {} mtu {mtu}\n", node.name()))?;
    }
    Ok(())
}

/// A datagram that no longer fits is answered by the node with the new MTU, if the node may not cut it.
fn datagrams_learn(
    setting: Setting,
    client: &Pod,
    server: &Pod,
    dialog: &dialog::Dialog,
) -> Outcome {
    let narrow = setting.pod_mtu() - NARROWER;
    let learned = || -> anyhow::Result<String> {
        let address = server.address().to_string();
        let arguments = ["route", "get", &address];
        Ok(lab::process::run(Some(client.netns()), "ip", &arguments)?)
    };
    underlay::ip_batch(client.netns(), "route flush cache\n")?;
    let told = format!("mtu {narrow}");
    let datagram = vec![0x5a; setting.pod_mtu() - 28];
    eventually("the path's MTU in the pod", PROMPT, || {
        // The kernel tells the socket with the next call, of which the answer is the error.
        dialog.client.send(&datagram).ok();
        let route = learned()?;
        Ok(route.contains(&told).then_some(()).ok_or(route))
    })?;
    Ok(())
}

//! Packets with a source that is not their sender's: left to the kernel as in stock flannel, or dropped everywhere.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::{Node, NodeConfig, Pod, process};

use crate::cleanup::cleanup;
use crate::support::{Backend, Outcome, PROMPT, Setting, eventually, shell, with_cluster};

/// How long a packet may take, and how long to wait for one that must not come.
const LIMIT: Duration = Duration::from_millis(500);
/// UDP port of VXLAN on Linux.
const VXLAN: u16 = 8472;
/// An address that is nobody's.
const STRANGER: Ipv4Addr = Ipv4Addr::new(172, 31, 99, 1);

/// In the default mode a pod's false source is the kernel's to deal with; in strict mode BPF drops it, whether it is
/// another pod's of the node or a stranger's, and VXLAN from a pod too. What is honest gets through.
pub(crate) fn a_false_source_is_dropped_if_wanted(setting: Setting) -> Outcome {
    for strict in [false, true] {
        with_cluster(cluster(setting, strict), |cluster| {
            let [from, to] = cluster.nodes() else {
                unreachable!("two nodes were asked for")
            };
            let [liar, sibling] = &from.pods()[..] else {
                unreachable!("two pods were asked for")
            };
            let target = &to.pods()[0];
            ensure!(arrives(liar, None, target)?, "an honest packet must arrive");
            for source in [sibling.address(), STRANGER] {
                let arrived = arrives(liar, Some(source), target)?;
                ensure!(
                    arrived != strict,
                    "strict {strict}, source {source}: arrived {arrived}"
                );
            }
            // Without a tunnel, VXLAN is like any datagram.
            let tunnel = setting.backend == Backend::Vxlan;
            let arrived = vxlan_arrives(liar, to)?;
            ensure!(
                arrived != (strict && tunnel),
                "strict {strict}, VXLAN from a pod: arrived {arrived}"
            );
            ensure!(arrives(liar, None, target)?, "an honest packet must arrive");
            let status = from.try_agent().context("no agent")?.status()?;
            let counted = |name: &str| {
                let declined = &status.fast_path.counters.declined;
                declined.get(&format!("pod_egress/{name}")).copied()
            };
            let [source, vxlan] = if strict {
                ["dropped-pod-source", "dropped-pod-vxlan"]
            } else {
                ["pod-source", "pod-vxlan"]
            };
            ensure!(
                counted(source) >= Some(2) && (counted(vxlan) >= Some(1) || !tunnel),
                "not counted: {:?}",
                status.fast_path.counters
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// Where BPF carries nothing, rules drop what cannot be right on any path: a source outside of the node's subnet from a
/// pod, and VXLAN from a pod.
pub(crate) fn rules_drop_what_has_a_false_source(setting: Setting) -> Outcome {
    for nftables in [false, true] {
        let mut config = cluster(setting, true);
        config.network = config.network.replace(
            "\"EnableNFTables\":false",
            &format!("\"EnableNFTables\":{nftables}"),
        );
        with_cluster(config, |cluster| {
            let [from, to] = cluster.nodes() else {
                unreachable!("two nodes were asked for")
            };
            let (liar, target) = (&from.pods()[0], &to.pods()[0]);
            let rules = if nftables {
                "nft list table inet flannel-fastpath"
            } else {
                "iptables -t raw -S FLANNEL-STRICT"
            };
            // The bridge, and so its rules, came with the pods.
            eventually("rules against false sources", PROMPT, || {
                let text = shell(from, rules).unwrap_or_default();
                Ok(text.contains("cni0").then_some(()).ok_or(text))
            })?;
            ensure!(arrives(liar, None, target)?, "an honest packet must arrive");
            ensure!(
                !arrives(liar, Some(STRANGER), target)?,
                "nftables {nftables}: a stranger's packet arrived"
            );
            ensure!(
                !vxlan_arrives(liar, to)?,
                "nftables {nftables}: VXLAN from a pod arrived"
            );
            from.agent().stop()?;
            cleanup(from)?;
            ensure!(
                shell(from, rules).is_err(),
                "the rules must be gone after cleanup"
            );
            Ok(())
        })?;
    }
    Ok(())
}

fn cluster(setting: Setting, strict: bool) -> lab::ClusterConfig {
    let mut agent = setting.agent();
    if strict {
        agent.arguments.push("--anti-spoof=strict".into());
    }
    let node = || NodeConfig::agent(&agent);
    lab::ClusterConfig {
        pods: 2,
        ..setting.cluster(vec![node(), node()])
    }
}

/// Whether a datagram from the pod, with that source address if one is given, reaches the target.
fn arrives(from: &Pod, source: Option<Ipv4Addr>, to: &Pod) -> anyhow::Result<bool> {
    let sink = to
        .netns()
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    let target = SocketAddr::new(to.address().into(), sink.local_addr()?.port());
    received(&sink, || send(from, source, target))
}

/// Whether VXLAN that a pod sends to a node gets there.
fn vxlan_arrives(from: &Pod, to: &Node) -> anyhow::Result<bool> {
    const NETWORK_OF_OTHERS: [u8; 8] = [8, 0, 0, 0, 0, 0, 77, 0];
    let target = SocketAddr::new(lab::traffic::Host::address(to).into(), VXLAN);
    let capture = lab::capture::Capture::start(to.netns(), "eth0")?;
    from.netns().run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.send_to(&NETWORK_OF_OTHERS, target)
    })??;
    Ok(capture
        .wait_for("VXLAN of a pod", LIMIT, |frame| {
            frame.bytes.ends_with(&NETWORK_OF_OTHERS)
        })
        .is_ok())
}

fn send(from: &Pod, source: Option<Ipv4Addr>, target: SocketAddr) -> Outcome {
    if let Some(source) = source {
        let address = format!("{source}/32");
        process::run(
            Some(from.netns()),
            "ip",
            &["address", "add", &address, "dev", "lo"],
        )?;
    }
    let bound = source.unwrap_or(Ipv4Addr::UNSPECIFIED);
    from.netns()
        .run(|| UdpSocket::bind((bound, 0))?.send_to(b"true or false", target))??;
    if let Some(source) = source {
        let address = format!("{source}/32");
        process::run(
            Some(from.netns()),
            "ip",
            &["address", "del", &address, "dev", "lo"],
        )?;
    }
    Ok(())
}

fn received(sink: &UdpSocket, send: impl FnOnce() -> Outcome) -> anyhow::Result<bool> {
    sink.set_read_timeout(Some(LIMIT))?;
    send()?;
    Ok(sink.recv(&mut [0; 64]).is_ok())
}

//! What conntrack knows of TCP's windows, and that fast packets, which it does not see, never cost a connection.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::{
    AgentConfig, Node, NodeConfig,
    traffic::tcp::{TcpFlow, TcpPlan},
};

use crate::support::{AGENT, Outcome, Setting, shell, with_cluster};

/// Bytes per second of the streams: fast enough that a window is out of date at once, and slow enough to last.
const RATE: u64 = 50_000_000;
/// What the slowest stream sends in all, at most.
const BYTES: u64 = 2_000_000_000;
/// How long a mode is left in force.
const PAUSE: Duration = Duration::from_millis(500);
/// No byte for so long: a retransmission was waited for, and more than one.
const STALL: Duration = Duration::from_secs(2);
/// How long a stream may take until something has arrived.
const LIMIT: Duration = Duration::from_secs(10);

/// Where conntrack's setting is.
const LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";

/// A stream leaves conntrack's sight and comes back, again and again, with kube-proxy's rule against what conntrack
/// calls invalid on both nodes: that rule never matches, and the stream never stalls.
pub(crate) fn a_stream_comes_back_to_the_kernel(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let nodes = [&**cluster.node(1), &**cluster.node(2)];
        cross(nodes, |stream| {
            for mode in ["off", "flow", "off", "flow"] {
                for node in nodes {
                    set_mode(node, mode)?;
                    sleep(PAUSE);
                    progress(stream)?;
                }
            }
            for node in nodes {
                let counted = node.agent().status()?.fast_path.counters;
                ensure!(
                    counted.fast_egress > 100 && counted.fast_ingress > 100,
                    "{}: the stream was not fast: {counted:?}",
                    node.name()
                );
            }
            Ok(())
        })
    })
}

/// Where conntrack cannot be told to be liberal, TCP is the kernel's, and the status says so.
pub(crate) fn tcp_never_leaves_a_strict_conntrack(setting: Setting) -> Outcome {
    let agent = AgentConfig {
        program: strict_agent(setting)?,
        ..setting.agent()
    };
    let nodes = vec![NodeConfig::agent(&agent), NodeConfig::agent(&agent)];
    with_cluster(setting.cluster(nodes), |cluster| {
        let nodes = [&**cluster.node(1), &**cluster.node(2)];
        cross(nodes, |stream| {
            sleep(PAUSE);
            for node in nodes {
                set_mode(node, "off")?;
            }
            sleep(PAUSE);
            progress(stream)
        })?;
        for node in nodes {
            set_mode(node, "flow")?;
            let status = node.agent().status()?.fast_path;
            ensure!(
                status.active && status.reason.is_some_and(|it| it.contains("be_liberal")),
                "{}: the status does not say why TCP is not fast",
                node.name()
            );
        }
        Ok(())
    })
}

/// Runs a stream from a pod of the first node to one of the second and does `work` meanwhile; nothing of it may be
/// invalid to conntrack.
fn cross(nodes: [&Node; 2], work: impl FnOnce(&TcpFlow) -> Outcome) -> Outcome {
    for node in nodes {
        shell(
            node,
            "iptables -w -I FORWARD -m conntrack --ctstate INVALID -j DROP",
        )?;
    }
    let plan = TcpPlan {
        bytes: BYTES,
        rate: Some(RATE),
    };
    let stream = TcpFlow::start(&nodes[0].pods()[0], &nodes[1].pods()[0], plan)?;
    let worked = progress(&stream).and_then(|()| work(&stream));
    for node in nodes {
        let count = "iptables -w -nvxL FORWARD | awk '/INVALID/ { print $1 }'";
        let dropped = shell(node, count)?;
        ensure!(
            dropped.trim() == "0",
            "{}: {} packets were INVALID",
            node.name(),
            dropped.trim()
        );
    }
    worked?;
    let report = stream.stop();
    ensure!(
        report.corrupted_at.is_none() && report.failure.is_none() && report.longest_gap < STALL,
        "{report:?}"
    );
    Ok(())
}

/// Waits until more of the stream has arrived.
fn progress(stream: &TcpFlow) -> Outcome {
    let (before, start) = (stream.received(), Instant::now());
    while stream.received() == before {
        ensure!(
            start.elapsed() < LIMIT,
            "the stream has stalled at {before}"
        );
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn set_mode(node: &Node, mode: &str) -> Outcome {
    let agent = node.agent();
    let socket = format!("--status-socket={}", agent.socket().display());
    agent
        .command_output(&["fast-path", mode, &socket])
        .with_context(|| format!("{}: {mode}", node.name()))
        .map(drop)
}

/// A program that runs the agent with a setting that it cannot write.
fn strict_agent(setting: Setting) -> anyhow::Result<PathBuf> {
    let name = setting.to_string().replace("::", "-");
    let name = format!("{name}-{}", setting.broken.unwrap_or("sound"));
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("strict-{name}"));
    let value = path.with_extension("value");
    fs::write(&value, "0\n")?;
    let mount = format!(
        "mount --bind {value} {LIBERAL} && mount -o remount,bind,ro {LIBERAL}",
        value = value.display()
    );
    let script = format!(
        "#!/bin/sh\nexec unshare --mount sh -c '{mount} && exec {AGENT} \"$@\"' agent \"$@\"\n"
    );
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

//! TCP windows as conntrack sees them: a stream that was fast comes back to the kernel far outside of them. It may be
//! fast only where conntrack takes that, and then nothing is lost when it comes back.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use lab::{
    AgentConfig, ClusterConfig, Node, NodeConfig,
    status::Counters,
    traffic::tcp::{TcpFlow, TcpPlan},
};

use crate::flow::{counters, pod};
use crate::support::{AGENT, Outcome, Setting, eventually, shell, with_cluster};

/// Services whose rules are on each node: kube-proxy's drop what conntrack calls invalid.
const SERVICES: usize = 10;
/// Bytes that a stream carries before and after: many times the largest window.
const MANY_WINDOWS: u64 = 100_000_000;
/// How long that may take.
const LIMIT: Duration = Duration::from_secs(10);
/// A stream that stood still for so long has lost packets: the shortest timeout of a retransmission is 200 ms, and a
/// busy machine may well pause for longer.
const STALL: Duration = Duration::from_secs(1);
/// What must be 1 where TCP is to be fast.
const LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";

/// The fast path of a running stream is turned off at one node and then at the other: no packet is invalid to conntrack,
/// and the stream goes on.
pub(crate) fn a_stream_survives_the_end_of_its_fast_path(setting: Setting) -> Outcome {
    let agent = setting.agent();
    with_kube_proxy(setting, &agent, |nodes| {
        let counted = turn_off_mid_flow(nodes)?;
        ensure!(counted.fast_egress > 1000, "never fast: {counted:?}");
        Ok(())
    })
}

/// Where the agent may not make conntrack liberal, TCP is the kernel's, the status says why, and nothing is lost when
/// the fast path is turned off.
pub(crate) fn tcp_is_the_kernels_where_conntrack_is_strict(setting: Setting) -> Outcome {
    let program = strict_agent(setting)?;
    let agent = AgentConfig {
        program,
        ..setting.agent()
    };
    with_kube_proxy(setting, &agent, |nodes| {
        for node in nodes {
            let value = shell(node, &format!("cat {LIBERAL}"))?;
            ensure!(value.trim() == "0", "{}: {value}", node.name());
        }
        let counted = turn_off_mid_flow(nodes)?;
        let declined = counted.declined.get("pod_egress/tcp-strict");
        ensure!(
            counted.fast_egress == 0 && declined.is_some_and(|count| *count > 1000),
            "TCP must be left to the kernel: {counted:?}"
        );
        Ok(())
    })
}

/// Runs `test` on two nodes with kube-proxy's rules.
fn with_kube_proxy(
    setting: Setting,
    agent: &AgentConfig,
    test: impl FnOnce([&Node; 2]) -> Outcome,
) -> Outcome {
    let config = ClusterConfig {
        services: SERVICES,
        ..setting.cluster(vec![NodeConfig::agent(agent), NodeConfig::agent(agent)])
    };
    with_cluster(config, |cluster| test([cluster.node(1), cluster.node(2)]))
}

/// Turns the fast path off at both nodes while a stream runs, and asserts that it loses nothing. Returns what the
/// sender's node has counted until then.
fn turn_off_mid_flow(nodes: [&Node; 2]) -> anyhow::Result<Counters> {
    let (client, server) = (pod(nodes[0])?, pod(nodes[1])?);
    let plan = TcpPlan {
        bytes: u64::MAX,
        rate: None,
    };
    let flow = TcpFlow::start(&client, &server, plan)?;
    let carried = |from: u64| {
        eventually("bytes of the stream", LIMIT, || {
            let bytes = flow.received() - from;
            Ok((bytes >= MANY_WINDOWS)
                .then_some(())
                .ok_or_else(|| format!("{bytes} after {from}")))
        })
    };
    let mut outcome = carried(0).context("before");
    let counted = counters(nodes[0])?;
    for node in nodes {
        let at = flow.received();
        let off = turn_off(node);
        outcome = outcome.and(off).and_then(|()| carried(at));
    }
    let report = flow.stop();
    for node in nodes {
        let dropped = invalid(node)?;
        ensure!(
            dropped == 0,
            "{}: {dropped} packets were INVALID to conntrack: {outcome:?}, {report:?}",
            node.name()
        );
    }
    outcome?;
    ensure!(
        report.is_intact() && report.longest_gap < STALL,
        "the stream stood still: {report:?}"
    );
    Ok(counted)
}

fn turn_off(node: &Node) -> Outcome {
    let agent = node.agent();
    let socket = format!("--status-socket={}", agent.socket().display());
    // What the status says of strict conntrack, it says while the fast path is on.
    let status = agent.status()?.fast_path;
    let strict = shell(node, &format!("cat {LIBERAL}"))?.trim() == "0";
    let told = |text: Option<&String>| text.is_some_and(|text| text.contains("tcp_be_liberal"));
    ensure!(
        !strict || (told(status.reason.as_ref()) && told(status.remedy.as_ref())),
        "nothing is said of strict conntrack: {status:?}"
    );
    agent.command_output(&["fast-path", "off", &socket])?;
    ensure!(
        agent.status()?.fast_path.hooks.is_empty(),
        "hooks are still attached"
    );
    Ok(())
}

/// How many packets kube-proxy's rule has dropped as invalid.
fn invalid(node: &Node) -> anyhow::Result<u64> {
    let rules = shell(node, "iptables -w -L KUBE-FORWARD -n -v -x")?;
    let rule = rules.lines().find(|line| line.contains("INVALID"));
    let rule = rule.with_context(|| format!("kube-proxy's rule is not there:\n{rules}"))?;
    let packets = rule.split_whitespace().next().context("a counter")?;
    Ok(packets.parse()?)
}

/// A program that runs the agent with conntrack's setting out of its reach.
fn strict_agent(setting: Setting) -> anyhow::Result<PathBuf> {
    let name = setting.to_string().replace("::", "-");
    let broken = setting.broken.unwrap_or("right");
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("strict-{name}-{broken}"));
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" != run ]; then exec {AGENT} \"$@\"; fi\n\
         exec unshare --mount --propagation private sh -c '\
         mount --bind {LIBERAL} {LIBERAL} && mount -o remount,bind,ro {LIBERAL} && exec {AGENT} \"$@\"' sh \"$@\"\n"
    );
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

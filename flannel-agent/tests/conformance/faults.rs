//! Faults that are about the process: memory, probes, messages.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, ensure};
use lab::Node;

use crate::peers::{key, routes, vxlan_value};
use crate::setting::{self, agents};
use crate::support::{Outcome, eventually, with_unready_cluster};

const NETWORK: &str = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#;

/// A thousand peers, within the memory that upstream's manifest once allowed.
pub(crate) fn memory() -> Outcome {
    const PEERS: u32 = 1000;
    /// The limit of upstream's manifest, in KiB, that its users' nodes exceeded.
    const LIMIT: u64 = 50 << 10;
    /// etcd takes so many puts in one transaction.
    const BATCH: u32 = 100;
    with_unready_cluster(agents(1, 0, NETWORK), |cluster| {
        let node = cluster.node(1);
        for batch in (0..PEERS).step_by(BATCH as usize) {
            let mut transaction = "\n".to_owned();
            for peer in batch..batch + BATCH {
                let [_, _, high, low] = peer.to_be_bytes();
                let value = vxlan_value(
                    &format!("172.16.{high}.{low}"),
                    &format!("0e:00:00:00:{high:02x}:{low:02x}"),
                );
                // Not among the first hundred subnets, of which nodes choose.
                let key = key(&format!("10.{}.{low}.0-24", 128 + u32::from(high)));
                transaction += &format!("put {key} \"{}\"\n", value.replace('"', "\\\""));
            }
            cluster
                .etcd()
                .ctl_with_input(&["txn"], &(transaction + "\n\n"))?;
        }
        eventually("all routes", std::time::Duration::from_secs(30), || {
            let now = routes(node, " dev flannel.1 ")?.lines().count();
            Ok((now == PEERS as usize)
                .then_some(())
                .ok_or_else(|| now.to_string()))
        })?;
        let used = resident(node.agent().pid()?)?;
        ensure!(used < LIMIT, "{used} KiB with {PEERS} peers");
        Ok(())
    })
}

/// Resident memory of a process at its peak, in KiB (`VmHWM` of `proc_pid_status(5)`).
fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.trim().split(' ').next());
    Ok(number.context(status.clone())?.parse()?)
}

const HEALTH_PORT: u16 = 8081;

/// The probes of upstream's manifest, with upstream's answers.
pub(crate) fn probes() -> Outcome {
    with_health(|cluster, node| {
        let healthy = get(node, "/healthz")?;
        ensure!(
            healthy.starts_with("HTTP/1.1 200") && healthy.ends_with("flanneld is running"),
            "{healthy}"
        );
        let ready = get(node, "/readyz")?;
        ensure!(
            ready.starts_with("HTTP/1.1 200") && ready.ends_with("flanneld is ready"),
            "{ready}"
        );
        // Without a network config no agent is ready.
        node.agent().stop()?;
        cluster
            .etcd()
            .delete(&format!("{}/config", lab::etcd::PREFIX))?;
        node.agent().start()?;
        eventually("an answer", crate::support::PROMPT, || {
            let answer = get(node, "/readyz").unwrap_or_default();
            let not_ready =
                answer.starts_with("HTTP/1.1 503") && answer.ends_with("flanneld is not ready yet");
            Ok(not_ready.then_some(()).ok_or(answer))
        })?;
        let healthy = get(node, "/healthz")?;
        ensure!(healthy.starts_with("HTTP/1.1 200"), "{healthy}");
        Ok(())
    })
}

/// Figures for Prometheus.
pub(crate) fn metrics() -> Outcome {
    let mut answer = String::new();
    with_health(|_, node| {
        answer = get(node, "/metrics")?;
        Ok(())
    })?;
    ensure!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("\n# TYPE flannel"),
        "{answer}"
    );
    Ok(())
}

fn with_health(test: impl FnOnce(&lab::Cluster, &Node) -> Outcome) -> Outcome {
    let mut agent = setting::vxlan().agent();
    agent
        .arguments
        .push(format!("--healthz-port={HEALTH_PORT}"));
    let nodes = vec![lab::NodeConfig::agent(&agent)];
    with_unready_cluster(setting::vxlan().cluster(nodes), |cluster| {
        let node = cluster.node(1);
        test(cluster, node)
    })
}

/// The whole answer, status line and body.
fn get(node: &Node, path: &str) -> anyhow::Result<String> {
    let mut stream = node
        .netns()
        .run(|| TcpStream::connect(("127.0.0.1", HEALTH_PORT)))??;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(2)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.trim_end().to_owned())
}

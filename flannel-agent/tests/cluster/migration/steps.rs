//! What is done to a node on the way, and what must hold of it afterwards.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::{Cluster, LeaseStore, Node};

use crate::cleanup::{pins, programs};
use crate::support::{AGENT, Outcome, Path, Setting, eventually, shell, wait_pods_served};

/// How long a step is watched after it is done.
pub(crate) const PAUSE: Duration = Duration::from_millis(800);
/// How long flows may take to turn fast.
const TURNS_FAST: Duration = Duration::from_secs(10);
/// Packets that count as traffic's, and not as single ones.
const MANY: u64 = 500;

/// What must stay as it is: of each node the kernel's state, `subnet.env`, and the lease.
pub(crate) struct State {
    leases: LeaseStore,
    parts: Vec<String>,
}

impl State {
    pub(crate) fn of_all(cluster: &Cluster, leases: LeaseStore) -> anyhow::Result<Self> {
        let mut parts = vec![published(cluster, leases)?];
        for node in cluster.nodes() {
            parts.push(kernel(node).context(node.name().to_owned())?);
        }
        Ok(Self { leases, parts })
    }

    /// Asserts that all is as it was.
    pub(crate) fn still(&self, cluster: &Cluster) -> Outcome {
        let now = Self::of_all(cluster, self.leases)?;
        for (before, now) in self.parts.iter().zip(&now.parts) {
            ensure!(before == now, "before:\n{before}\nnow:\n{now}");
        }
        Ok(())
    }
}

/// What is published of all nodes: keys and values in etcd, or nodes' annotations.
fn published(cluster: &Cluster, leases: LeaseStore) -> anyhow::Result<String> {
    if leases == LeaseStore::Etcd {
        let mut keys = cluster.etcd().get_prefix("/coreos.com/network/subnets/")?;
        keys.sort();
        return Ok(format!("{keys:#?}"));
    }
    let server = cluster.api_server();
    let nodes = cluster.nodes().iter();
    Ok(nodes
        .map(|node| format!("{}: {:#?}\n", node.name(), server.annotations(node.name())))
        .collect())
}

/// Devices with index and MAC address, addresses, routes, entries for peers, flannel's own rules, and `subnet.env`.
fn kernel(node: &Node) -> anyhow::Result<String> {
    let file = node.directory().join("subnet.env");
    let text = shell(
        node,
        "ip -brief link show; ip -4 -brief address show; ip route show | sort; \
         bridge fdb show dev flannel.1 2>/dev/null | sort; ip neighbour show nud permanent | sort; \
         for table in nat filter; do iptables-save -t $table | grep -e '^-A FLANNEL' -e '-j FLANNEL'; done; \
         for family in ip:flannel-ipv4 ip6:flannel-ipv6; do \
         nft --stateless list table ${family%:*} ${family#*:} 2>/dev/null; done; true",
    )?;
    let env = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    Ok(format!("{text}{env}"))
}

/// Starts our agent on a node where flanneld has just ended.
pub(crate) fn take_over(cluster: &Cluster, number: u8, setting: Setting) -> Outcome {
    cluster.install_agent(number, &setting.agent())?;
    let node = cluster.node(number);
    node.agent().start()?;
    node.agent().wait_ready()?;
    wait_pods_served(node)
}

/// Packets are fast at all nodes, out and in, if they are to be.
pub(crate) fn fast(cluster: &Cluster, setting: Setting) -> Outcome {
    for node in cluster.nodes() {
        let counters = || anyhow::Ok(node.agent().status()?.fast_path.counters);
        let before = counters()?;
        if setting.path == Path::Kernel {
            ensure!(
                before.fast_egress == 0 && before.fast_ingress == 0,
                "{before:?}"
            );
            continue;
        }
        eventually("fast packets", TURNS_FAST, || {
            let counted = counters()?.since(&before);
            let fast = counted.fast_egress > MANY && counted.fast_ingress > MANY;
            Ok(fast
                .then_some(())
                .ok_or_else(|| format!("{}: {counted:?}", node.name())))
        })?;
    }
    Ok(())
}

/// Has the running agent take its programs away.
pub(crate) fn turn_off(node: &Node, setting: Setting) -> Outcome {
    if setting.path != Path::Kernel {
        let socket = format!("--status-socket={}", node.agent().socket().display());
        node.agent()
            .command_output(&["fast-path", "off", &socket])?;
    }
    Ok(())
}

/// What removes the rest in Kubernetes.
const MANIFEST: &str = include_str!("../../../deploy/cleanup.yml");

/// Runs `cleanup --keep-network` as `deploy/cleanup.yml` does: with its arguments, and with its capabilities alone.
pub(crate) fn cleanup(node: &Node) -> Outcome {
    let list = |before: &str| -> anyhow::Result<Vec<String>> {
        let (_, rest) = MANIFEST
            .split_once(before)
            .with_context(|| before.to_owned())?;
        Ok(rest
            .lines()
            .skip(1)
            .map_while(|line| line.trim().strip_prefix("- "))
            .map(|line| line.split(' ').next().unwrap_or_default().to_lowercase())
            .collect())
    };
    let (_, arguments) = MANIFEST.split_once("args: [").context("arguments")?;
    let (arguments, _) = arguments.split_once(']').context("arguments")?;
    let bounding: String = list(" add:")?
        .iter()
        .map(|name| format!(",+{name}"))
        .collect();
    let run = |further: &str| {
        let agent = node.agent();
        let command = format!(
            "setpriv --no-new-privs --inh-caps=-all --bounding-set=-all{bounding} {AGENT} {} --subnet-file={} \
             --status-socket={} --pin-dir={} {further}",
            arguments.replace(',', ""),
            agent.subnet_file().display(),
            agent.socket().display(),
            agent.pin_directory().display()
        );
        shell(node, &command)
    };
    let would = run("--dry-run")?;
    let did = run("")?;
    let kinds = |text: &str| {
        text.lines()
            .filter(|line| line.contains("FLANNEL-") || line.contains("table"))
            .count()
    };
    ensure!(kinds(&would) == kinds(&did), "dry: {would}\nreally: {did}");
    ensure!(!did.contains("route") && !did.contains("device"), "{did}");
    nothing_left(node).with_context(|| format!("cleanup said: {did}"))
}

/// Starts flanneld again on a node where the agent has just ended.
pub(crate) fn flanneld(cluster: &Cluster, number: u8) -> Outcome {
    Ok(cluster.node(number).stock().restart()?)
}

/// Asserts that nothing is left on the node that flanneld does not know.
pub(crate) fn nothing_left(node: &Node) -> Outcome {
    let programs = programs(node)?;
    ensure!(
        programs.is_empty(),
        "programs on {}: {programs}",
        node.name()
    );
    let pins = pins(node);
    ensure!(pins.is_empty(), "pins of {}: {pins:?}", node.name());
    let rules = shell(
        node,
        "iptables-save | grep -e FLANNEL-ATTEST -e FLANNEL-STRICT; nft list tables | grep fastpath; true",
    )?;
    ensure!(rules.is_empty(), "rules on {}: {rules}", node.name());
    let liberal = shell(
        node,
        "cat /proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal",
    )?;
    ensure!(
        liberal.trim() == "0",
        "conntrack on {} is liberal",
        node.name()
    );
    ensure!(
        !node.agent().socket().exists(),
        "{} is left",
        node.agent().socket().display()
    );
    Ok(())
}

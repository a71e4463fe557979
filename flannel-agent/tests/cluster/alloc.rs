//! The alloc backend: a lease, the subnet file and the rules, and nothing else.

use anyhow::ensure;
use lab::ClusterConfig;

use crate::{
    pair::Pair,
    suites::Test,
    support::{Outcome, Setting, shell, udp_arrives, with_cluster},
};

/// All tests.
pub(crate) const TESTS: &[(&str, Test)] = &[(
    "it_keeps_a_lease_and_leaves_the_rest_to_others",
    leaves_the_rest_to_others,
)];

/// Packets of one check.
const PACKETS: u64 = 200;

fn leaves_the_rest_to_others(setting: Setting) -> Outcome {
    let config = ClusterConfig {
        network: r#"{"Network":"10.5.0.0/16","Backend":{"Type":"alloc"}}"#.into(),
        ..setting.pair()
    };
    with_cluster(config, |cluster| {
        let prefix = format!("{}/subnets/", lab::etcd::PREFIX);
        for (node, (key, value)) in cluster
            .nodes()
            .iter()
            .zip(cluster.etcd().get_prefix(&prefix)?)
        {
            // Sorted by subnet, not by node.
            let ours = cluster.nodes().iter().any(|node| {
                value == format!(r#"{{"PublicIP":"{}","PublicIPv6":null}}"#, node.address())
            });
            ensure!(ours, "{key}: {value}");
            let env = node.subnet_env()?;
            ensure!(env.mtu == 1500 && env.ip_masq, "{env:?}");
            let rules = shell(node, "iptables-save -t nat; nft list ruleset 2>/dev/null")?;
            ensure!(rules.contains("10.5.0.0/16"), "no rules: {rules}");
            let objects = shell(node, "ip -brief link show; ip route show")?;
            // Its own bridge is the only device in the network.
            ensure!(
                !objects.contains("flannel")
                    && objects
                        .lines()
                        .filter(|line| line.contains("10.5."))
                        .count()
                        == 1,
                "{objects}"
            );
            let status = node.agent().status()?;
            let fine = status
                .peers
                .iter()
                .all(|peer| peer.via == "alloc" && peer.problem.is_none());
            ensure!(fine && status.problems.is_empty(), "{status:?}");
        }
        // Routes that somebody else makes stay, however much they look like flannel's.
        let pair = Pair::of(cluster)?;
        for (node, other) in [(0, 1), (1, 0)].map(|(a, b)| (pair.nodes[a], pair.nodes[b])) {
            let subnet = other.subnet_env()?.subnet;
            shell(
                node,
                &format!("ip route add {subnet} via {}", other.address()),
            )?;
        }
        udp_arrives(&pair.pods[0], &pair.pods[1], PACKETS, 64)?;
        // An agent that starts looks at everything before it is ready.
        pair.nodes[0].agent().restart()?;
        udp_arrives(&pair.pods[1], &pair.pods[0], PACKETS, 64).map(drop)
    })
}

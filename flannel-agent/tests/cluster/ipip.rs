//! The ipip backend: what the kernel has, what is on the wire, what comes back; and the kernel without it.

use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use lab::{
    ClusterConfig, Error, Node, NodeConfig, process,
    traffic::tools::{self, PingPlan},
};

use crate::{
    cleanup::cleanup,
    kernels::is_absent,
    pair::Pair,
    process::own_files,
    suites::{Lacks, Test},
    support::{
        AGENT, Outcome, PROMPT, Path, Setting, eventually, shell, udp_arrives, with_cluster,
        with_unready_cluster,
    },
};

/// All tests, with what they lack here.
pub(crate) const TESTS: &[(&str, Path, Test, Lacks)] = &[
    (
        "pods_reach_pods_and_objects_come_back",
        Path::Kernel,
        carries,
        lacks_ipip,
    ),
    (
        "pods_reach_pods_beside_a_fast_path",
        Path::Flow,
        carries,
        lacks_ipip,
    ),
    (
        "stock_nodes_are_peers_like_any",
        Path::Kernel,
        with_stock_node,
        lacks_ipip,
    ),
    (
        "peers_on_the_link_are_routed_to",
        Path::Kernel,
        direct_routing,
        lacks_ipip,
    ),
    (
        "a_kernel_without_it_is_named_before_anything_is_touched",
        Path::Kernel,
        missing_module,
        has_ipip,
    ),
];

/// There in each namespace once the kernel has IPIP: the module's own device.
const TUNL0: &str = "/proc/sys/net/ipv4/conf/tunl0";
/// Packets of one check.
const PACKETS: u64 = 200;
/// MTU of pods, in bytes: 1500 less the outer header.
const MTU: usize = 1480;
/// Length of the headers of IPv4 and UDP in bytes.
const HEADERS: usize = 28;

fn lacks_ipip() -> Option<&'static str> {
    is_absent(TUNL0, "ipip").then_some("the kernel has no IPIP (CONFIG_NET_IPIP)")
}

fn has_ipip() -> Option<&'static str> {
    lacks_ipip().is_none().then_some("the kernel has IPIP")
}

fn config(setting: Setting, options: &str, nodes: Vec<NodeConfig>) -> ClusterConfig {
    ClusterConfig {
        network: format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"ipip"{options}}}}}"#),
        ..setting.cluster(nodes)
    }
}

/// Pods reach pods in packets of every size, kernel objects and leases are upstream's, what is removed comes back, and
/// cleanup leaves nothing.
fn carries(setting: Setting) -> Outcome {
    let nodes = vec![setting.node(), setting.node()];
    with_unready_cluster(config(setting, "", nodes), |cluster| {
        let pair = Pair::of(cluster)?;
        let ([from, to], [near, far]) = (&pair.pods, pair.nodes);
        for size in [64, MTU - HEADERS] {
            udp_arrives(from, to, PACKETS, size)?;
            udp_arrives(to, from, PACKETS, size)?;
        }
        // From the node itself: the source is the device's address, which the other node reaches through its own device.
        let report = tools::ping(near.netns(), to.address(), PingPlan::default())?;
        ensure!(report.received == 1, "ping from the node: {report:?}");
        for lease in cluster
            .etcd()
            .get_prefix(&format!("{}/subnets/", lab::etcd::PREFIX))?
        {
            ensure!(
                lease
                    .1
                    .ends_with(r#","PublicIPv6":null,"BackendType":"ipip"}"#),
                "{lease:?}"
            );
        }
        objects_are_upstreams(near, far)?;
        for harm in [
            "ip link delete flannel.ipip",
            "ip link set flannel.ipip down",
            "ip address flush dev flannel.ipip",
            "ip route flush dev flannel.ipip",
            "ip link set flannel.ipip mtu 1400",
            "ip link set flannel.ipip type ipip local 192.168.100.99",
        ] {
            shell(near, harm)?;
            eventually(harm, PROMPT, || {
                Ok(objects_are_upstreams(near, far).map_err(|error| error.to_string()))
            })?;
            udp_arrives(from, to, PACKETS, 64).context(harm)?;
        }
        near.agent().stop()?;
        let said = cleanup(near)?;
        let left = shell(
            near,
            "ip link show | grep flannel; ip route show | grep 10.5. || true",
        )?;
        ensure!(
            !left.contains("flannel"),
            "cleanup said {said} and left {left}"
        );
        Ok(())
    })
}

/// Pods of a stock node and of ours reach each other, and each other's nodes.
fn with_stock_node(setting: Setting) -> Outcome {
    let nodes = vec![setting.node(), NodeConfig::stock()];
    with_cluster(config(setting, "", nodes), |cluster| {
        let pair = Pair::of(cluster)?;
        for (node, from, to) in [(0, 0, 1), (1, 1, 0)] {
            let (from, to) = (&pair.pods[from], &pair.pods[to]);
            udp_arrives(from, to, PACKETS, 64)?;
            let report = tools::ping(pair.nodes[node].netns(), to.address(), PingPlan::default())?;
            ensure!(report.received == 1, "ping from node {node}: {report:?}");
        }
        Ok(())
    })
}

/// Device, address and route as they were recorded.
fn objects_are_upstreams(node: &Node, peer: &Node) -> Outcome {
    let (subnet, remote) = (node.subnet_env()?.subnet, peer.subnet_env()?.subnet);
    let link = shell(node, "ip -details link show dev flannel.ipip")?;
    let attributes = [
        format!("mtu {MTU} "),
        format!("ipip remote any local {} ", node.address()),
        ",UP".to_owned(),
    ];
    ensure!(
        attributes.iter().all(|attribute| link.contains(attribute)),
        "{link}"
    );
    let addresses = shell(node, "ip -4 -oneline address show dev flannel.ipip")?;
    ensure!(
        addresses.contains(&format!("inet {}/32 ", subnet.address))
            && addresses.lines().count() == 1,
        "{addresses}"
    );
    let routes = shell(node, "ip route show dev flannel.ipip")?;
    let expected = format!("{remote} via {} onlink", peer.address());
    ensure!(routes.trim() == expected, "{routes:?}");
    let env = node.subnet_env()?;
    ensure!(env.mtu as usize == MTU, "{env:?}");
    Ok(())
}

/// With DirectRouting nodes of one segment need no tunnel, and the one behind the router is reached by it; when a route
/// changes, the way does.
fn direct_routing(setting: Setting) -> Outcome {
    let nodes = vec![setting.node(), setting.node(), setting.node().routed()];
    let options = r#","DirectRouting":true"#;
    with_cluster(config(setting, options, nodes), |cluster| {
        let [near, other, far] = [1, 2, 3].map(|number| &**cluster.node(number));
        for (from, to) in [(near, other), (near, far), (far, other)] {
            udp_arrives(&from.pods()[0], &to.pods()[0], PACKETS, 64)?;
        }
        let remote = other.subnet_env()?.subnet.to_string();
        let via = |expected: &str| -> anyhow::Result<Result<(), String>> {
            let peers = near.agent().status()?.peers;
            let peer = peers.iter().find(|peer| peer.subnet == remote);
            Ok(match peer {
                Some(peer) if peer.via == expected && peer.problem.is_none() => Ok(()),
                _ => Err(format!("{peers:?}")),
            })
        };
        eventually("a direct route", PROMPT, || via("direct"))?;
        let gateway = shell(near, "ip route show default")?;
        let gateway = gateway
            .split(' ')
            .nth(2)
            .context("a default route")?
            .to_owned();
        let host = format!("{}/32 via {gateway}", other.address());
        shell(near, &format!("ip route add {host}"))?;
        eventually("a tunnel", PROMPT, || via("ipip"))?;
        udp_arrives(&near.pods()[0], &other.pods()[0], PACKETS, 64)?;
        shell(near, &format!("ip route delete {host}"))?;
        eventually("a direct route again", PROMPT, || via("direct"))?;
        udp_arrives(&near.pods()[0], &other.pods()[0], PACKETS, 64).map(drop)
    })
}

/// Where the kernel has no such devices, the agent ends with one line, and neither etcd nor the node has changed.
fn missing_module(setting: Setting) -> Outcome {
    let nodes = vec![NodeConfig::default()];
    with_unready_cluster(config(setting, "", nodes), |cluster| {
        let (node, etcd) = (cluster.node(1), cluster.etcd());
        let state = || {
            shell(
                node,
                "ip -brief link show; ip address show; ip route show; iptables-save; nft list ruleset",
            )
        };
        let before = state()?;
        let mut command = Command::new(AGENT);
        command
            .arg("run")
            .arg(format!("--etcd-endpoints={}", etcd.endpoint()))
            .arg("--iface=eth0")
            .args(own_files(node))
            .env("RUST_LOG", "off");
        let (code, said) = match process::run_command(Some(node.netns()), &mut command, "") {
            Err(Error::Command { status, output, .. }) => (status.code(), output),
            other => bail!("it did not fail: {other:?}"),
        };
        let expected = "error: backend ipip: this kernel has no IPIP devices: install and load the module ipip \
                        (modprobe ipip), or choose another backend";
        ensure!(
            code == Some(1) && said.trim() == expected,
            "{code:?}: {said}"
        );
        let after = state()?;
        ensure!(before == after, "before {before}\nafter {after}");
        let leases = etcd.leases()?;
        ensure!(leases.is_empty(), "{leases:?}");
        ensure!(
            !node.directory().join("subnet.env").exists(),
            "there is a subnet file"
        );
        Ok(())
    })
}

//! Two daemons that reach each other, as upstream's functional tests want it: no pods, but the address of
//! `FLANNEL_SUBNET` on a device of each host.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::{
    Node, Underlay,
    process::Helper,
    stock,
    traffic::tools::{self, IperfPlan},
};

use crate::setting::{self, agents, if_carried, mixed};
use crate::support::{
    AGENT, Outcome, eventually, shell, udp_arrives, with_cluster, with_unready_cluster,
};

/// Upstream waits so long for `subnet.env`.
const STARTS: Duration = Duration::from_secs(30);

const VXLAN: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
const HOST_GW: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;
const UDP: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#;
const IPIP: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"ipip"}}"#;

pub(crate) fn vxlan() -> Outcome {
    ping_each_other(VXLAN)
}

pub(crate) fn host_gw() -> Outcome {
    ping_each_other(HOST_GW)
}

pub(crate) fn udp() -> Outcome {
    ping_each_other(UDP)
}

pub(crate) fn ipip() -> Outcome {
    ping_each_other(IPIP)
}

/// Peers of a stock node, pods included.
pub(crate) fn udp_with_stock_node() -> Outcome {
    pods_with_stock_node(UDP)
}

pub(crate) fn ipip_with_stock_node() -> Outcome {
    pods_with_stock_node(IPIP)
}

fn pods_with_stock_node(network: &str) -> Outcome {
    if_carried(network, || {
        with_cluster(mixed(network), |cluster| {
            let [first, second] = [1, 2].map(|number| cluster.node(number).pods()[0].clone());
            udp_arrives(&first, &second, 200, 64)?;
            udp_arrives(&second, &first, 200, 64).map(drop)
        })
    })
}

fn ping_each_other(network: &str) -> Outcome {
    if_carried(network, || {
        with_unready_cluster(agents(2, 0, network), |cluster| {
            let [first, second] = [1, 2].map(|number| &**cluster.node(number));
            let addresses = [hold(first, "dummy0")?, hold(second, "dummy0")?];
            ping(first, &addresses[0], &addresses[1])?;
            ping(second, &addresses[1], &addresses[0])
        })
    })
}

/// Puts the address of the node's `subnet.env` on a bridge of this name.
fn hold(node: &Node, device: &str) -> anyhow::Result<String> {
    hold_of(node, device, &node.agent().subnet_file())
}

fn hold_of(node: &Node, device: &str, file: &std::path::Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(file)?;
    let address = text
        .lines()
        .find_map(|line| line.strip_prefix("FLANNEL_SUBNET="))
        .context("FLANNEL_SUBNET in subnet.env")?;
    shell(
        node,
        &format!(
            "ip link add {device} type bridge && ip address add {address} dev {device} && ip link set {device} up"
        ),
    )?;
    Ok(address.split('/').next().unwrap_or_default().to_owned())
}

fn ping(node: &Node, from: &str, to: &str) -> Outcome {
    shell(node, &format!("ping -c 3 -i 0.2 -W 2 -I {from} {to}"))
        .with_context(|| format!("from {}", node.name()))
        .map(drop)
}

/// Two daemons on each of two hosts, of different networks and backends: each network works, and only by its own path.
pub(crate) fn two_per_host() -> Outcome {
    const SECOND_PREFIX: &str = "/hostgw/network";
    with_unready_cluster(agents(2, 0, VXLAN), |cluster| {
        let [first, second] = [1, 2].map(|number| &**cluster.node(number));
        cluster.etcd().put(
            &format!("{SECOND_PREFIX}/config"),
            r#"{"Network":"10.12.0.0/16","Backend":{"Type":"host-gw"}}"#,
        )?;
        let mut others = Vec::new();
        for node in [first, second] {
            let file = |name: &str| node.directory().join(name);
            let mut command = Command::new(AGENT);
            command
                .arg(format!("-etcd-endpoints={}", cluster.etcd().endpoint()))
                .arg(format!("-etcd-prefix={SECOND_PREFIX}"))
                .arg(format!("-subnet-file={}", file("hostgw.env").display()))
                .arg(format!("--status-socket={}", file("hostgw.sock").display()))
                .arg(format!(
                    "--pin-dir={}-hostgw",
                    node.agent().pin_directory().display()
                ))
                .args(["-iface", "eth0", "--fast-path=off"])
                .stdout(fs::File::create(file("hostgw.log"))?)
                .stderr(fs::File::create(file("hostgw.err"))?);
            others.push(Helper::spawn(node.netns(), command)?);
        }
        for node in [first, second] {
            eventually("subnet.env of the second daemon", STARTS, || {
                let log = fs::read_to_string(node.directory().join("hostgw.log"))?;
                let there = node.directory().join("hostgw.env").exists();
                Ok(there.then_some(()).ok_or(log))
            })?;
        }
        let tunnelled = hold(first, "dummy_vxlan")?;
        let routed = hold_of(first, "dummy_hostgw", &first.directory().join("hostgw.env"))?;
        eventually("the route of the second network", STARTS, || {
            let routes = shell(second, "ip route show")?;
            let there = routes.contains("10.12.") && routes.contains("via 192.168.100.1 dev eth0");
            Ok(there.then_some(()).ok_or(routes))
        })?;
        for address in [&tunnelled, &routed] {
            shell(second, &format!("ping -c 3 -i 0.2 -W 2 {address}"))?;
        }
        for (device, address) in [("flannel.1", &routed), ("eth0", &tunnelled)] {
            let forced = shell(second, &format!("ping -W 1 -c 1 -I {device} {address}"));
            ensure!(forced.is_err(), "{address} must not be reached by {device}");
        }
        Ok(())
    })
}

pub(crate) fn iperf() -> Outcome {
    with_cluster(setting::vxlan().pair(), |cluster| {
        let [first, second] = [1, 2].map(|number| cluster.node(number).pods()[0].clone());
        for plan in [
            IperfPlan::default(),
            IperfPlan {
                udp_size: Some(1000),
                rate: Some(50_000_000),
                reverse: true,
                ..IperfPlan::default()
            },
        ] {
            let report = tools::iperf3(&first, &second, plan)?;
            ensure!(report.bits_per_second > 1e6, "{report:?}");
        }
        Ok(())
    })
}

/// A dual-stack network.
const DUAL: &str = r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;

/// IPv6 beside IPv4, with a stock node as peer: pods reach pods in both families, and MTUs are right.
pub(crate) fn dual_stack() -> Outcome {
    dual(DUAL)
}

pub(crate) fn dual_stack_direct_routing() -> Outcome {
    dual(&DUAL.replace(r#""vxlan""#, r#""vxlan","DirectRouting":true"#))
}

pub(crate) fn dual_stack_host_gw() -> Outcome {
    dual(&DUAL.replace("vxlan", "host-gw"))
}

fn dual(network: &str) -> Outcome {
    use lab::traffic::{OverIpv6, tcp};
    ensure!(stock::is_dual_stack(network), "{network}");
    // Frames of their real size: a wire that takes aggregates would hide an MTU that is too large.
    let config = lab::ClusterConfig {
        underlay: Underlay {
            offloads: false,
            ..Underlay::default()
        },
        ..mixed(network)
    };
    with_cluster(config, |cluster| {
        // Of a packet over IPv6, VXLAN takes 70 bytes of the 1500.
        let mtu = cluster.node(1).subnet_env()?.mtu;
        let expected = if network.contains("vxlan") {
            1430
        } else {
            1500
        };
        ensure!(mtu == expected, "FLANNEL_MTU={mtu}");
        let [ours, stock] = [1, 2].map(|number| cluster.node(number).pods()[0].clone());
        udp_arrives(&ours, &stock, 200, 64)?;
        udp_arrives(&stock, &ours, 200, 64)?;
        let over = |pod| OverIpv6::pod(pod).context("a pod without IPv6");
        let (ours, stock) = (over(&ours)?, over(&stock)?);
        udp_arrives(&ours, &stock, 200, 64)?;
        udp_arrives(&stock, &ours, 200, 64)?;
        let plan = tcp::TcpPlan {
            bytes: 2_000_000,
            rate: None,
        };
        for (from, to) in [(&ours, &stock), (&stock, &ours)] {
            let report = tcp::run(from, to, plan)?;
            ensure!(report.is_intact() && report.received > 0, "{report:?}");
        }
        Ok(())
    })
}

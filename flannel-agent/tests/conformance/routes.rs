//! Routes to peers: what changes them, what takes them away, and what brings them back.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::{Node, NodeConfig};

use crate::peers::{host_gw_value, key, route_becomes, routes, vxlan_value};
use crate::setting;
use crate::support::{Outcome, PROMPT, Setting, eventually, shell, udp_arrives, with_cluster};

/// A peer that is only a key, of a subnet that no node can get.
const SUBNET: &str = "10.5.0.0/25";
const KEY: &str = "10.5.0.0-25";

/// A peer's new address replaces the route's gateway; a route that somebody has deleted is back.
pub(crate) fn gateway_changes() -> Outcome {
    /// Upstream looks so often.
    const BACK: Duration = Duration::from_secs(10);
    with_cluster(setting::host_gw().pair(), |cluster| {
        let node = cluster.node(1);
        let by = |gateway: &str| format!("{SUBNET} via {gateway} dev eth0\n");
        cluster
            .etcd()
            .put(&key(KEY), &host_gw_value("192.168.100.51"))?;
        route_becomes(node, SUBNET, &by("192.168.100.51"))?;
        cluster
            .etcd()
            .put(&key(KEY), &host_gw_value("192.168.100.52"))?;
        route_becomes(node, SUBNET, &by("192.168.100.52"))?;
        shell(node, &format!("ip route delete {SUBNET}"))?;
        eventually("the route again", BACK, || {
            let now = routes(node, SUBNET)?;
            Ok((now == by("192.168.100.52")).then_some(()).ok_or(now))
        })?;
        // What leads there by itself is replaced, too.
        shell(
            node,
            &format!("ip route replace {SUBNET} via 192.168.100.53 dev eth0"),
        )?;
        route_becomes(node, SUBNET, &by("192.168.100.52"))
    })
}

pub(crate) fn link_flaps_vxlan() -> Outcome {
    link_flaps(setting::vxlan())
}

pub(crate) fn link_flaps_host_gw() -> Outcome {
    link_flaps(setting::host_gw())
}

/// The node's link goes down and comes up, and so does the VXLAN device: routes are back, packets flow.
fn link_flaps(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let [node, other] = [1, 2].map(|number| &**cluster.node(number));
        let subnet = other.subnet_env()?.subnet.to_string();
        let before = routes(node, &subnet)?;
        ensure!(!before.is_empty(), "a route to {subnet}");
        let mut flaps = vec![
            // The kernel takes the routes through a link that is down; the default route is the administrator's.
            "ip link set eth0 down; ip link set eth0 up; ip route replace default via 192.168.100.254",
        ];
        if setting.backend == crate::support::Backend::Vxlan {
            flaps.push("ip link set flannel.1 down; ip link set flannel.1 up");
        }
        for flap in flaps {
            shell(node, flap)?;
            route_becomes(node, &subnet, &before).context(flap)?;
            // The switch takes a moment to see its end of the link up (linkwatch, at most a second).
            let ping = format!("ping -c 1 -W 1 {}", other.address());
            eventually("the link", PROMPT, || {
                Ok(shell(node, &ping)
                    .map(drop)
                    .map_err(|error| error.to_string()))
            })?;
            udp_arrives(&node.pods()[0], &other.pods()[0], 200, 64).context(flap)?;
            udp_arrives(&other.pods()[0], &node.pods()[0], 200, 64).context(flap)?;
        }
        Ok(())
    })
}

/// A peer that left while the agent was away leaves nothing behind.
pub(crate) fn stale_after_downtime() -> Outcome {
    const MAC: &str = "0e:00:00:00:00:77";
    let setting = setting::vxlan();
    let nodes = vec![setting.node(), NodeConfig::stock()];
    with_cluster(setting.cluster(nodes), |cluster| {
        let [node, other] = [1, 2].map(|number| &**cluster.node(number));
        let peer = vxlan_value("192.168.100.77", MAC);
        cluster.etcd().put(&key(KEY), &peer)?;
        eventually("the peer", PROMPT, || {
            let now = traces(node, MAC)?;
            Ok((now.lines().count() == 3).then_some(()).ok_or(now))
        })?;
        // Not ours: outside of the network.
        shell(node, "ip route add 10.99.0.0/24 via 192.168.100.254")?;
        node.agent().stop()?;
        cluster.etcd().delete(&key(KEY))?;
        node.agent().start()?;
        node.agent().wait_ready()?;
        eventually("the end of the peer", PROMPT, || {
            let now = traces(node, MAC)?;
            Ok(now.is_empty().then_some(()).ok_or(now))
        })?;
        let foreign = routes(node, "10.99.0.0/24")?;
        ensure!(!foreign.is_empty(), "a foreign route was removed");
        udp_arrives(&node.pods()[0], &other.pods()[0], 200, 64).map(drop)
    })
}

/// Route, FDB entry and neighbour of the peer that is only a key.
fn traces(node: &Node, mac: &str) -> anyhow::Result<String> {
    shell(
        node,
        &format!(
            "ip route show | grep '^{SUBNET}' || true; bridge fdb show dev flannel.1 | grep {mac} || true; \
             ip neighbour show dev flannel.1 | grep {mac} || true"
        ),
    )
}

/// Whether a peer is routed to directly is decided anew when the way to it changes, in either direction.
pub(crate) fn direct_routing_follows_routes() -> Outcome {
    let setting = setting::vxlan();
    let config = lab::ClusterConfig {
        network: r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#
            .into(),
        ..setting.cluster(vec![setting.node(), setting.node().routed()])
    };
    with_cluster(config, |cluster| {
        let [node, far] = [1, 2].map(|number| &**cluster.node(number));
        let subnet = far.subnet_env()?.subnet;
        let first = subnet.address;
        let subnet = subnet.to_string();
        let tunnelled = format!("{subnet} via {first} dev flannel.1 onlink\n");
        let direct = format!("{subnet} via {} dev eth0\n", far.address());
        route_becomes(node, &subnet, &tunnelled)?;
        // The router plays the link between both: it answers for the peer, and passes on what is for its pods.
        cluster.switch().sysctl(&[
            ("net/ipv4/conf/br0/proxy_arp", "1"),
            // Else it answers after a random time of up to 0.8 s.
            ("net/ipv4/neigh/br0/proxy_delay", "0"),
        ])?;
        lab::underlay::ip_batch(
            cluster.switch(),
            &format!("route add {subnet} via {}\n", far.address()),
        )?;
        let on_link = format!("ip route add {} dev eth0", far.address());
        shell(node, &on_link)?;
        route_becomes(node, &subnet, &direct)?;
        udp_arrives(&node.pods()[0], &far.pods()[0], 200, 64).context("directly")?;
        shell(node, &on_link.replace("add", "delete"))?;
        route_becomes(node, &subnet, &tunnelled)?;
        udp_arrives(&node.pods()[0], &far.pods()[0], 200, 64).context("by the tunnel")?;
        Ok(())
    })
}

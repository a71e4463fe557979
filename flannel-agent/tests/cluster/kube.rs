//! Leases as Kubernetes' Nodes: agents and stock nodes on the lab's API server. What the subnet manager does with each
//! of a server's faults is tested beside it; here is what becomes of traffic.

use std::{
    fs,
    net::IpAddr,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lab::{
    Cluster, ClusterConfig, LeaseStore, NodeConfig,
    kube::mock::{self, Interrupt, Kind},
    traffic::udp::UdpFlow,
};
use serde_json::Value;

use crate::support::{
    ENDLESS, Outcome, PROMPT, Setting, Skipped, all_arrived, eventually, shell, udp_arrives,
    with_cluster,
};

/// Packets of one check.
const PACKETS: u64 = 1000;
/// What annotations of flannel begin with.
const PREFIX: &str = "flannel.alpha.coreos.com/";

/// Two agents and a stock node, with a pod each.
fn cluster(setting: Setting, leases: LeaseStore) -> ClusterConfig {
    ClusterConfig {
        leases,
        ..setting.cluster(vec![setting.node(), setting.node(), NodeConfig::stock()])
    }
}

/// Each pod reaches each other one.
fn all_reach_all(cluster: &Cluster) -> Outcome {
    for from in cluster.nodes() {
        for to in cluster.nodes() {
            if from.number() != to.number() {
                let what = format!("from {} to {}", from.name(), to.name());
                udp_arrives(&from.pods()[0], &to.pods()[0], PACKETS, 64).context(what)?;
            }
        }
    }
    Ok(())
}

fn is_up(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| {
        condition["type"] == "NetworkUnavailable"
            && condition["status"] == "False"
            && condition["reason"] == "FlannelIsUp"
    })
}

/// Nodes come, are up, and go; each has the subnet that Kubernetes gave it. Over TLS, with tokens.
pub(crate) fn nodes_come_and_go(setting: Setting) -> Outcome {
    let openssl = Command::new("openssl").arg("version").output();
    ensure!(
        openssl.is_ok(),
        Skipped("openssl is not installed".to_owned())
    );
    with_cluster(cluster(setting, LeaseStore::SecureApiServer), |cluster| {
        all_reach_all(cluster)?;
        for name in ["n1", "n2"] {
            cluster
                .api_server()
                .wait_node("the condition", name, is_up)?;
        }
        ensure!(cluster.node(2).subnet_env()?.subnet.to_string() == "10.5.2.0/24");
        let flow = UdpFlow::start(
            &cluster.node(1).pods()[0],
            &cluster.node(2).pods()[0],
            ENDLESS,
        )?;
        let fourth = cluster.add_node(&setting.node())?;
        let pod = fourth.add_pod()?;
        udp_arrives(&pod, &cluster.node(1).pods()[0], PACKETS, 64).context("from the new node")?;
        cluster.remove_node(fourth.number())?;
        cluster.api_server().delete_node(fourth.name());
        eventually("the end of its route", PROMPT, || {
            let routes = shell(cluster.node(1), "ip route show")?;
            let left = routes.contains("10.5.4.0/24");
            Ok(if left { Err(routes) } else { Ok(()) })
        })?;
        all_arrived(&flow.stop()?).context("between the nodes that stayed")?;

        // Another subnet for a node: all follow it, also the subnet file.
        cluster
            .api_server()
            .set_pod_cidrs("n2", &["10.5.22.0/24"])?;
        eventually("the new subnet", PROMPT, || {
            let (file, routes) = (
                cluster.node(2).subnet_env()?,
                shell(cluster.node(1), "ip route show")?,
            );
            let moved = routes.contains("10.5.22.0/24") && !routes.contains("10.5.2.0/24");
            let is_there = moved && file.subnet.to_string() == "10.5.22.0/24";
            Ok(is_there
                .then_some(())
                .ok_or(format!("{} {routes}", file.subnet)))
        })
    })
}

/// The API server is away, forgets, and talks nonsense; nobody's packets notice.
pub(crate) fn the_api_server_is_away_without_loss(setting: Setting) -> Outcome {
    const AWAY: Duration = Duration::from_secs(3);
    with_cluster(cluster(setting, LeaseStore::ApiServer), |cluster| {
        let server = cluster.api_server();
        let flow = UdpFlow::start(
            &cluster.node(1).pods()[0],
            &cluster.node(2).pods()[0],
            ENDLESS,
        )?;
        server.wait_watches(2)?;
        server.interrupt_watches(Interrupt::Garbage);
        server.forget_requests();
        server.stop_listening();
        std::thread::sleep(AWAY);
        let public = format!("{PREFIX}public-ip");
        server.annotate("n1", &[(&public, Some("10.9.9.9"))])?;
        server.advance(1000);
        server.compact();
        server.listen()?;
        // Each lists once, and the first restores what was changed meanwhile.
        server.wait_watches(2)?;
        let restored = |node: &Value| node["metadata"]["annotations"][&public] == "192.168.100.1";
        server.wait_node("its address", "n1", restored)?;
        ensure!(
            server.count(Kind::List) == 2,
            "lists: {}",
            server.count(Kind::List)
        );
        for number in [1, 2] {
            cluster.node(number).agent().restart()?;
        }
        all_arrived(&flow.stop()?)?;
        all_reach_all(cluster)
    })
}

/// A large cluster costs memory for its leases, not for its Node objects.
pub(crate) fn many_nodes(setting: Setting) -> Outcome {
    const NODES: u32 = 5000;
    /// KiB.
    const MOST: u64 = 40 << 10;
    let config = ClusterConfig {
        network: r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#.to_owned(),
        leases: LeaseStore::ApiServer,
        pods: 0,
        ..setting.cluster(vec![setting.node()])
    };
    with_cluster(config, |cluster| {
        let (node, server) = (cluster.node(1), cluster.api_server());
        let agent = node.agent();
        agent.stop()?;
        for number in 0..NODES {
            let subnet = format!("10.{}.{}.0/24", 100 + number / 250, number % 250);
            let address = IpAddr::from([172, 16, (number / 250) as u8, (number % 250) as u8]);
            let mut peer = mock::node(&format!("peer-{number}"), &[address], &[&subnet]);
            let [high, low] = (number as u16).to_be_bytes();
            for (name, value) in [
                ("kube-subnet-manager", "true".to_owned()),
                ("backend-type", "vxlan".to_owned()),
                (
                    "backend-data",
                    format!(r#"{{"VNI":1,"VtepMAC":"0a:00:00:00:{high:02x}:{low:02x}"}}"#),
                ),
                ("public-ip", address.to_string()),
            ] {
                peer["metadata"]["annotations"][format!("{PREFIX}{name}")] = value.into();
            }
            server.put_node(peer);
        }
        server.forget_requests();
        let begun = Instant::now();
        agent.start()?;
        agent.wait_status("all peers", |status| {
            status.ready && status.peers.len() == NODES as usize
        })?;
        let took = begun.elapsed();
        let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()?))?;
        let kib = |name: &str| -> anyhow::Result<u64> {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            let value = value.and_then(|text| text.trim().strip_suffix(" kB")?.parse().ok());
            value.context(name.to_owned())
        };
        // What the program's own file takes depends on how it was built.
        let peak = kib("VmHWM:")? - kib("RssFile:")?;
        let pages = server.count(Kind::Page);
        println!("{NODES} nodes: {took:.2?}, {peak} KiB at most, {pages} further pages");
        ensure!(peak <= MOST, "{peak} KiB at most for {NODES} nodes");
        ensure!(
            (server.count(Kind::List), server.count(Kind::Watch)) == (1, 1),
            "one list, one watch"
        );
        Ok(())
    })
}

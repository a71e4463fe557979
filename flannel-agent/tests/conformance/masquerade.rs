//! Rules from the point of view of what they are there for: no packet that leaves the network does so unmasqueraded,
//! whatever happens to the rules' owner.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::Pod;

use crate::cluster;
use crate::setting;
use crate::support::{Outcome, shell, with_cluster};

/// How long an answer may take: without masquerade none comes, since nobody has a route back.
const LIMIT: Duration = Duration::from_secs(2);
/// Pause between questions, each of a new flow.
const PAUSE: Duration = Duration::from_millis(2);
/// From one look of the agent at its rules to the next but one.
const RESYNCS: Duration = Duration::from_secs(11);

/// Restarts, looks at the rules, and a change between iptables and nftables leave no window without them.
pub(crate) fn has_no_window() -> Outcome {
    let setting = setting::vxlan();
    with_cluster(setting.pair(), |cluster| {
        let node = cluster.node(1);
        let pod = &node.pods()[0];
        let outside = (lab::Segment::First.gateway(), 0);
        let server = cluster.switch().run(|| UdpSocket::bind(outside))??;
        server.set_read_timeout(Some(Duration::from_millis(100)))?;
        let target = server.local_addr()?;
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| answer(&server, &done));
            let client = scope.spawn(|| ask(pod, target, &done));
            let changes = || -> Outcome {
                node.agent().restart()?;
                let nftables = setting
                    .network()
                    .replace(r#""EnableNFTables":false"#, r#""EnableNFTables":true"#);
                cluster.etcd().put_config(&nftables)?;
                node.agent().restart()?;
                cluster.etcd().put_config(&setting.network())?;
                node.agent().restart()?;
                thread::sleep(RESYNCS);
                Ok(())
            };
            let changed = changes();
            done.store(true, Ordering::Relaxed);
            let asked = client.join().expect("no panic")?;
            changed?;
            ensure!(asked > 500, "{asked} questions");
            Ok(())
        })
    })
}

fn answer(server: &UdpSocket, done: &AtomicBool) {
    let mut buffer = [0; 64];
    while !done.load(Ordering::Relaxed) {
        if let Ok((length, source)) = server.recv_from(&mut buffer) {
            // An unmasqueraded source has no route: that answer cannot be sent.
            server.send_to(&buffer[..length], source).ok();
        }
    }
}

fn ask(pod: &Pod, target: SocketAddr, done: &AtomicBool) -> anyhow::Result<u32> {
    let mut asked: u32 = 0;
    while !done.load(Ordering::Relaxed) {
        let socket = pod.netns().run(|| UdpSocket::bind("0.0.0.0:0"))??;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.send_to(&asked.to_be_bytes(), target)?;
        let mut buffer = [0; 64];
        socket
            .recv(&mut buffer)
            .with_context(|| format!("question {asked} got no answer: it was not masqueraded"))?;
        asked += 1;
        thread::sleep(PAUSE);
    }
    Ok(asked)
}

/// Rules that are right stay untouched when they are looked at: no event of netfilter tells of flannel.
pub(crate) fn stays_untouched() -> Outcome {
    with_cluster(setting::vxlan().pair(), |cluster| {
        let node = cluster.node(1);
        let rules = shell(node, "iptables-save | grep FLANNEL")?;
        ensure!(rules.contains("FLANNEL-POSTRTG"), "{rules}");
        let monitor = node.directory().join("monitor");
        let mut command = std::process::Command::new("nft");
        command
            .arg("monitor")
            .stdout(std::fs::File::create(&monitor)?)
            .stderr(std::process::Stdio::null());
        let _monitor = lab::process::Helper::spawn(node.netns(), command)?;
        thread::sleep(Duration::from_millis(300));
        shell(node, "iptables -N CANARY")?;
        thread::sleep(RESYNCS);
        let seen = std::fs::read_to_string(&monitor)?;
        ensure!(seen.contains("CANARY"), "the monitor sees nothing: {seen}");
        ensure!(!seen.contains("FLANNEL"), "{seen}");
        Ok(())
    })
}

/// `EnableNFTables` from the start on: the rules are upstream's, and there are none of iptables.
pub(crate) fn nftables_golden() -> Outcome {
    let setting = setting::vxlan();
    let network = setting
        .network()
        .replace(r#""EnableNFTables":false"#, r#""EnableNFTables":true"#);
    let config = lab::ClusterConfig {
        network,
        ..setting.pair()
    };
    with_cluster(config, |cluster| {
        let [node, other] = [1, 2].map(|number| &**cluster.node(number));
        let subnet = node.subnet_env()?.subnet.to_string();
        let rules = cluster::rules::NFTABLES.replace("SUBNET", &subnet);
        cluster::rules::rules_become(node, "", &rules)?;
        crate::support::udp_arrives(&node.pods()[0], &other.pods()[0], 200, 64).map(drop)
    })
}

/// A dual-stack network.
const DUAL: &str = r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;

/// IPv6's rules are IPv4's with other addresses, by iptables.
pub(crate) fn ip6tables_golden() -> Outcome {
    with_cluster(setting::agents(2, 1, DUAL), |cluster| {
        let node = &**cluster.node(1);
        let subnet = node.subnet_env()?.ipv6.context("IPv6")?.subnet.to_string();
        let wanted = cluster::rules::IPTABLES
            .replace("SUBNET", &subnet)
            .replace("10.5.0.0/16", "fd00:5::/48")
            .replace("224.0.0.0/4", "ff00::/8");
        let chains = |rules: &str| -> Vec<String> {
            let mut lines: Vec<_> = rules.lines().map(ToOwned::to_owned).collect();
            // Stable: within a chain the order counts, between tables it does not.
            lines.sort_by_key(|line| line.split(' ').nth(1).map(ToOwned::to_owned));
            lines
        };
        crate::support::eventually("the rules", RESYNCS, || {
            let now = shell(node, "ip6tables-save | grep -- '^-A.*FLANNEL' || true")?;
            Ok((chains(&now) == chains(&wanted)).then_some(()).ok_or(now))
        })
    })
}

/// IPv6's rules are IPv4's with other addresses, by nftables, in a table of their own.
pub(crate) fn nftables6_golden() -> Outcome {
    let network = DUAL.replace("{\"EnableIPv6\"", "{\"EnableNFTables\":true,\"EnableIPv6\"");
    with_cluster(setting::agents(2, 1, &network), |cluster| {
        let node = &**cluster.node(1);
        let subnet = node.subnet_env()?.ipv6.context("IPv6")?.subnet.to_string();
        let wanted = cluster::rules::NFTABLES
            .replace("SUBNET", &subnet)
            .replace("10.5.0.0/16", "fd00:5::/48")
            .replace("224.0.0.0/4", "ff00::/8")
            .replace("ip saddr", "ip6 saddr")
            .replace("ip daddr", "ip6 daddr")
            .replace("table ip flannel-ipv4", "table ip6 flannel-ipv6")
            .replace("flannel-ipv4", "flannel-ipv6");
        crate::support::eventually("the rules", RESYNCS, || {
            let now = shell(node, "nft list table ip6 flannel-ipv6 2>&1 || true")?;
            Ok((now == wanted).then_some(()).ok_or(now))
        })
    })
}

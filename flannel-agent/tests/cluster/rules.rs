//! The agent's rules on a node, as the tools list them.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::{Node, etcd::PREFIX};
use rustix::process::Signal;

use crate::cleanup::cleanup;
use crate::support::{Outcome, PROMPT, Setting, eventually, shell, udp_arrives, with_cluster};

/// What `iptables-save` shows on a node with flanneld v0.28.9 and `--ip-masq`; `SUBNET` is the node's.
pub(crate) const IPTABLES: &str = r#"-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s SUBNET -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 -d SUBNET -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d SUBNET -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
"#;

/// What `nft list table ip flannel-ipv4` shows there with `EnableNFTables`.
pub(crate) const NFTABLES: &str = r#"table ip flannel-ipv4 {
	comment "rules for flannel-ipv4"
	chain postrtg {
		comment "chain to manage traffic masquerading by flannel"
		type nat hook postrouting priority srcnat; policy accept;
		meta mark 0x00004000 return
		ip saddr SUBNET ip daddr 10.5.0.0/16 return
		ip saddr 10.5.0.0/16 ip daddr SUBNET return
		ip saddr != SUBNET ip daddr 10.5.0.0/16 return
		ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
		ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random
	}

	chain forward {
		comment "chain to accept flannel traffic"
		type filter hook forward priority filter; policy accept;
		ip saddr 10.5.0.0/16 accept
		ip daddr 10.5.0.0/16 accept
	}
}
"#;

/// The rules are upstream's, with either tool, and never both tools'.
pub(crate) fn as_upstream(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let (node, other) = (cluster.node(1), cluster.node(2));
        let subnet = node.subnet_env()?.subnet.to_string();
        let iptables = IPTABLES.replace("SUBNET", &subnet);
        let nftables = NFTABLES.replace("SUBNET", &subnet);
        let none = String::new();
        rules_become(node, &iptables, &none)?;

        shell(node, "iptables -t nat -F FLANNEL-POSTRTG")?;
        shell(node, "iptables -D FORWARD 1")?;
        rules_become(node, &iptables, &none)?;

        let with_nftables = setting
            .network()
            .replace(r#""EnableNFTables":false"#, r#""EnableNFTables":true"#);
        cluster.etcd().put_config(&with_nftables)?;
        node.agent().restart()?;
        rules_become(node, &none, &nftables)?;
        let ipv6 = shell(node, "nft list table ip6 flannel-ipv6")?;
        ensure!(
            ipv6 == "table ip6 flannel-ipv6 {\n\tcomment \"rules for flannel-ipv6\"\n}\n",
            "{ipv6}"
        );
        udp_arrives(&node.pods()[0], &other.pods()[0], 200, 64)?;

        cluster.etcd().put_config(&setting.network())?;
        node.agent().restart()?;
        rules_become(node, &iptables, &none)
    })
}

/// An agent with networks of both families writes rules of both, with either tool, and cleanup removes both.
pub(crate) fn of_both_families(setting: Setting) -> Outcome {
    /// The rest of the network config.
    const DUAL: &str = r#"{"EnableIPv6":true,"IPv6Network":"fd00:5::/48","#;
    with_cluster(setting.cluster(vec![setting.node()]), |cluster| {
        let node = cluster.node(1);
        shell(
            node,
            "ip address add fd00:100::1/64 dev eth0 nodad
             ip -6 route add default via fd00:100::fe dev eth0 onlink",
        )?;
        for nftables in [false, true] {
            let network = setting.network().replacen('{', DUAL, 1).replace(
                r#""EnableNFTables":false"#,
                &format!(r#""EnableNFTables":{nftables}"#),
            );
            cluster.etcd().put_config(&network)?;
            node.agent().restart()?;
            let file = std::fs::read_to_string(node.agent().subnet_file())?;
            let subnet = |key: &str| -> anyhow::Result<String> {
                let mut lines = file.lines();
                let value = lines.find_map(|line| line.strip_prefix(key));
                let value = value.with_context(|| format!("{key} in {file}"))?;
                Ok(value.parse::<ipnet::IpNet>()?.trunc().to_string())
            };
            let subnets = [subnet("FLANNEL_SUBNET=")?, subnet("FLANNEL_IPV6_SUBNET=")?];
            let of_v4 = |text: &str| text.replace("SUBNET", &subnets[0]);
            let of_v6 = |text: &str| {
                text.replace("SUBNET", &subnets[1])
                    .replace("10.5.0.0/16", "fd00:5::/48")
                    .replace("224.0.0.0/4", "ff00::/8")
                    .replace("ip saddr", "ip6 saddr")
                    .replace("ip daddr", "ip6 daddr")
                    .replace("ip flannel-ipv4", "ip6 flannel-ipv6")
                    .replace("flannel-ipv4", "flannel-ipv6")
            };
            let none = String::new();
            if nftables {
                rules_become(node, &none, &of_v4(NFTABLES))?;
            } else {
                rules_become(node, &of_v4(IPTABLES), &none)?;
            }
            eventually("rules for IPv6", PROMPT, || {
                let by_iptables = shell(node, "ip6tables-save | grep -- '^-A.*FLANNEL' || true")?;
                let by_nftables = shell(node, "nft list table ip6 flannel-ipv6 || true")?;
                let as_wanted = if nftables {
                    by_iptables.is_empty() && by_nftables == of_v6(NFTABLES)
                } else {
                    by_nftables.is_empty() && sorted(&by_iptables) == sorted(&of_v6(IPTABLES))
                };
                let text = format!("ip6tables:\n{by_iptables}nftables:\n{by_nftables}");
                Ok(as_wanted.then_some(()).ok_or(text))
            })?;
        }
        node.agent().stop()?;
        cleanup(node)?;
        let left = shell(
            node,
            "ip6tables-save | grep FLANNEL; iptables-save | grep FLANNEL; nft list tables | grep flannel || true",
        )?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
}

/// What somebody deletes is back: with iptables after the interval, with nftables at once.
pub(crate) fn deleted_rules(setting: Setting) -> Outcome {
    /// Longer than the test waits.
    const RESYNC: &str = "--iptables-resync=600";
    for nftables in [false, true] {
        let mut agent = setting.agent();
        if nftables {
            agent.arguments.push("--traffic-rules=nftables".into());
            agent.arguments.push(RESYNC.into());
        } else {
            agent.arguments.push("--iptables-resync=1".into());
        }
        let config = setting.cluster(vec![lab::NodeConfig::agent(&agent)]);
        with_cluster(config, |cluster| {
            let node = cluster.node(1);
            let rules = || {
                if nftables {
                    nftables_rules(node)
                } else {
                    iptables_rules(node)
                }
            };
            let before = rules()?;
            let deletions = if nftables {
                [
                    "nft flush chain ip flannel-ipv4 postrtg",
                    "nft delete table ip flannel-ipv4",
                    "nft add rule ip flannel-ipv4 forward counter drop",
                    "nft flush ruleset",
                ]
            } else {
                [
                    "iptables -t nat -D FLANNEL-POSTRTG 2",
                    "iptables -t nat -F POSTROUTING",
                    "iptables -I FLANNEL-FWD -j DROP",
                    "iptables -F",
                ]
            };
            for deletion in deletions {
                shell(node, deletion)?;
                eventually(deletion, PROMPT, || {
                    let now = rules()?;
                    Ok((now == before).then_some(()).ok_or(now))
                })?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Where the tool that the network config asks for is not installed, the other one writes what is asked for; without any,
/// the status says so, and the node is not ready.
pub(crate) fn missing_tool(setting: Setting) -> Outcome {
    with_cluster(setting.cluster(vec![setting.node()]), |cluster| {
        let node = cluster.node(1);
        let subnet = node.subnet_env()?.subnet.to_string();
        let programs = node.directory().join("programs");
        std::fs::create_dir(&programs)?;
        node.agent().configure(|agent| {
            let path = programs.display().to_string();
            agent.environment.push(("PATH".to_owned(), path));
        });
        let install = |names: &[&str]| -> Outcome {
            shell(node, &format!("rm -f {}/*", programs.display()))?;
            for name in names {
                shell(
                    node,
                    &format!("ln -s $(command -v {name}) {}/", programs.display()),
                )?;
            }
            Ok(())
        };

        node.agent().stop()?;
        shell(node, "iptables -t nat -F; iptables -F")?;
        install(&[])?;
        node.agent().start()?;
        eventually("a problem with the rules", PROMPT, || {
            // It does not answer before it has begun.
            let Ok(status) = node.agent().status() else {
                return Ok(Err("no status".to_owned()));
            };
            let told = status.problems.iter().any(|problem| {
                format!("{problem:?}").contains("no tool writes traffic rules here")
            });
            Ok((told && !status.ready)
                .then_some(())
                .ok_or_else(|| format!("{:?}", status.problems)))
        })?;
        // It comes while the agent runs.
        install(&["nft"])?;
        // What the config asks for is upstream's iptables mode.
        let wanted = NFTABLES
            .replace(
                "meta mark 0x00004000",
                "meta mark & 0x00004000 == 0x00004000",
            )
            .replace(
                "ip saddr != SUBNET ip daddr 10.5.0.0/16",
                "ip saddr != 10.5.0.0/16 ip daddr SUBNET",
            )
            .replace("SUBNET", &subnet);
        eventually("rules by nft", PROMPT, || {
            let now = nftables_rules(node)?;
            Ok((now == wanted).then_some(()).ok_or(now))
        })?;
        node.agent().wait_ready()?;

        install(&["iptables", "iptables-restore"])?;
        shell(node, "nft flush ruleset")?;
        let with_nftables = setting
            .network()
            .replace(r#""EnableNFTables":false"#, r#""EnableNFTables":true"#);
        cluster.etcd().put_config(&with_nftables)?;
        node.agent().restart()?;
        let wanted = IPTABLES
            .replace("! -s 10.5.0.0/16 -d SUBNET", "! -s SUBNET -d 10.5.0.0/16")
            .replace("SUBNET", &subnet);
        rules_become(node, &wanted, "")
    })
}

/// Waits, for longer than the agent's interval between two looks, until both tools list just this.
pub(crate) fn rules_become(node: &Node, iptables: &str, nftables: &str) -> Outcome {
    const LIMIT: Duration = Duration::from_secs(10);
    eventually("the rules", LIMIT, || {
        let (old, new) = (iptables_rules(node)?, nftables_rules(node)?);
        Ok((sorted(&old) == sorted(iptables)
            && of_chains(&old) == of_chains(iptables)
            && new == nftables)
            .then_some(())
            .ok_or_else(|| format!("iptables:\n{old}nftables:\n{new}")))
    })
}

fn iptables_rules(node: &Node) -> anyhow::Result<String> {
    shell(node, "iptables-save | grep -- '^-A.*FLANNEL' || true")
}

fn nftables_rules(node: &Node) -> anyhow::Result<String> {
    shell(node, "nft list table ip flannel-ipv4 2>/dev/null || true")
}

fn sorted(rules: &str) -> Vec<&str> {
    let mut lines: Vec<_> = rules.lines().collect();
    lines.sort_unstable();
    lines
}

/// The rules of the masquerade chain, whose order matters.
fn of_chains(rules: &str) -> Vec<&str> {
    rules
        .lines()
        .filter(|line| line.starts_with("-A FLANNEL-POSTRTG"))
        .collect()
}

/// Leases that came while the agent could not watch are found, although etcd has forgotten their events.
pub(crate) fn compaction(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let (agent, etcd) = (cluster.node(1).agent(), cluster.etcd());
        agent.signal(Signal::STOP)?;
        // Ends the watch; the agent that hangs cannot begin another.
        etcd.stop()?;
        etcd.start()?;
        let other = etcd.get_prefix(&format!(
            "{PREFIX}/subnets/{}",
            cluster.node(2).subnet_env()?.subnet.key()
        ))?;
        ensure!(other.len() == 1, "{other:?}");
        let value = other[0].1.replace("192.168.100.2", "192.168.100.9");
        // Both before the first subnet that a node may get.
        etcd.put(&format!("{PREFIX}/subnets/10.5.0.0-25"), &value)?;
        etcd.put(&format!("{PREFIX}/subnets/10.5.0.128-25"), &value)?;
        etcd.delete(&format!("{PREFIX}/subnets/10.5.0.128-25"))?;
        let answer = etcd.ctl(&["get", "--write-out=json", "no-such-key"])?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        let revision = answer["header"]["revision"].to_string();
        etcd.ctl(&["compact", &revision])?;
        agent.signal(Signal::CONT)?;
        eventually("the lease in n1's status", 2 * PROMPT, || {
            let peers = agent.status()?.peers;
            let subnets: Vec<_> = peers.iter().map(|peer| peer.subnet.as_str()).collect();
            Ok((subnets.len() == 2 && subnets.contains(&"10.5.0.0/25"))
                .then_some(())
                .ok_or_else(|| format!("{subnets:?}")))
        })?;
        etcd.delete(&format!("{PREFIX}/subnets/10.5.0.0-25"))?;
        agent.wait_status("one peer again", |status| status.peers.len() == 1)?;
        udp_arrives(
            &cluster.node(1).pods()[0],
            &cluster.node(2).pods()[0],
            200,
            64,
        )
        .map(drop)
    })
}

//! The rules by each tool and for both families, on a node without agent: what the tools list, and what becomes of it
//! when the tool or a prefix changes.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use flannel_agent::{
    family::PerFamily,
    kernel::rules::{self, Choice, Guard, Mode, Rules, Tool},
};
use lab::{Node, NodeConfig};

use crate::support::{Outcome, Setting, shell, with_unready_cluster};

/// The node's prefixes, IPv4 and IPv6: network, subnet.
const NETWORKS: [&str; 2] = ["10.5.0.0/16", "fd00:5::/48"];
const SUBNETS: [&str; 2] = ["10.5.9.0/24", "fd00:5:0:9::/64"];
/// What `iptables-save` shows of flannel on a node with flanneld v0.28.9, and for IPv6 what its source says.
fn recorded(family: usize, subnet: &str) -> Vec<String> {
    let network = NETWORKS[family];
    let multicast = ["224.0.0.0/4", "ff00::/8"][family];
    let mut lines = vec![
        r#"-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD"#.to_owned(),
        format!(r#"-A FLANNEL-FWD -s {network} -m comment --comment "flanneld forward" -j ACCEPT"#),
        format!(r#"-A FLANNEL-FWD -d {network} -m comment --comment "flanneld forward" -j ACCEPT"#),
        r#"-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG"#.to_owned(),
    ];
    for (condition, verdict) in [
        ("-m mark --mark 0x4000/0x4000".to_owned(), "RETURN"),
        (format!("-s {subnet} -d {network}"), "RETURN"),
        (format!("-s {network} -d {subnet}"), "RETURN"),
        (format!("! -s {network} -d {subnet}"), "RETURN"),
        (
            format!("-s {network} ! -d {multicast}"),
            "MASQUERADE --random-fully",
        ),
        (
            format!("! -s {network} -d {network}"),
            "MASQUERADE --random-fully",
        ),
    ] {
        lines.push(format!(
            r#"-A FLANNEL-POSTRTG {condition} -m comment --comment "flanneld masq" -j {verdict}"#
        ));
    }
    lines
}

/// A way to write rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// In tables of its own.
    Nftables,
    /// iptables in nftables' tables.
    IptablesNft,
    /// iptables in tables of its own.
    IptablesLegacy,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Nftables, Self::IptablesNft, Self::IptablesLegacy];

    /// The program's name in the log.
    fn program(self) -> &'static str {
        match self {
            Self::Nftables => "nft",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        }
    }

    /// Makes the agent choose this variant as kubelet does, by its hint.
    fn hint(self, node: &Node) -> Outcome {
        for way in [Self::IptablesNft, Self::IptablesLegacy] {
            let program = way.program();
            let chain =
                format!("{program} -w -t mangle -%c KUBE-IPTABLES-HINT 2>/dev/null || true");
            shell(
                node,
                &chain.replace("%c", if way == self { "N" } else { "X" }),
            )?;
        }
        Ok(())
    }
}

/// All rules, for both families.
pub(crate) fn rules(way: Way, enable_nftables: bool) -> Rules {
    let prefixes = |texts: [&str; 2]| {
        let [v4, v6] = texts.map(|text| text.parse().ok());
        PerFamily { v4, v6 }
    };
    Rules {
        networks: prefixes(NETWORKS),
        subnets: prefixes(SUBNETS),
        masquerade: true,
        random_fully: true,
        forward: true,
        mode: Mode {
            enable_nftables,
            choice: match way {
                Way::Nftables => Choice::Nftables,
                Way::IptablesNft | Way::IptablesLegacy => Choice::Iptables,
            },
        },
        guard: Guard::default(),
    }
}

/// Chooses the tool, writes the rules and removes all others, as the agent does.
pub(crate) fn write(node: &Node, way: Way, rules: &Rules) -> anyhow::Result<Tool> {
    way.hint(node)?;
    node.netns().run(|| -> anyhow::Result<Tool> {
        let tool = rules.choose_tool()?;
        ensure!(tool.program() == way.program(), "{way:?}: chose {tool:?}");
        let listing = rules.install(&tool)?;
        ensure!(rules.list(&tool)? == listing, "{way:?}: listings differ");
        rules::remove_others(&tool);
        Ok(tool)
    })?
}

/// What of flannel each tool lists on the node.
fn present(node: &Node) -> anyhow::Result<String> {
    shell(
        node,
        "for p in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do \
           $p-save 2>/dev/null | grep -e '^-A.*FLANNEL' -e '^:FLANNEL' | sed \"s/^/$p /\"; done; \
         nft list tables | grep flannel || true",
    )
}

/// The lines of `present` when this way, and no other, is in use.
fn expected(way: Way, subnets: [&str; 2]) -> Vec<String> {
    let programs = match way {
        Way::Nftables => {
            return vec![
                "table ip flannel-ipv4".into(),
                "table ip6 flannel-ipv6".into(),
            ];
        }
        Way::IptablesNft => ["iptables-nft", "ip6tables-nft"],
        Way::IptablesLegacy => ["iptables-legacy", "ip6tables-legacy"],
    };
    let mut lines = Vec::new();
    for (family, program) in programs.into_iter().enumerate() {
        let chains = [":FLANNEL-FWD - [0:0]", ":FLANNEL-POSTRTG - [0:0]"].map(str::to_owned);
        let all = chains.into_iter().chain(recorded(family, subnets[family]));
        lines.extend(all.map(|line| format!("{program} {line}")));
    }
    lines
}

fn is_alone(node: &Node, way: Way, subnets: [&str; 2]) -> Outcome {
    let text = present(node)?;
    let mut lines: Vec<&str> = text.lines().collect();
    let mut wanted = expected(way, subnets);
    lines.sort_unstable();
    wanted.sort_unstable();
    ensure!(lines == wanted, "{way:?}: got\n{text}wanted\n{wanted:#?}");
    Ok(())
}

/// Runs a test on four bare machines of one segment.
pub(crate) fn with_node(test: impl FnOnce(&[Arc<Node>]) -> Outcome) -> Outcome {
    let config = lab::ClusterConfig {
        nodes: vec![NodeConfig::default(); 4],
        ..lab::ClusterConfig::default()
    };
    with_unready_cluster(config, |cluster| test(cluster.nodes()))
}

/// Each tool lists what upstream's rules list as, for both families; after a change of the tool, of a prefix or of a
/// switch nothing else is left, and cleanup leaves nothing at all.
pub(crate) fn each_way_is_alone(_setting: Setting) -> Outcome {
    with_node(|nodes| {
        let node = &nodes[0];
        for from in Way::ALL {
            for to in Way::ALL {
                for way in [from, to] {
                    let rules = rules(way, way == Way::Nftables);
                    write(node, way, &rules)?;
                    is_alone(node, way, SUBNETS)
                        .with_context(|| format!("from {from:?} to {to:?}"))?;
                }
            }
        }
        for way in Way::ALL {
            let mut rules = rules(way, false);
            let other = ["10.5.8.0/24", "fd00:5:0:8::/64"];
            rules.subnets.v4 = Some(other[0].parse()?);
            rules.subnets.v6 = Some(other[1].parse()?);
            write(node, way, &rules)?;
            is_alone(node, way, other)?;
            // Copies of a jump, as two daemons that start at once leave them.
            if way != Way::Nftables {
                let jump = "-m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG";
                shell(
                    node,
                    &format!("{} -w -t nat -A POSTROUTING {jump}", way.program()),
                )?;
            }
            write(node, way, &rules)?;
            is_alone(node, way, other)?;
            rules.masquerade = false;
            write(node, way, &rules)?;
            let text = present(node)?;
            ensure!(
                !text.contains("POSTRTG"),
                "{way:?}: masquerade left: {text}"
            );
            rules.networks.v6 = None;
            write(node, way, &rules)?;
            let text = present(node)?;
            ensure!(!text.contains("ip6tables"), "{way:?}: IPv6 left: {text}");
        }
        cleaned(node)
    })
}

/// Removes all, after a look that changes nothing, and asserts that nothing is left.
pub(crate) fn cleaned(node: &Node) -> Outcome {
    let remove = |dry_run: bool| {
        node.netns().run(|| {
            let mut removed = rules::remove_iptables(dry_run);
            removed.extend(rules::remove_nftables(dry_run));
            removed
        })
    };
    let before = present(node)?;
    let would = remove(true)?;
    ensure!(present(node)? == before, "a dry run has changed something");
    let removed = remove(false)?;
    ensure!(would == removed, "would {would:?}, did {removed:?}");
    let left = present(node)?;
    ensure!(left.is_empty(), "left: {left}; removed: {removed:?}");
    Ok(())
}

/// A chain that somebody else's rule leads to is emptied and left by its own jump; everything else goes.
pub(crate) fn a_chain_of_others_interest_is_emptied(_setting: Setting) -> Outcome {
    with_node(|nodes| {
        let node = &nodes[0];
        for way in [Way::IptablesNft, Way::IptablesLegacy] {
            write(node, way, &rules(way, false))?;
            let program = way.program();
            shell(
                node,
                &format!(
                    "{program} -w -t nat -N OTHERS && {program} -w -t nat -A OTHERS -j FLANNEL-POSTRTG"
                ),
            )?;
            write(node, Way::Nftables, &rules(Way::Nftables, true))?;
            let left = present(node)?;
            let left: Vec<&str> = left
                .lines()
                .filter(|line| !line.starts_with("table"))
                .collect();
            let wanted = [
                format!("{program} :FLANNEL-POSTRTG - [0:0]"),
                format!("{program} -A OTHERS -j FLANNEL-POSTRTG"),
            ];
            ensure!(left == wanted, "{way:?}: {left:#?}");
            shell(
                node,
                &format!("{program} -w -t nat -F OTHERS && {program} -w -t nat -X OTHERS"),
            )?;
            cleaned(node)?;
        }
        Ok(())
    })
}

/// The variant of iptables is the one with others' rules: kubelet's hint, then the larger number, then the system's.
pub(crate) fn the_variant_is_that_of_others_rules(_setting: Setting) -> Outcome {
    with_node(|nodes| {
        let node = &nodes[0];
        let chosen = |what: &str, way: Way| -> Outcome {
            let rules = rules(way, false);
            let tool = node.netns().run(|| rules.choose_tool())??;
            ensure!(tool.program() == way.program(), "{what}: chose {tool:?}");
            Ok(())
        };
        let system = shell(node, "iptables --version")?;
        let system = if system.contains("nf_tables") {
            Way::IptablesNft
        } else {
            Way::IptablesLegacy
        };
        chosen("no rules", system)?;
        let legacy = shell(node, "cat /proc/net/ip_tables_names")?;
        ensure!(legacy.is_empty(), "looking has made tables: {legacy}");
        for (way, other) in [
            (Way::IptablesLegacy, Way::IptablesNft),
            (Way::IptablesNft, Way::IptablesLegacy),
        ] {
            let (program, others) = (way.program(), other.program());
            shell(node, &format!("{program} -w -A OUTPUT -j ACCEPT"))?;
            chosen("a rule", way)?;
            shell(
                node,
                &format!("{others} -w -t mangle -N KUBE-IPTABLES-HINT"),
            )?;
            chosen("a hint against a rule", other)?;
            shell(
                node,
                &format!("{others} -w -t mangle -X KUBE-IPTABLES-HINT && {program} -w -D OUTPUT 1"),
            )?;
        }
        Ok(())
    })
}

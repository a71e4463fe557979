//! Rules of the fast path itself, beside upstream's: the mark by which netfilter attests packets, and strict source
//! checks for packets that take the kernel's path.
//!
//! Text only; `nftables` and `iptables` run the tools. nftables has a table of its own for them, of family `inet`,
//! iptables a chain each.

use std::{collections::BTreeSet, fmt::Write as _, net::IpAddr};

use ipnet::IpNet;

use crate::family::{Family, PerFamily};

/// The table of nftables, family `inet`.
pub const TABLE: &str = "flannel-fastpath";
/// The chain of iptables' mangle table that marks.
pub const ATTEST_CHAIN: &str = "FLANNEL-ATTEST";
/// The chain of iptables' raw table that drops.
pub const STRICT_CHAIN: &str = "FLANNEL-STRICT";
/// Sources that a pod needs on its link beside its own address, for neighbour discovery and before it has an address
/// (RFC 4861 section 4.1, RFC 4862 section 5.4); no router forwards them (RFC 4291 section 2.5.2 and 2.5.6).
const LINK_SOURCES: [&str; 2] = ["fe80::/10", "::"];

/// The fast path's rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// The bit of the packet mark that says: established, assured, addresses unchanged, passed by every chain.
    pub mark: Option<u32>,
    /// Drops what a pod or a node must not send.
    pub strict: Option<Strict>,
}

/// What strict source checks compare with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strict {
    /// The flannel networks.
    pub networks: PerFamily<IpNet>,
    /// This node's subnets.
    pub subnets: PerFamily<IpNet>,
    /// The pods' bridge; absent until the first pod.
    pub bridge: Option<String>,
    /// The tunnels; absent without one.
    pub tunnels: PerFamily<Tunnel>,
}

/// The node's VXLAN device of a family and those that may send to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Its name.
    pub device: String,
    /// The interface between nodes.
    pub uplink: String,
    /// UDP destination port.
    pub port: u16,
    /// VXLAN network identifier.
    pub vni: u32,
    /// The other nodes.
    pub nodes: BTreeSet<IpAddr>,
}

impl Guard {
    /// Whether there are no rules.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The input of `nft -f` that makes the table anew in one transaction, or removes it.
    pub fn nft_script(&self) -> String {
        let mut script = format!("add table inet {TABLE}\ndelete table inet {TABLE}\n");
        if self.is_empty() {
            return script;
        }
        let _ = writeln!(script, "add table inet {TABLE}");
        if let Some(bit) = self.mark {
            // Behind source NAT, so that conntrack's word on it is final. Cleared first: others may have set it.
            let clear = !bit;
            let _ = write!(
                script,
                "add chain inet {TABLE} attest {{ type filter hook postrouting priority srcnat + 10; }}
add rule inet {TABLE} attest meta mark set meta mark and {clear:#x}
add rule inet {TABLE} attest ct state established ct status & (snat | dnat | assured) == assured meta mark set meta mark or {bit:#x}
"
            );
        }
        if let Some(strict) = &self.strict {
            let _ = writeln!(
                script,
                "add chain inet {TABLE} strict {{ type filter hook prerouting priority raw; }}"
            );
            let conditions = Family::ALL
                .into_iter()
                .flat_map(|family| strict.nft_conditions(family));
            for condition in conditions {
                let _ = writeln!(
                    script,
                    "add rule inet {TABLE} strict {condition} counter drop"
                );
            }
        }
        script
    }

    /// What the rules of iptables say that mark, in order; none without a mark.
    pub fn attest_lines(&self) -> Vec<String> {
        let Some(bit) = self.mark else {
            return Vec::new();
        };
        vec![
            format!("-j MARK --set-xmark 0x0/{bit:#x}"),
            "-m conntrack --ctstate SNAT,DNAT -j RETURN".into(),
            format!(
                "-m conntrack --ctstate ESTABLISHED --ctstatus ASSURED -j MARK --set-xmark {bit:#x}/{bit:#x}"
            ),
        ]
    }

    /// What the rules of iptables say that drop, in order; none without strict checks.
    pub fn strict_lines(&self, family: Family) -> Vec<String> {
        self.strict
            .as_ref()
            .map(|strict| strict.iptables_lines(family))
            .unwrap_or_default()
    }
}

impl Strict {
    /// What is dropped by nftables.
    fn nft_conditions(&self, family: Family) -> Vec<String> {
        let (Some(network), Some(subnet)) = (self.networks.get(family), self.subnets.get(family))
        else {
            return Vec::new();
        };
        let tunnel = self.tunnels.get(family);
        let (ip, protocol) = match family {
            Family::V4 => ("ip", "ipv4"),
            Family::V6 => ("ip6", "ipv6"),
        };
        let mut conditions = Vec::new();
        if let Some(bridge) = &self.bridge {
            let allowed = match family {
                Family::V4 => subnet.to_string(),
                Family::V6 => format!("{{ {subnet}, {} }}", LINK_SOURCES.join(", ")),
            };
            conditions.push(format!("iifname \"{bridge}\" {ip} saddr != {allowed}"));
            if let Some(Tunnel { port, .. }) = tunnel {
                conditions.push(format!(
                    "iifname \"{bridge}\" {ip} daddr != {network} udp dport {port}"
                ));
            }
        }
        if let Some(tunnel) = tunnel {
            let Tunnel {
                device,
                uplink,
                port,
                vni,
                nodes,
            } = tunnel;
            conditions.push(format!("iifname \"{device}\" {ip} saddr != {network}"));
            conditions.push(format!("iifname \"{device}\" {ip} saddr {subnet}"));
            let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
            let others = if nodes.is_empty() {
                format!("meta nfproto {protocol}")
            } else {
                format!("{ip} saddr != {{ {} }}", nodes.join(", "))
            };
            // Other networks may use the port: ours is told by the identifier, behind 8 bytes of UDP and 4 of VXLAN.
            conditions.push(format!(
                "iifname \"{uplink}\" udp dport {port} @th,96,24 {vni:#x} {others}"
            ));
        }
        conditions
    }

    /// As the rules of nftables, except that of the other nodes: iptables has no sets of its own, and BPF checks it.
    fn iptables_lines(&self, family: Family) -> Vec<String> {
        let (Some(network), Some(subnet)) = (self.networks.get(family), self.subnets.get(family))
        else {
            return Vec::new();
        };
        let tunnel = self.tunnels.get(family);
        let mut lines = Vec::new();
        let mut rule = |condition: String, verdict: &str| {
            lines.push(format!("{condition} -j {verdict}"));
        };
        // What the tunnel brings first: the rules that let link-local sources of pods pass end the chain.
        if let Some(Tunnel { device, .. }) = tunnel {
            rule(format!("-i {device} ! -s {network}"), "DROP");
            rule(format!("-i {device} -s {subnet}"), "DROP");
        }
        if let Some(bridge) = &self.bridge {
            if let Some(Tunnel { port, .. }) = tunnel {
                rule(
                    format!("-i {bridge} ! -d {network} -p udp --dport {port}"),
                    "DROP",
                );
            }
            if family == Family::V6 {
                for source in LINK_SOURCES {
                    rule(format!("-i {bridge} -s {source}"), "RETURN");
                }
            }
            rule(format!("-i {bridge} ! -s {subnet}"), "DROP");
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strict() -> Strict {
        let prefix = |text: &str| text.parse::<IpNet>().ok();
        let tunnel = |device: &str, node: &str| {
            Some(Tunnel {
                device: device.into(),
                uplink: "eth0".into(),
                port: 8472,
                vni: 1,
                nodes: node.parse().into_iter().collect(),
            })
        };
        Strict {
            networks: PerFamily {
                v4: prefix("10.5.0.0/16"),
                v6: prefix("fd00:5::/48"),
            },
            subnets: PerFamily {
                v4: prefix("10.5.9.0/24"),
                v6: prefix("fd00:5:0:9::/64"),
            },
            bridge: Some("cni0".into()),
            tunnels: PerFamily {
                v4: tunnel("flannel.1", "192.168.1.2"),
                v6: tunnel("flannel-v6.1", "fd00:1::2"),
            },
        }
    }

    fn guard(strict: Strict) -> Guard {
        Guard {
            mark: None,
            strict: Some(strict),
        }
    }

    #[test]
    fn no_rules_leave_no_table() {
        let script = Guard::default().nft_script();
        assert_eq!(
            script.lines().last(),
            Some("delete table inet flannel-fastpath")
        );
        assert!(Guard::default().attest_lines().is_empty());
        assert!(Guard::default().strict_lines(Family::V4).is_empty());
    }

    #[test]
    fn the_mark_is_cleared_before_it_is_set() {
        let guard = Guard {
            mark: Some(0x40),
            strict: None,
        };
        let script = guard.nft_script();
        let clear = script.find("and 0xffffffbf").expect("clears");
        let set = script.find("or 0x40").expect("sets");
        assert!(clear < set);
        assert_eq!(
            guard.attest_lines(),
            [
                "-j MARK --set-xmark 0x0/0x40",
                "-m conntrack --ctstate SNAT,DNAT -j RETURN",
                "-m conntrack --ctstate ESTABLISHED --ctstatus ASSURED -j MARK --set-xmark 0x40/0x40",
            ]
        );
    }

    #[test]
    fn strict_checks_name_interfaces_and_nodes() {
        let script = guard(strict()).nft_script();
        let rules: Vec<&str> = script
            .lines()
            .filter_map(|line| line.strip_prefix("add rule inet flannel-fastpath strict "))
            .collect();
        assert_eq!(
            rules,
            [
                "iifname \"cni0\" ip saddr != 10.5.9.0/24 counter drop",
                "iifname \"cni0\" ip daddr != 10.5.0.0/16 udp dport 8472 counter drop",
                "iifname \"flannel.1\" ip saddr != 10.5.0.0/16 counter drop",
                "iifname \"flannel.1\" ip saddr 10.5.9.0/24 counter drop",
                "iifname \"eth0\" udp dport 8472 @th,96,24 0x1 ip saddr != { 192.168.1.2 } counter drop",
                "iifname \"cni0\" ip6 saddr != { fd00:5:0:9::/64, fe80::/10, :: } counter drop",
                "iifname \"cni0\" ip6 daddr != fd00:5::/48 udp dport 8472 counter drop",
                "iifname \"flannel-v6.1\" ip6 saddr != fd00:5::/48 counter drop",
                "iifname \"flannel-v6.1\" ip6 saddr fd00:5:0:9::/64 counter drop",
                "iifname \"eth0\" udp dport 8472 @th,96,24 0x1 ip6 saddr != { fd00:1::2 } counter drop",
            ]
        );
    }

    #[test]
    fn strict_checks_of_iptables_let_neighbour_discovery_pass() {
        assert_eq!(
            guard(strict()).strict_lines(Family::V4),
            [
                "-i flannel.1 ! -s 10.5.0.0/16 -j DROP",
                "-i flannel.1 -s 10.5.9.0/24 -j DROP",
                "-i cni0 ! -d 10.5.0.0/16 -p udp --dport 8472 -j DROP",
                "-i cni0 ! -s 10.5.9.0/24 -j DROP",
            ]
        );
        assert_eq!(
            guard(strict()).strict_lines(Family::V6),
            [
                "-i flannel-v6.1 ! -s fd00:5::/48 -j DROP",
                "-i flannel-v6.1 -s fd00:5:0:9::/64 -j DROP",
                "-i cni0 ! -d fd00:5::/48 -p udp --dport 8472 -j DROP",
                "-i cni0 -s fe80::/10 -j RETURN",
                "-i cni0 -s :: -j RETURN",
                "-i cni0 ! -s fd00:5:0:9::/64 -j DROP",
            ]
        );
    }

    #[test]
    fn a_tunnel_without_other_nodes_takes_nothing() {
        let mut strict = strict();
        for tunnel in [&mut strict.tunnels.v4, &mut strict.tunnels.v6] {
            tunnel.as_mut().expect("a tunnel").nodes.clear();
        }
        let script = guard(strict).nft_script();
        for family in ["ipv4", "ipv6"] {
            let rule = format!("@th,96,24 0x1 meta nfproto {family} counter drop");
            assert!(script.contains(&rule), "{rule} in {script}");
        }
    }
}

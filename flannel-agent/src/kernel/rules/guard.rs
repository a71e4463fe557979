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
mod tests;

//! Rules of the fast path itself, beside upstream's: the mark by which netfilter attests packets, and strict source
//! checks for packets that take the kernel's path.
//!
//! Text only; the module above runs the tools. nftables has a table of its own for them, iptables a chain each.

use std::{collections::BTreeSet, fmt::Write as _, net::Ipv4Addr};

use ipnet::Ipv4Net;

/// The table of nftables, family `inet`.
pub const TABLE: &str = "flannel-fastpath";
/// The chain of iptables' mangle table that marks.
pub const ATTEST_CHAIN: &str = "FLANNEL-ATTEST";
/// The chain of iptables' raw table that drops.
pub const STRICT_CHAIN: &str = "FLANNEL-STRICT";

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
    /// The flannel network.
    pub network: Ipv4Net,
    /// This node's subnet.
    pub subnet: Ipv4Net,
    /// The pods' bridge; absent until the first pod.
    pub bridge: Option<String>,
    /// The tunnel; absent without one.
    pub tunnel: Option<Tunnel>,
}

/// The node's VXLAN device and those that may send to it.
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
    pub nodes: BTreeSet<Ipv4Addr>,
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
            strict.nft_rules(&mut script);
        }
        script
    }

    /// The input of `iptables-restore --noflush` that fills the chains, and their jumps where they are missing.
    pub fn iptables_script(&self, attest_jump: bool, strict_jump: bool) -> String {
        let mut script = String::new();
        if let Some(bit) = self.mark {
            let _ = write!(
                script,
                "*mangle
:{ATTEST_CHAIN} - [0:0]
-A {ATTEST_CHAIN} -j MARK --set-xmark 0x0/{bit:#x}
-A {ATTEST_CHAIN} -m conntrack --ctstate SNAT,DNAT -j RETURN
-A {ATTEST_CHAIN} -m conntrack --ctstate ESTABLISHED --ctstatus ASSURED -j MARK --set-xmark {bit:#x}/{bit:#x}
"
            );
            if attest_jump {
                let _ = writeln!(script, "-A POSTROUTING -j {ATTEST_CHAIN}");
            }
            script.push_str("COMMIT\n");
        }
        if let Some(strict) = &self.strict {
            let _ = writeln!(script, "*raw\n:{STRICT_CHAIN} - [0:0]");
            for condition in strict.iptables_conditions() {
                let _ = writeln!(script, "-A {STRICT_CHAIN} {condition} -j DROP");
            }
            if strict_jump {
                let _ = writeln!(script, "-I PREROUTING -j {STRICT_CHAIN}");
            }
            script.push_str("COMMIT\n");
        }
        script
    }
}

impl Strict {
    fn nft_rules(&self, script: &mut String) {
        let Self {
            network, subnet, ..
        } = self;
        let _ = writeln!(
            script,
            "add chain inet {TABLE} strict {{ type filter hook prerouting priority raw; }}"
        );
        let mut drop = |condition: String| {
            let _ = writeln!(
                script,
                "add rule inet {TABLE} strict {condition} counter drop"
            );
        };
        if let Some(bridge) = &self.bridge {
            drop(format!("iifname \"{bridge}\" ip saddr != {subnet}"));
            if let Some(Tunnel { port, .. }) = &self.tunnel {
                drop(format!(
                    "iifname \"{bridge}\" ip daddr != {network} udp dport {port}"
                ));
            }
        }
        if let Some(tunnel) = &self.tunnel {
            let Tunnel {
                device,
                uplink,
                port,
                vni,
                nodes,
            } = tunnel;
            drop(format!("iifname \"{device}\" ip saddr != {network}"));
            drop(format!("iifname \"{device}\" ip saddr {subnet}"));
            let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
            let others = if nodes.is_empty() {
                String::new()
            } else {
                format!(" ip saddr != {{ {} }}", nodes.join(", "))
            };
            // Other networks may use the port: ours is told by the identifier, behind 8 bytes of UDP and 4 of VXLAN.
            drop(format!(
                "iifname \"{uplink}\" udp dport {port} @th,96,24 {vni:#x}{others}"
            ));
        }
    }

    /// As the rules of nftables, except that of the other nodes: iptables has no sets of its own, and BPF checks it.
    fn iptables_conditions(&self) -> Vec<String> {
        let Self {
            network, subnet, ..
        } = self;
        let mut conditions = Vec::new();
        if let Some(bridge) = &self.bridge {
            conditions.push(format!("-i {bridge} ! -s {subnet}"));
            if let Some(Tunnel { port, .. }) = &self.tunnel {
                conditions.push(format!("-i {bridge} ! -d {network} -p udp --dport {port}"));
            }
        }
        if let Some(Tunnel { device, .. }) = &self.tunnel {
            conditions.push(format!("-i {device} ! -s {network}"));
            conditions.push(format!("-i {device} -s {subnet}"));
        }
        conditions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strict() -> Strict {
        Strict {
            network: "10.5.0.0/16".parse().expect("a prefix"),
            subnet: "10.5.9.0/24".parse().expect("a prefix"),
            bridge: Some("cni0".into()),
            tunnel: Some(Tunnel {
                device: "flannel.1".into(),
                uplink: "eth0".into(),
                port: 8472,
                vni: 1,
                nodes: [Ipv4Addr::new(192, 168, 1, 2)].into(),
            }),
        }
    }

    #[test]
    fn no_rules_leave_no_table() {
        let script = Guard::default().nft_script();
        assert_eq!(
            script.lines().last(),
            Some("delete table inet flannel-fastpath")
        );
        assert_eq!(Guard::default().iptables_script(true, true), "");
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
        let script = guard.iptables_script(true, false);
        let clear = script.find("0x0/0x40").expect("clears");
        let set = script.find("0x40/0x40").expect("sets");
        assert!(clear < set && script.contains("-A POSTROUTING"));
        assert!(!guard.iptables_script(false, false).contains("POSTROUTING"));
    }

    #[test]
    fn strict_checks_name_interfaces_and_nodes() {
        let guard = Guard {
            mark: None,
            strict: Some(strict()),
        };
        let script = guard.nft_script();
        for rule in [
            "iifname \"cni0\" ip saddr != 10.5.9.0/24 counter drop",
            "iifname \"cni0\" ip daddr != 10.5.0.0/16 udp dport 8472 counter drop",
            "iifname \"flannel.1\" ip saddr != 10.5.0.0/16 counter drop",
            "iifname \"eth0\" udp dport 8472 @th,96,24 0x1 ip saddr != { 192.168.1.2 } counter drop",
        ] {
            assert!(script.contains(rule), "{rule} in {script}");
        }
        assert!(
            guard
                .iptables_script(false, true)
                .contains("-i cni0 ! -s 10.5.9.0/24 -j DROP")
        );
    }

    #[test]
    fn a_tunnel_without_other_nodes_takes_nothing() {
        let mut strict = strict();
        strict.tunnel.as_mut().expect("a tunnel").nodes.clear();
        let guard = Guard {
            mark: None,
            strict: Some(strict),
        };
        assert!(guard.nft_script().contains("@th,96,24 0x1 counter drop"));
    }
}

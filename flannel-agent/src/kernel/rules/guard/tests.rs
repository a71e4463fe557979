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

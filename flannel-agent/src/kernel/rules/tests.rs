use std::fmt::Write as _;

use super::{
    variant::{parse_version, weigh},
    *,
};

/// What upstream v0.28.9 writes for IPv4.
const V4: [&str; 8] = [
    r#"FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN"#,
    r#"FLANNEL-POSTRTG -s 10.5.9.0/24 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j RETURN"#,
    r#"FLANNEL-POSTRTG -s 10.5.0.0/16 -d 10.5.9.0/24 -m comment --comment "flanneld masq" -j RETURN"#,
    r#"FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.9.0/24 -m comment --comment "flanneld masq" -j RETURN"#,
    r#"FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully"#,
    r#"FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully"#,
    r#"FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT"#,
    r#"FLANNEL-FWD -d 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT"#,
];

/// Replaces the prefixes of IPv4 by those of IPv6.
fn v6(text: &str) -> String {
    [
        ("10.5.9.0/24", "fd00:5:0:9::/64"),
        ("10.5.0.0/16", "fd00:5::/48"),
        ("224.0.0.0/4", "ff00::/8"),
        ("ip saddr", "ip6 saddr"),
        ("ip daddr", "ip6 daddr"),
    ]
    .into_iter()
    .fold(text.to_owned(), |text, (v4, v6)| text.replace(v4, v6))
}

fn prefix(text: &str) -> Option<IpNet> {
    text.parse().ok()
}

fn rules(enable_nftables: bool) -> Rules {
    Rules {
        networks: PerFamily {
            v4: prefix("10.5.0.0/16"),
            v6: prefix("fd00:5::/48"),
        },
        subnets: PerFamily {
            v4: prefix("10.5.9.0/24"),
            v6: prefix("fd00:5:0:9::/64"),
        },
        masquerade: true,
        random_fully: true,
        forward: true,
        mode: Mode {
            enable_nftables,
            choice: Choice::Auto,
        },
        guard: Guard::default(),
    }
}

/// The rules of all wanted chains, as `iptables -S` begins them.
fn chains(rules: &Rules, family: Family, random_fully: bool) -> Vec<String> {
    let chains = rules.iptables_chains(family, random_fully);
    chains
        .into_iter()
        .flat_map(|(chain, lines)| {
            lines
                .into_iter()
                .map(|line| format!("{} {line}", chain.name))
        })
        .collect()
}

fn nft_rules(rules: &Rules, table: &str) -> Vec<String> {
    let prefix = format!("add rule {table} ");
    rules
        .nft_script()
        .lines()
        .filter_map(|line| line.strip_prefix(&prefix))
        .map(str::to_owned)
        .collect()
}

#[test]
fn iptables_rules_are_the_recorded_ones_in_order() {
    assert_eq!(chains(&rules(false), Family::V4, true), V4);
    assert_eq!(
        chains(&rules(false), Family::V6, true),
        V4.map(v6).as_slice()
    );
}

#[test]
fn a_jump_that_exists_is_not_added_again_and_copies_of_it_go() {
    let [(chain, lines), ..] = rules(false).iptables_chains(Family::V4, true);
    let jump = r#"-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG"#;
    let script = |jumps: usize| {
        let jumps = vec![jump.to_owned(); jumps];
        iptables::chain_script(chain, &lines, &jumps)
    };
    let mut whole = String::from("*nat\n:FLANNEL-POSTRTG - [0:0]\n");
    for line in &V4[..6] {
        let _ = writeln!(whole, "-A {line}");
    }
    assert_eq!(script(1), format!("{whole}COMMIT\n"));
    assert_eq!(script(0), format!("{whole}{jump}\nCOMMIT\n"));
    let deletion = jump.replace("-A", "-D");
    assert_eq!(
        script(3),
        format!("{whole}{deletion}\n{deletion}\nCOMMIT\n")
    );
}

#[test]
fn switches_leave_out_what_they_name() {
    let all = rules(false);
    assert!(!chains(&all, Family::V4, false).concat().contains("random"));
    let plain = Rules {
        random_fully: false,
        ..all.clone()
    };
    assert!(!plain.nft_script().contains("fully-random"));
    let forward = Rules {
        masquerade: false,
        ..all.clone()
    };
    assert_eq!(chains(&forward, Family::V4, true), V4[6..]);
    assert!(!forward.nft_script().contains("postrtg"));
    let masquerade = Rules {
        forward: false,
        ..all
    };
    assert_eq!(chains(&masquerade, Family::V4, true), V4[..6]);
    assert!(!masquerade.nft_script().contains("hook forward"));
}

#[test]
fn a_family_without_network_has_an_empty_table_and_no_chains() {
    let mut rules = rules(true);
    (rules.networks.v6, rules.subnets.v6) = (None, None);
    rules.guard.mark = Some(0x40);
    assert!(chains(&rules, Family::V6, true).is_empty());
    assert!(nft_rules(&rules, "ip6 flannel-ipv6").is_empty());
    assert!(
        rules
            .nft_script()
            .contains("add table ip6 flannel-ipv6 { comment \"rules for flannel-ipv6\"; }")
    );
}

/// What upstream's nftables mode writes for IPv4.
const NFT: [&str; 8] = [
    "postrtg meta mark 0x4000 return",
    "postrtg ip saddr 10.5.9.0/24 ip daddr 10.5.0.0/16 return",
    "postrtg ip saddr 10.5.0.0/16 ip daddr 10.5.9.0/24 return",
    "postrtg ip saddr != 10.5.9.0/24 ip daddr 10.5.0.0/16 return",
    "postrtg ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
    "postrtg ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random",
    "forward ip saddr 10.5.0.0/16 accept",
    "forward ip daddr 10.5.0.0/16 accept",
];

#[test]
fn nft_rules_are_the_recorded_ones_in_order() {
    assert_eq!(nft_rules(&rules(true), "ip flannel-ipv4"), NFT);
    assert_eq!(
        nft_rules(&rules(true), "ip6 flannel-ipv6"),
        NFT.map(v6).as_slice()
    );
}

/// Upstream's modes masquerade differently; which one is wanted is the network config's to say, not the tool's.
#[test]
fn the_other_tool_masquerades_as_the_config_wants() {
    let by_nft = nft_rules(&rules(false), "ip flannel-ipv4");
    assert_eq!(by_nft[0], "postrtg meta mark and 0x4000 == 0x4000 return");
    assert_eq!(
        by_nft[3],
        "postrtg ip saddr != 10.5.0.0/16 ip daddr 10.5.9.0/24 return"
    );
    let by_iptables = chains(&rules(true), Family::V4, true);
    assert!(by_iptables[3].contains("! -s 10.5.9.0/24 -d 10.5.0.0/16"));
}

#[test]
fn versions_are_read_from_what_the_tool_prints() {
    assert_eq!(parse_version("iptables v1.8.9 (nf_tables)\n"), (1, 8, 9));
    assert_eq!(parse_version("iptables v1.4.21"), (1, 4, 21));
    assert_eq!(parse_version("unknown"), (0, 0, 0));
}

#[test]
fn rules_of_others_show_where_they_are() {
    let listed = "*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n\
                  -A POSTROUTING -j FLANNEL-POSTRTG\n-A FLANNEL-POSTRTG -s 10.5.0.0/16 -j RETURN\nCOMMIT\n";
    assert_eq!(weigh(listed), (false, 1));
    assert_eq!(
        weigh("*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"),
        (true, 0)
    );
}

use super::*;

fn rules() -> Rules {
    Rules {
        networks: PerFamily::v4("10.5.0.0/16".parse().unwrap()),
        subnets: PerFamily::v4("10.5.9.0/24".parse().unwrap()),
        masquerade: true,
        random_fully: true,
        forward: true,
        nftables: false,
        guard: Guard::default(),
    }
}

/// What `iptables-save` showed on a node with flanneld v0.28.9.
const RECORDED: [&str; 10] = [
    r#"-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG"#,
    r#"-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN"#,
    r#"-A FLANNEL-POSTRTG -s 10.5.9.0/24 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j RETURN"#,
    r#"-A FLANNEL-POSTRTG -s 10.5.0.0/16 -d 10.5.9.0/24 -m comment --comment "flanneld masq" -j RETURN"#,
    r#"-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.9.0/24 -m comment --comment "flanneld masq" -j RETURN"#,
    r#"-A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully"#,
    r#"-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully"#,
    r#"-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD"#,
    r#"-A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT"#,
    r#"-A FLANNEL-FWD -d 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT"#,
];

fn appended(script: &str) -> Vec<&str> {
    script
        .lines()
        .filter(|line| line.starts_with("-A"))
        .collect()
}

#[test]
fn iptables_rules_are_the_recorded_ones_in_order() {
    let script = rules().iptables_script(true, true, true);
    for chain in ["FLANNEL-POSTRTG", "FLANNEL-FWD"] {
        let of_chain = |lines: Vec<&'static str>| -> Vec<&'static str> {
            lines
                .into_iter()
                .filter(|line| line.starts_with(&format!("-A {chain} ")))
                .collect()
        };
        let written: Vec<&str> = appended(&script)
            .into_iter()
            .filter(|line| line.starts_with(&format!("-A {chain} ")))
            .collect();
        assert_eq!(written, of_chain(RECORDED.to_vec()));
    }
    let mut all = appended(&script);
    let mut recorded = RECORDED.to_vec();
    all.sort_unstable();
    recorded.sort_unstable();
    assert_eq!(all, recorded);
}

#[test]
fn a_jump_that_exists_is_not_added_again() {
    let script = rules().iptables_script(true, false, false);
    assert!(!script.contains("-j FLANNEL"));
    assert_eq!(appended(&script).len(), RECORDED.len() - 2);
}

#[test]
fn switches_leave_out_what_they_name() {
    let script = rules().iptables_script(false, true, true);
    assert!(!script.contains("--random-fully"));
    assert!(
        !Rules {
            masquerade: false,
            ..rules()
        }
        .iptables_script(true, true, true)
        .contains("*nat")
    );
    assert!(
        !Rules {
            forward: false,
            ..rules()
        }
        .iptables_script(true, true, true)
        .contains("*filter")
    );
    assert!(
        !Rules {
            masquerade: false,
            ..rules()
        }
        .nft_script()
        .contains("postrtg")
    );
    assert!(
        !Rules {
            forward: false,
            ..rules()
        }
        .nft_script()
        .contains("hook forward")
    );
}

#[test]
fn nft_differs_from_iptables_in_the_third_return_rule_as_upstream_does() {
    let script = rules().nft_script();
    let rules: Vec<&str> = script
        .lines()
        .filter_map(|line| line.strip_prefix("add rule ip flannel-ipv4 "))
        .collect();
    assert_eq!(
        rules,
        [
            "postrtg meta mark 0x4000 return",
            "postrtg ip saddr 10.5.9.0/24 ip daddr 10.5.0.0/16 return",
            "postrtg ip saddr 10.5.0.0/16 ip daddr 10.5.9.0/24 return",
            "postrtg ip saddr != 10.5.9.0/24 ip daddr 10.5.0.0/16 return",
            "postrtg ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
            "postrtg ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random",
            "forward ip saddr 10.5.0.0/16 accept",
            "forward ip daddr 10.5.0.0/16 accept",
        ]
    );
}

#[test]
fn versions_are_read_from_what_the_tool_prints() {
    assert_eq!(parse_version("iptables v1.8.9 (nf_tables)\n"), (1, 8, 9));
    assert_eq!(parse_version("iptables v1.4.21"), (1, 4, 21));
    assert!(parse_version("iptables v1.6.1") < RANDOM_FULLY);
    assert_eq!(parse_version("unknown"), (0, 0, 0));
}

use ipnet::Ipv4Net;
use proptest::prelude::*;

use super::*;

fn parse(json: &str) -> Result<NetworkConfig, String> {
    NetworkConfig::parse(json.as_bytes()).map_err(|error| error.to_string())
}

/// A config whose fields are those of `fields` and a backend.
fn with(fields: &str) -> Result<NetworkConfig, String> {
    parse(&format!(
        r#"{{"Backend":{{"Type":"host-gw"}},"Network":"10.5.0.0/16",{fields}}}"#
    ))
}

fn bounds(pool: Option<Pool>) -> (u8, String, String) {
    let pool = pool.unwrap();
    let (min, max) = (pool.subnet_min, pool.subnet_max);
    (pool.subnet_len, min.to_string(), max.to_string())
}

fn network(network: &str) -> Result<(u8, String, String), String> {
    let json = format!(r#"{{"Network":"{network}","Backend":{{"Type":"vxlan"}}}}"#);
    Ok(bounds(parse(&json)?.pools.v4))
}

/// A config with IPv6 alone.
fn ipv6(fields: &str) -> Result<NetworkConfig, String> {
    parse(&format!(
        r#"{{"EnableIPv4":false,"EnableIPv6":true,"Backend":{{"Type":"vxlan"}},{fields}}}"#
    ))
}

fn ipv6_network(network: &str) -> Result<(u8, String, String), String> {
    Ok(bounds(
        ipv6(&format!(r#""IPv6Network":"{network}""#))?.pools.v6,
    ))
}

fn options(backend: &str) -> Result<Vxlan, String> {
    let json = format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#);
    match parse(&json)?.backend {
        Backend::Vxlan(options) => Ok(options),
        other => Err(other.name().into()),
    }
}

#[test]
fn defaults_are_upstreams() {
    // pkg/subnet/config_test.go, TestConfigDefaults.
    let expected = |len, min: &str, max: &str| Ok((len, min.to_owned(), max.to_owned()));
    assert_eq!(
        network("10.3.0.0/16"),
        expected(24, "10.3.1.0", "10.3.255.0")
    );
    assert_eq!(
        network("10.3.9.9/16"),
        expected(24, "10.3.1.0", "10.3.255.0")
    );
    assert_eq!(network("10.3.0.0/22"), expected(24, "10.3.1.0", "10.3.3.0"));
    assert_eq!(
        network("10.3.0.0/23"),
        expected(25, "10.3.0.128", "10.3.1.128")
    );
    assert_eq!(
        network("10.3.0.0/28"),
        expected(30, "10.3.0.4", "10.3.0.12")
    );
    assert_eq!(
        ipv6_network("fc00::/48"),
        expected(64, "fc00:0:0:1::", "fc00:0:0:ffff::")
    );
    assert_eq!(
        ipv6_network("fc00::/62"),
        expected(64, "fc00:0:0:1::", "fc00:0:0:3::")
    );
    assert_eq!(
        ipv6_network("fc00::/63"),
        expected(65, "fc00::8000:0:0:0", "fc00:0:0:1:8000::")
    );
    assert_eq!(
        ipv6_network("fc00::/124"),
        expected(126, "fc00::4", "fc00::c")
    );
    let config = parse(r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#).unwrap();
    assert_eq!(config.enable_nftables, None);
    assert_eq!(
        config.backend,
        Backend::Vxlan(Vxlan {
            vni: 1,
            port: 0,
            mtu: None,
            gbp: false,
            learning: false,
            direct_routing: false,
        })
    );
}

#[test]
fn keys_match_without_regard_to_case_and_the_last_wins() {
    let config = parse(
        r#"{"network":"10.9.0.0/16","NETWORK":"10.5.0.0/16","subnetlen":25,"enablenftables":true,
            "enableIPv6":true,"EnableIPv6":false,"Unknown":[1],"BACKEND":{"type":"VXLAN","vni":7,"Directrouting":true}}"#,
    )
    .unwrap();
    let pool = config.pools.v4.unwrap();
    assert_eq!(pool.network.to_string(), "10.5.0.0/16");
    assert_eq!(pool.subnet_len, 25);
    assert_eq!(config.enable_nftables, Some(true));
    assert!(matches!(
        config.backend,
        Backend::Vxlan(Vxlan {
            vni: 7,
            direct_routing: true,
            ..
        })
    ));
}

#[test]
fn null_is_as_good_as_absent() {
    assert_eq!(
        with(r#""SubnetLen":null,"SubnetMin":null,"EnableIPv4":null"#),
        with(r#""X":0"#)
    );
}

#[test]
fn vxlan_options_are_read() {
    assert_eq!(
        options(r#"{"Type":"vxlan","VNI":42,"Port":4789,"GBP":true,"MTU":1400,"Learning":true}"#),
        Ok(Vxlan {
            vni: 42,
            port: 4789,
            mtu: Some(1400),
            gbp: true,
            learning: true,
            direct_routing: false,
        })
    );
    assert_eq!(options(r#"{"Type":"vxlan","MTU":0}"#).unwrap().mtu, None);
}

#[test]
fn every_rule_has_one_error_that_names_field_value_and_rule() {
    for (result, expected) in [
        (
            with(r#""SubnetLen":31"#).map(drop),
            "SubnetLen = 31: must be at most 30",
        ),
        (
            with(r#""SubnetLen":17"#).map(drop),
            "SubnetLen = 17: must be at least 18, so that 10.5.0.0/16 holds four subnets",
        ),
        (
            with(r#""SubnetLen":"24""#).map(drop),
            r#"SubnetLen = "24": must be a whole number from 0 to 32"#,
        ),
        (
            with(r#""SubnetMin":"10.6.1.0""#).map(drop),
            "SubnetMin = 10.6.1.0: must lie in Network = 10.5.0.0/16",
        ),
        (
            with(r#""SubnetMax":"10.5.1.1""#).map(drop),
            "SubnetMax = 10.5.1.1: must be on a boundary of SubnetLen = 24",
        ),
        (
            with(r#""SubnetMin":"10.5.9.0","SubnetMax":"10.5.8.0""#).map(drop),
            "SubnetMin = 10.5.9.0: must not be above SubnetMax = 10.5.8.0",
        ),
        (
            with(r#""SubnetMin":7"#).map(drop),
            "SubnetMin = 7: must be a string",
        ),
        (
            with(r#""EnableIPv6":true"#).map(drop),
            "IPv6Network = absent: required: an IPv6 prefix such as fd00:10::/48",
        ),
        (
            ipv6_network("fc00::/125").map(drop),
            "IPv6Network = fc00::/125: too small: the longest useful prefix is /124",
        ),
        (
            ipv6(r#""IPv6Network":"fc00::/48","IPv6SubnetLen":127"#).map(drop),
            "IPv6SubnetLen = 127: must be at most 126",
        ),
        (
            ipv6(r#""IPv6Network":"fc00::/48","IPv6SubnetMin":"fd00::""#).map(drop),
            "IPv6SubnetMin = fd00::: must lie in IPv6Network = fc00::/48",
        ),
        (
            parse(r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#)
                .map(drop),
            "EnableIPv6 = true: the backend udp carries IPv4 only: disable IPv6, or choose vxlan or host-gw",
        ),
        (
            with(r#""IPv6Network":"10.5.0.0/16""#).map(drop),
            r#"IPv6Network = "10.5.0.0/16": must be an IPv6 prefix such as fd00:10::/48"#,
        ),
        (
            with(r#""EnableIPv4":false"#).map(drop),
            "EnableIPv4 = false: with EnableIPv6 = false there is no network: enable one of them",
        ),
        (
            network("10.5.0.0/29").map(drop),
            "Network = 10.5.0.0/29: too small: the longest useful prefix is /28",
        ),
        (
            network("10.5.0.0").map(drop),
            r#"Network = "10.5.0.0": must be an IPv4 prefix such as 10.5.0.0/16"#,
        ),
        (
            parse(r#"{"Backend":{"Type":"vxlan"}}"#).map(drop),
            "Network = absent: required: an IPv4 prefix such as 10.5.0.0/16",
        ),
        (
            options("{}").map(drop),
            "Backend.Type = absent: this agent has vxlan, host-gw, udp, ipip, alloc and extension; set it to one of them",
        ),
        (
            options(r#"{"Type":"wireguard"}"#).map(drop),
            r#"Backend.Type = "wireguard": this agent has vxlan, host-gw, udp, ipip, alloc and extension; set it to one of them"#,
        ),
        (
            options("7").map(drop),
            r#"Backend = 7: must be an object such as {"Type":"vxlan"}"#,
        ),
        (
            options(r#"{"Type":"vxlan","VNI":16777216}"#).map(drop),
            "Backend.VNI = 16777216: must be a whole number from 0 to 16777215",
        ),
        (
            options(r#"{"Type":"vxlan","GBP":1}"#).map(drop),
            "Backend.GBP = 1: must be true or false",
        ),
        (
            options(r#"{"Type":"vxlan","MTU":100}"#).map(drop),
            "Backend.MTU = 100: must be at least 118: it is the underlay's, before encapsulation",
        ),
    ] {
        assert_eq!(result.unwrap_err(), expected);
    }
    assert!(parse("[]").unwrap_err().starts_with("not a JSON object: "));
    assert!(parse("{").unwrap_err().starts_with("not a JSON object: "));
}

#[test]
fn other_backends_have_upstreams_defaults() {
    let backend = |backend: &str| {
        let json = format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#);
        parse(&json).unwrap().backend
    };
    assert_eq!(backend("null"), Backend::Udp(Udp { port: 8285 }));
    assert_eq!(
        backend(r#"{"Type":"UDP","port":9999}"#),
        Backend::Udp(Udp { port: 9999 })
    );
    let direct_routing = true;
    assert_eq!(
        backend(r#"{"Type":"ipip","DirectRouting":true}"#),
        Backend::Ipip(Ipip { direct_routing })
    );
    assert_eq!(backend(r#"{"Type":"alloc"}"#), Backend::Alloc);
    assert_eq!(
        backend(r#"{"Type":"extension","SubnetAddCommand":"/opt/add $SUBNET"}"#),
        Backend::Extension(Extension {
            subnet_add_command: "/opt/add $SUBNET".into(),
            ..Extension::default()
        })
    );
}

#[test]
fn a_check_finds_everything() {
    let check = check(
        br#"{"Network":"10.5.0.0/16","network":"10.6.0.0/16","SubnetLen":99,"SubnetMin":"x","Nework":1,
            "Backend":{"Type":"vxlan","VNI":-1,"Port":70000,"Prot":8472,"MacPrefix":"0E-2A"}}"#,
    );
    assert!(check.config.is_none());
    let errors: Vec<String> = check.errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        errors,
        [
            "SubnetLen = 99: must be a whole number from 0 to 32",
            "SubnetMin = \"x\": must be an IPv4 address",
            "Backend.VNI = -1: must be a whole number from 0 to 16777215",
            "Backend.Port = 70000: must be a whole number from 0 to 65535",
        ]
    );
    assert_eq!(
        check.warnings,
        [
            "Nework: unknown, without effect",
            "network: given more than once, the last one counts",
        ]
    );
    let fine = super::check(br#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","Prot":1}}"#);
    assert!(fine.config.is_some() && fine.errors.is_empty());
    assert_eq!(fine.warnings, ["Backend.Prot: unknown, without effect"]);
}

#[test]
fn what_is_shown_holds_the_defaults() {
    let config =
        parse(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}"#).unwrap();
    assert_eq!(
        serde_json::to_string(&config).unwrap(),
        r#"{"Network":"10.5.0.0/16","SubnetLen":24,"SubnetMin":"10.5.1.0","SubnetMax":"10.5.255.0","EnableNFTables":false,"Backend":{"Type":"vxlan","VNI":1,"Port":0,"MTU":1400,"GBP":false,"Learning":false,"DirectRouting":false}}"#
    );
    let dual = parse(r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"host-gw"}}"#).unwrap();
    let shown = serde_json::to_string(&dual).unwrap();
    assert!(
        shown.contains(r#""EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetLen":64,"IPv6SubnetMin":"fd00:5:0:1::","IPv6SubnetMax":"fd00:5:0:ffff::""#),
        "{shown}"
    );
    assert_eq!(parse(&shown).unwrap().pools, dual.pools);
}

proptest! {
    #[test]
    fn a_valid_config_is_consistent(address: u32, len in 0u8..=32, subnet_len in 0u8..=32) {
        let network = Ipv4Net::new(address.into(), len).unwrap();
        let json = format!(
            r#"{{"Network":"{network}","SubnetLen":{subnet_len},"Backend":{{"Type":"host-gw"}}}}"#
        );
        match parse(&json) {
            Ok(config) => {
                let pool = config.pools.v4.unwrap();
                prop_assert_eq!(pool.network, IpNet::V4(network.trunc()));
                prop_assert!(pool.subnet_len <= 30);
                prop_assert!(pool.subnet_len >= len + 2);
                for bound in [pool.subnet_min, pool.subnet_max] {
                    let subnet = IpNet::new(bound, pool.subnet_len).unwrap();
                    prop_assert_eq!(subnet.trunc(), subnet);
                    prop_assert!(pool.network.contains(&subnet));
                    prop_assert!(config.allows(&PerFamily::v4(subnet)));
                }
            }
            Err(_) if subnet_len == 0 => prop_assert!(len > 28),
            Err(_) => prop_assert!(subnet_len > 30 || subnet_len < len + 2),
        }
    }

    #[test]
    fn no_document_makes_it_panic(text in r#"\{("(Network|SubnetLen|Backend|Type)":("[0-9./a-z]{0,12}"|-?[0-9]{1,12}|\{\}|null),?){0,4}\}"#) {
        let _ = parse(&text);
    }
}

#[test]
fn subnets_that_somebody_else_assigns_need_no_pool() {
    let assigned = |json: &str| {
        let config = NetworkConfig::parse_assigned(json.as_bytes());
        config
            .map(|config| config.networks().join())
            .map_err(|error| error.to_string())
    };
    for (json, networks) in [
        (
            r#"{"Network":"10.5.9.9/30","Backend":{"Type":"vxlan"}}"#,
            "10.5.9.8/30",
        ),
        (
            r#"{"Network":"10.5.0.0/32","Backend":{"Type":"vxlan"}}"#,
            "10.5.0.0/32",
        ),
        (
            r#"{"Network":"10.5.0.0/16","SubnetLen":8,"SubnetMin":"1.2.3.4","Backend":{"Type":"vxlan"}}"#,
            "10.5.0.0/16",
        ),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/126","Backend":{"Type":"vxlan"}}"#,
            "fd00::/126",
        ),
    ] {
        assert_eq!(assigned(json), Ok(networks.to_owned()), "{json}");
    }
    // What is no question of the pool is wrong in either way.
    for json in [
        "{",
        r#"{"Backend":{"Type":"vxlan"}}"#,
        r#"{"Network":"here","Backend":{"Type":"vxlan"}}"#,
        r#"{"Network":"10.5.0.0/16","SubnetLen":"x","Backend":{"Type":"vxlan"}}"#,
        r#"{"Network":"10.5.0.0/16","Backend":{"Type":"none"}}"#,
        r#"{"EnableIPv4":false}"#,
    ] {
        assert_eq!(assigned(json), Err(parse(json).unwrap_err()), "{json}");
    }
}

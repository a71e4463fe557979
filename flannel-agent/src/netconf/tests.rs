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

fn network(network: &str) -> Result<(u8, String, String), String> {
    let json = format!(r#"{{"Network":"{network}","Backend":{{"Type":"vxlan"}}}}"#);
    let config = parse(&json)?;
    Ok((
        config.subnet_len,
        config.subnet_min.to_string(),
        config.subnet_max.to_string(),
    ))
}

fn options(backend: &str) -> Result<Vxlan, String> {
    let json = format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#);
    match parse(&json)?.backend {
        Backend::Vxlan(options) => Ok(options),
        Backend::HostGw => Err("host-gw".into()),
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
    let config = parse(r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#).unwrap();
    assert!(!config.enable_nftables);
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
    assert_eq!(config.network.to_string(), "10.5.0.0/16");
    assert_eq!(config.subnet_len, 25);
    assert!(config.enable_nftables);
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
            "EnableIPv6 = true: not supported yet; set it to false or remove it",
        ),
        (
            with(r#""IPv6Network":"10.5.0.0/16""#).map(drop),
            r#"IPv6Network = "10.5.0.0/16": must be an IPv6 prefix such as fd00:10::/48"#,
        ),
        (
            with(r#""EnableIPv4":false"#).map(drop),
            "EnableIPv4 = false: an IPv4 network is required; remove the field",
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
            parse(r#"{"Network":"10.5.0.0/16"}"#).map(drop),
            "Backend.Type = absent: means udp; this agent has vxlan and host-gw; set it to one of them",
        ),
        (
            options("{}").map(drop),
            "Backend.Type = absent: this agent has vxlan and host-gw; set it to one of them",
        ),
        (
            options(r#"{"Type":"wireguard"}"#).map(drop),
            r#"Backend.Type = "wireguard": this agent has vxlan and host-gw; set it to one of them"#,
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
fn what_is_shown_holds_the_defaults() {
    let config =
        parse(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}"#).unwrap();
    assert_eq!(
        serde_json::to_string(&config).unwrap(),
        r#"{"Network":"10.5.0.0/16","SubnetLen":24,"SubnetMin":"10.5.1.0","SubnetMax":"10.5.255.0","EnableNFTables":false,"Backend":{"Type":"vxlan","VNI":1,"Port":0,"MTU":1400,"GBP":false,"Learning":false,"DirectRouting":false}}"#
    );
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
                prop_assert_eq!(config.network, network.trunc());
                prop_assert!(config.subnet_len <= LONGEST_SUBNET);
                prop_assert!(config.subnet_len >= len + SUBNET_BITS_MIN);
                for bound in [config.subnet_min, config.subnet_max] {
                    let subnet = Ipv4Net::new(bound, config.subnet_len).unwrap();
                    prop_assert_eq!(subnet.trunc(), subnet);
                    prop_assert!(config.network.contains(&subnet) && config.allows(subnet));
                }
            }
            Err(_) if subnet_len == 0 => prop_assert!(len > LONGEST_NETWORK),
            Err(_) => prop_assert!(subnet_len > LONGEST_SUBNET || subnet_len < len + SUBNET_BITS_MIN),
        }
    }

    #[test]
    fn no_document_makes_it_panic(text in r#"\{("(Network|SubnetLen|Backend|Type)":("[0-9./a-z]{0,12}"|-?[0-9]{1,12}|\{\}|null),?){0,4}\}"#) {
        let _ = parse(&text);
    }
}

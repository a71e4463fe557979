//! The plugin without its surroundings: what upstream's own tests expect (cni-plugin `flannel_linux_test.go`), what its
//! release v1.9.1-flannel1 was seen to write, and that no input makes it panic.

mod random;
mod state;

use std::path::Path;

use serde_json::{Value, json};

use super::{
    delegate::Delegate,
    env::SubnetEnv,
    error::{Error, code},
    netconf::NetConf,
};

const V4: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n";
const V4_TWO: &str = "FLANNEL_NETWORK=10.1.0.0/16,192.168.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n";
const V6: &str = "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\n";
const REST: &str = "FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";

fn env(parts: &[&str]) -> SubnetEnv {
    SubnetEnv::parse(&(parts.concat() + REST), "subnet.env").unwrap()
}

fn conf(more: &Value) -> NetConf {
    let mut conf = json!({ "name": "cni-flannel", "type": "flannel" });
    let more = more.as_object().unwrap().clone();
    conf.as_object_mut().unwrap().extend(more);
    NetConf::parse(conf.to_string().as_bytes()).unwrap()
}

fn generated(more: &Value, env: &SubnetEnv) -> String {
    String::from_utf8(Delegate::new(&conf(more), env).unwrap().to_json()).unwrap()
}

/// Upstream's four lifecycles: what ADD hands to the delegate, and remembers.
#[test]
fn lifecycles_have_upstreams_config() {
    let r4 = r#"{"dst":"10.1.0.0/16"}"#;
    let r6 = r#"{"dst":"fc00::/48"}"#;
    let two = r#"{"dst":"10.1.0.0/16"},{"dst":"192.168.0.0/16"}"#;
    let s4 = r#"[{"subnet":"10.1.17.0/24"}]"#;
    let s6 = r#"[{"subnet":"fc00::/64"}]"#;
    for (parts, ranges, routes) in [
        (&[V4][..], s4.to_owned(), r4.to_owned()),
        (&[V4_TWO], s4.to_owned(), two.to_owned()),
        (&[V6], s6.to_owned(), r6.to_owned()),
        (&[V4, V6], format!("{s4},{s6}"), format!("{r4},{r6}")),
    ] {
        let expected = format!(
            r#"{{"ipMasq":false,"ipam":{{"ranges":[{ranges}],"routes":[{routes}],"type":"host-local"}},"isGateway":true,"mtu":1472,"name":"cni-flannel","type":"bridge"}}"#
        );
        assert_eq!(generated(&json!({}), &env(parts)), expected);
    }
}

/// To the byte what v1.9.1-flannel1 handed to `bridge` for kube-flannel's config.
#[test]
fn the_recorded_config_is_generated() {
    let env = SubnetEnv::parse(
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.21.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
        "",
    );
    let kube = r#"{"name":"cbr0","cniVersion":"0.3.1","type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}}"#;
    let conf = NetConf::parse(kube.as_bytes()).unwrap();
    assert_eq!(
        String::from_utf8(Delegate::new(&conf, &env.unwrap()).unwrap().to_json()).unwrap(),
        r#"{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.5.21.0/24"}]],"routes":[{"dst":"10.5.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#
    );
}

/// Upstream's six cases: files given, and by default, for each kind of node.
#[test]
fn paths_are_as_given_or_upstreams() {
    for parts in [&[V4][..], &[V6], &[V4, V6]] {
        let _ = env(parts);
        let given = conf(&json!({ "subnetFile": "/a/subnet.env", "dataDir": "/b" }));
        assert_eq!(given.name, "cni-flannel");
        assert_eq!(given.subnet_file, Path::new("/a/subnet.env"));
        assert_eq!(given.data_directory, Path::new("/b"));
    }
    let default = conf(&json!({}));
    assert_eq!(default.subnet_file, Path::new("/run/flannel/subnet.env"));
    assert_eq!(default.data_directory, Path::new("/var/lib/cni/flannel"));
    assert_eq!(
        conf(&json!({ "SUBNETFILE": "/a", "DataDir": null })).subnet_file,
        Path::new("/a"),
        "Go's decoder takes keys in any case"
    );
}

/// Upstream's six cases: three kinds of node, and a file of each kind without what is needed.
#[test]
fn subnet_env_is_read_as_upstream_reads_it() {
    let texts =
        |nets: Vec<ipnet::IpNet>| -> Vec<String> { nets.iter().map(ToString::to_string).collect() };
    for (parts, networks, subnets) in [
        (&[V4][..], &["10.1.0.0/16"][..], &["10.1.17.0/24"][..]),
        (&[V6], &["fc00::/48"], &["fc00::/64"]),
        (
            &[V4, V6],
            &["10.1.0.0/16", "fc00::/48"],
            &["10.1.17.0/24", "fc00::/64"],
        ),
        (
            &[V4_TWO],
            &["10.1.0.0/16", "192.168.0.0/16"],
            &["10.1.17.0/24"],
        ),
    ] {
        let env = env(parts);
        assert_eq!(
            texts(env.networks.values().flatten().copied().collect()),
            networks
        );
        assert_eq!(texts(env.subnets.values().copied().collect()), subnets);
        assert_eq!((env.mtu, env.ip_masq), (1472, true));
    }
    let error = |text: &str| SubnetEnv::parse(text, "/f").unwrap_err().to_string();
    assert_eq!(
        error("foo=bar"),
        "/f is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ"
    );
    assert_eq!(error(V4), "/f is missing FLANNEL_MTU, FLANNEL_IPMASQ");
    assert_eq!(error(REST.trim_end()).matches("FLANNEL").count(), 4);
}

#[test]
fn odd_subnet_env_files_are_read_as_upstream_reads_them() {
    let with = |line: &str| SubnetEnv::parse(&[V4, REST, line, "\n"].concat(), "/f");
    let networks = with("FLANNEL_NETWORK=10.2.3.4/16,10.2.0.0/16")
        .unwrap()
        .networks;
    assert_eq!(networks.v4, Some(vec!["10.2.0.0/16".parse().unwrap()]));
    assert!(!with("FLANNEL_IPMASQ=True").unwrap().ip_masq);
    assert!(with(" FLANNEL_MTU=0").is_ok(), "another key");
    assert_eq!(with("\r\nFLANNEL_MTU=9000\r").unwrap().mtu, 9000);
    for line in [
        "FLANNEL_NETWORK=10.1.0.0/16,x",
        "FLANNEL_SUBNET=10.1.0.0/16,10.2.0.0/16",
        "FLANNEL_SUBNET=",
        "FLANNEL_SUBNET",
        "FLANNEL_MTU=+5",
        "FLANNEL_MTU=1 ",
        "FLANNEL_MTU=4294967296",
        "FLANNEL_IPV6_SUBNET=fc00::",
    ] {
        let error = with(line).unwrap_err().to_string();
        let key = line.split('=').next().unwrap();
        assert!(error.starts_with("/f: ") && error.contains(key), "{error}");
    }
}

/// Upstream's seven cases: a type or none, routes, unknown keys, for each kind of node.
#[test]
fn ipam_is_completed_as_upstream_does() {
    let user = r#"{"dst":"10.96.0.0/12"},{"dst":"192.168.244.0/24","gw":"10.1.17.20"}"#;
    let given: Value = serde_json::from_str(&format!("[{user}]")).unwrap();
    for (kind, written) in [(Some("my-ipam"), "my-ipam"), (None, "host-local")] {
        for (parts, ranges, routes) in [
            (
                &[V4][..],
                r#"[{"subnet":"10.1.17.0/24"}]"#,
                r#"{"dst":"10.1.0.0/16"}"#,
            ),
            (
                &[V6],
                r#"[{"subnet":"fc00::/64"}]"#,
                r#"{"dst":"fc00::/48"}"#,
            ),
            (
                &[V4, V6],
                r#"[{"subnet":"10.1.17.0/24"}],[{"subnet":"fc00::/64"}]"#,
                r#"{"dst":"10.1.0.0/16"},{"dst":"fc00::/48"}"#,
            ),
        ] {
            let mut ipam = json!({ "unknown-param": "unknown-value", "routes": given });
            if let Some(kind) = kind {
                ipam["type"] = kind.into();
            }
            let text = generated(&json!({ "ipam": ipam }), &env(parts));
            let expected = format!(
                r#""ipam":{{"ranges":[{ranges}],"routes":[{user},{routes}],"type":"{written}","unknown-param":"unknown-value"}}"#
            );
            assert!(text.contains(&expected), "{text}\nlacks {expected}");
        }
    }
    let ipam = json!({ "ipam": { "type": "host-local", "routes": [] } });
    assert!(generated(&ipam, &env(&[V4_TWO])).contains(
        r#""ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"},{"dst":"192.168.0.0/16"}],"type":"host-local"}"#
    ));
}

#[test]
fn routes_are_written_in_the_order_of_their_declaration() {
    let route = json!({ "scope": 0, "table": 5, "priority": 4, "advmss": 3, "mtu": 2, "GW": "10.1.17.20",
        "Dst": "10.96.1.2/12", "unknown": 1, "extra": null });
    let text = generated(&json!({ "ipam": { "routes": [route] } }), &env(&[V4]));
    let expected = r#""routes":[{"dst":"10.96.1.2/12","gw":"10.1.17.20","mtu":2,"advmss":3,"priority":4,"table":5,"scope":0},"#;
    assert!(text.contains(expected), "{text}");
}

#[test]
fn what_the_config_says_is_kept() {
    let more = json!({
        "cniVersion": "1.0.0",
        "delegate": { "type": "ptp", "mtu": 9000, "ipMasq": true, "a<b": 1.0 },
        "runtimeConfig": { "mac": "00:11:22:33:44:55" },
        "prevResult": { "ips": [] },
    });
    assert_eq!(
        generated(&more, &env(&[V4])),
        concat!(
            r#"{"a\u003cb":1,"cniVersion":"1.0.0","ipMasq":true,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"#,
            r#""routes":[{"dst":"10.1.0.0/16"}],"type":"host-local"},"mtu":9000,"name":"cni-flannel","#,
            r#""prevResult":{"ips":[]},"runtimeConfig":{"mac":"00:11:22:33:44:55"},"type":"ptp"}"#
        )
    );
}

#[test]
fn wrong_delegates_are_refused_in_upstreams_order() {
    let error = |delegate: Value| {
        let error = Delegate::new(&conf(&json!({ "delegate": delegate })), &env(&[V4]));
        let error = error.unwrap_err();
        assert_eq!(error.code(), code::INVALID_NETWORK_CONFIG);
        error.to_string()
    };
    let kind = "'delegate' dictionary, if present, must have (string) 'type' field";
    let name = "'delegate' dictionary must not have 'name' field, it'll be set by flannel";
    let ipam = "'delegate' dictionary must not have 'ipam' field, it'll be set by flannel";
    assert_eq!(error(json!({ "type": 1, "name": "x", "ipam": {} })), kind);
    assert_eq!(error(json!({ "type": null })), kind);
    assert_eq!(error(json!({ "name": "x", "ipam": {} })), name);
    assert_eq!(error(json!({ "type": "bridge", "ipam": {} })), ipam);
    assert!(error(json!({ "type": "flannel" })).contains("wait for itself"));
    let routes = conf(&json!({ "ipam": { "routes": [{ "dst": "x" }] } }));
    let error = Delegate::new(&routes, &env(&[V4])).unwrap_err().to_string();
    let prefix = "failed to assemble Delegate IPAM: failed to read IPAM routes: failed to parse ipam.routes: ";
    assert!(error.starts_with(prefix), "{error}");
}

#[test]
fn wrong_configs_are_refused_with_the_field() {
    let error = |text: &str| {
        let error = NetConf::parse(text.as_bytes()).unwrap_err();
        (error.code(), error.to_string())
    };
    for (text, code, part) in [
        ("", code::DECODING_FAILURE, "failed to load netconf"),
        ("[]", code::DECODING_FAILURE, "failed to load netconf"),
        (
            r#"{"name":1}"#,
            code::DECODING_FAILURE,
            "name = 1: must be a string",
        ),
        (
            r#"{"name":"n","ipam":[]}"#,
            code::DECODING_FAILURE,
            "ipam = []",
        ),
        ("{}", code::INVALID_NETWORK_CONFIG, "missing network name"),
        (
            r#"{"name":"a/b"}"#,
            code::INVALID_NETWORK_CONFIG,
            "invalid characters",
        ),
        (
            r#"{"name":"n","cni.dev/valid-attachments":[{"containerID":"c"}]}"#,
            code::DECODING_FAILURE,
            "cni.dev/valid-attachments: missing field `ifname`",
        ),
    ] {
        let (number, message) = error(text);
        assert_eq!(number, code, "{text}");
        assert!(message.contains(part), "{text}: {message}");
    }
}

#[test]
fn a_missing_subnet_env_is_to_be_tried_again() {
    let problem = SubnetEnv::load(Path::new("/nonexistent/subnet.env")).unwrap_err();
    let report: Value = serde_json::from_str(&Error::SubnetEnv(problem).to_json()).unwrap();
    assert_eq!(report["code"], code::TRY_AGAIN_LATER);
    assert_eq!(
        report["msg"],
        "failed to load flannel 'subnet.env' file: open /nonexistent/subnet.env: no such file or directory. Check the flannel pod log for this node."
    );
    assert!(
        report["details"]
            .as_str()
            .unwrap()
            .contains("flannel-agent status")
    );
    assert_eq!(report["cniVersion"], "1.1.0");
}

#[test]
fn a_guess_takes_the_addresses_that_add_gave() {
    let guess = |more: &Value| {
        let delegate = Delegate::guess(&conf(more)).unwrap();
        let config: Value = serde_json::from_slice(&delegate.to_json()).unwrap();
        assert!(config.get("mtu").is_none() && config.get("ipMasq").is_none());
        config["ipam"]["ranges"].clone()
    };
    let result = json!({ "prevResult": { "ips": [{ "address": "10.1.17.5/24" }, { "address": "fc00::5/64" }, {}] } });
    assert_eq!(
        guess(&result),
        json!([[{ "subnet": "10.1.17.0/24" }], [{ "subnet": "fc00::/64" }]])
    );
    assert_eq!(guess(&json!({})), json!([[{ "subnet": "192.0.2.0/24" }]]));
}

//! No input makes the plugin panic.

use std::ffi::OsString;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::cni::{
    delegate::Delegate, env::SubnetEnv, go_json, netconf::NetConf, request::Request, version,
};

/// Any JSON, with keys that mean something more often than chance has it.
fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (any::<i16>(), -9..9).prop_map(|(digits, exponent)| Value::from(
            f64::from(digits) * 10f64.powi(exponent * 4)
        )),
        "[a-z0-9./:<>&é\u{2028}]{0,12}".prop_map(Value::from),
        prop_oneof![
            Just("10.1.2.3/24"),
            Just("fc00::1/64"),
            Just("bridge"),
            Just("flannel")
        ]
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((keys(), inner), 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn keys() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "name",
            "type",
            "cniVersion",
            "subnetFile",
            "dataDir",
            "delegate",
            "ipam",
            "runtimeConfig",
            "prevResult",
            "routes",
            "ranges",
            "dst",
            "gw",
            "ips",
            "address",
            "cni.dev/valid-attachments",
            "containerID",
            "ifname",
            "DELEGATE",
            "IPAM",
        ])
        .prop_map(str::to_owned),
        "[a-z]{0,3}",
    ]
}

fn lines() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        prop::sample::select(vec![
            "FLANNEL_NETWORK",
            "FLANNEL_SUBNET",
            "FLANNEL_IPV6_NETWORK",
            "FLANNEL_IPV6_SUBNET",
            "FLANNEL_MTU",
            "FLANNEL_IPMASQ",
        ])
        .prop_map(str::to_owned),
        ".{0,4}",
    ];
    let value = prop_oneof![
        prop::sample::select(vec!["10.1.2.3/24", "fc00::1/64", "1450", "true", "", "/,"])
            .prop_map(str::to_owned),
        ".{0,8}",
    ];
    let line = (key, prop_oneof![Just("="), Just("")], value)
        .prop_map(|(key, equals, value)| format!("{key}{equals}{value}\n"));
    prop::collection::vec(line, 0..8).prop_map(|lines| lines.concat())
}

fn complete_env() -> SubnetEnv {
    let text = "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_MTU=1\nFLANNEL_IPMASQ=false\n";
    SubnetEnv::parse(text, "").unwrap()
}

/// Whether two values are the same but for rounding.
fn alike(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= b.abs() * 1e-12
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(key, a)| b.get(key).is_some_and(|b| alike(a, b)))
        }
        _ => a == b,
    }
}

proptest! {
    #[test]
    fn any_config_gives_a_config_or_an_error(fields in prop::collection::vec((keys(), values()), 0..8)) {
        let mut fields: Map<String, Value> = fields.into_iter().collect();
        fields.insert("name".into(), json!("n"));
        let text = Value::Object(fields).to_string();
        if let Ok(conf) = NetConf::parse(text.as_bytes()) {
            for delegate in [Delegate::new(&conf, &complete_env()), Delegate::guess(&conf)] {
                match delegate {
                    Ok(delegate) => {
                        let config: Value = serde_json::from_slice(&delegate.to_json()).unwrap();
                        prop_assert_eq!(&config["name"], "n");
                        prop_assert_eq!(config["type"].as_str().unwrap(), delegate.plugin);
                        prop_assert!(!config["ipam"]["ranges"].as_array().unwrap().is_empty());
                    }
                    Err(error) => prop_assert!(!error.to_json().is_empty()),
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_refused_or_understood(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = NetConf::parse(&bytes);
    }

    #[test]
    fn any_subnet_env_is_refused_or_complete(text in lines()) {
        if let Ok(env) = SubnetEnv::parse(&text, "/f") {
            prop_assert!(!env.subnets.is_empty());
            prop_assert!(env.networks.values().all(|list| !list.is_empty()));
        }
    }

    #[test]
    fn any_environment_is_refused_or_safe(command in "ADD|DEL|CHECK|GC|STATUS|VERSION|.{0,5}",
        container in ".{0,6}", interface in ".{0,6}") {
        let variable = |name: &str| OsString::from(match name {
            "CNI_COMMAND" => &command,
            "CNI_CONTAINERID" => &container,
            "CNI_IFNAME" => &interface,
            _ => "/x",
        });
        if let Ok(request) = Request::from_variables(variable) {
            let _ = version::check("1.1.0", &request.command);
            if matches!(request.command.name(), "ADD" | "DEL" | "CHECK") {
                prop_assert!(!container.contains(['/', ':', '\0']) && !container.starts_with('.'));
                prop_assert!(!interface.contains(['/', ':']));
            }
        }
    }

    #[test]
    fn what_is_written_is_read_back(value in values()) {
        let text = go_json::to_vec(&value);
        let again: Value = serde_json::from_slice(&text).unwrap();
        // serde_json may read the last digit of a long fraction otherwise, so the values are compared loosely.
        prop_assert!(alike(&again, &value), "{} is not {}", again, value);
    }
}

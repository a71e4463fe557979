//! What a container runtime hands the CNI plugin: network config and environment; and the `subnet.env` beside it.
//!
//! The input is the network config, a zero byte, `subnet.env`, and after another zero byte the environment's values.

use std::ffi::OsString;

use flannel_agent::cni::{
    delegate::Delegate, env::SubnetEnv, error::Error, netconf::NetConf, request::Request, version,
};
use serde_json::Value;

/// For what nothing is said about.
const ENV: &str = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.9.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// Whatever comes in, what goes out is a config for the delegate or an error, both of the specification's form.
pub(crate) fn run(bytes: &[u8]) {
    let mut parts = bytes.split(|byte| *byte == 0);
    let mut part = || parts.next().unwrap_or_default();
    let (input, env) = (part(), part());
    let environment: Vec<String> = parts
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .collect();
    let command = match request(&environment) {
        Ok(request) => request.command,
        Err(error) => return is_reported(&error),
    };
    let conf = match NetConf::parse(input) {
        Ok(conf) => conf,
        Err(error) => return is_reported(&error),
    };
    if let Err(error) = version::check(&conf.version, &command) {
        is_reported(&error.into());
    }
    let env = match SubnetEnv::parse(&String::from_utf8_lossy(env), "subnet.env") {
        Ok(env) => env,
        Err(error) => {
            is_reported(&Error::SubnetEnv(error));
            SubnetEnv::parse(ENV, "subnet.env").expect("what the agent writes")
        }
    };
    for delegate in [Delegate::new(&conf, &env), Delegate::guess(&conf)] {
        match delegate {
            Ok(delegate) => is_config(&conf, &delegate),
            Err(error) => is_reported(&error),
        }
    }
}

fn request(values: &[String]) -> Result<Request, Error> {
    let names = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME"];
    let defaults = ["ADD", "container", "eth0"];
    let variable = |name: &str| {
        let place = names.iter().position(|known| *known == name);
        let value = place.map_or("/x", |place| {
            values.get(place).map_or(defaults[place], String::as_str)
        });
        OsString::from(value)
    };
    Request::from_variables(variable)
}

/// The specification 1.1, section 5, "Error".
fn is_reported(error: &Error) {
    let report: Value = serde_json::from_str(&error.to_json()).expect("an error is JSON");
    assert_eq!(report["cniVersion"], version::CURRENT);
    assert!(
        report["code"].as_u64().is_some_and(|code| code > 0),
        "{report}"
    );
    assert!(
        report["msg"].as_str().is_some_and(|text| !text.is_empty()),
        "{report}"
    );
    assert!(
        report.get("details").is_none_or(Value::is_string),
        "{report}"
    );
}

/// The specification 1.1, section 1: what every plugin may rely on.
fn is_config(conf: &NetConf, delegate: &Delegate) {
    let config: Value = serde_json::from_slice(&delegate.to_json()).expect("a config is JSON");
    assert_eq!(config["name"], conf.name.as_str());
    assert_eq!(config["type"], delegate.plugin.as_str());
    assert_ne!(config["type"], "flannel");
    if !conf.version.is_empty() {
        assert_eq!(config["cniVersion"], conf.version.as_str());
    }
    let ipam = &config["ipam"];
    assert!(ipam["type"] != Value::Null, "{config}");
    assert!(
        ipam["ranges"]
            .as_array()
            .is_some_and(|ranges| !ranges.is_empty()),
        "{config}"
    );
    assert!(ipam["routes"].is_array(), "{config}");
}

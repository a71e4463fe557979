//! ADD, DEL, CHECK and STATUS.

use std::io::{self, Write as _};

use serde_json::Value;

use super::{
    delegate::Delegate, env::SubnetEnv, error::Error, invoke::Plugins, lock::Lock,
    netconf::NetConf, request::Attachment, state::Store,
};

/// Attaches, and returns the delegate's result.
///
/// # Errors
/// If `subnet.env` or the config does not do, the state cannot be remembered, or the delegate fails. In the last case the
/// state stays, for the DEL that a runtime sends after a failed ADD.
pub fn add(conf: &NetConf, attachment: &Attachment, plugins: &Plugins) -> Result<Vec<u8>, Error> {
    let env = SubnetEnv::load(&conf.subnet_file).map_err(Error::SubnetEnv)?;
    let delegate = Delegate::new(conf, &env)?;
    let config = delegate.to_json();
    tell(&config);
    let store = Store::new(&conf.data_directory);
    store.create_directory()?;
    let _lock = Lock::take(&conf.data_directory, &attachment.container)?;
    store.save(attachment, &config)?;
    plugins.add(&delegate.plugin, &config)
}

/// The delegate's config on standard error, where runtimes log it: upstream's line, by which operators find it.
fn tell(config: &[u8]) {
    let line = "delegateAdd: netconf sent to delegate plugin:\n";
    // Nobody can be told that this could not be written.
    let _ = io::stderr().write_all(&[line.as_bytes(), config, b"\n"].concat());
}

/// Detaches. Nothing to detach is success.
///
/// Without a usable state file, the delegate is told what can be made again from the config and `subnet.env`, as ADD
/// would do it; without `subnet.env` too, what is good enough to release an address, and then its failure is no error,
/// since most likely nothing was attached.
///
/// # Errors
/// If another command goes on for too long, the state is there but cannot be read, or the delegate fails. The state
/// stays.
pub fn del(conf: &NetConf, attachment: &Attachment, plugins: &Plugins) -> Result<(), Error> {
    let store = Store::new(&conf.data_directory);
    let _lock = match Lock::take(&conf.data_directory, &attachment.container) {
        Ok(lock) => Some(lock),
        Err(error @ Error::Busy { .. }) => return Err(error),
        Err(error) => {
            // No such directory, or one that cannot be written: that must keep no container from going.
            eprintln!("DEL without a lock: {error}");
            None
        }
    };
    let saved = store.find(attachment, &conf.name)?;
    let found = saved.is_some();
    let previous = conf.previous_result.as_ref();
    match saved.and_then(|saved| saved.delegate(previous)) {
        Some((plugin, config)) => plugins.call("DEL", &plugin, &config)?,
        None => del_without_state(conf, plugins)?,
    }
    store.forget(attachment, found);
    Ok(())
}

fn del_without_state(conf: &NetConf, plugins: &Plugins) -> Result<(), Error> {
    let result = match SubnetEnv::load(&conf.subnet_file) {
        Ok(env) => match Delegate::new(conf, &env) {
            Ok(delegate) => plugins.call("DEL", &delegate.plugin, &delegate.to_json()),
            // With such a config nothing was ever attached.
            Err(error) => Err(error),
        },
        Err(_) => Delegate::guess(conf)
            .and_then(|delegate| plugins.call("DEL", &delegate.plugin, &delegate.to_json())),
    };
    match result {
        // What the runtime remembers is there, and must not be given up.
        Err(error) if conf.previous_result.is_some() => Err(error),
        Err(error) => {
            eprintln!("DEL of what is not remembered: {error}");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Tells whether an attachment is as ADD left it, by asking the delegate.
///
/// # Errors
/// What the delegate reports; or if nobody knows what to ask it, since state and `subnet.env` are both missing.
pub fn check(conf: &NetConf, attachment: &Attachment, plugins: &Plugins) -> Result<(), Error> {
    let conf = NetConf {
        previous_result: conf.previous_result.clone().map(with_gateways),
        ..conf.clone()
    };
    let store = Store::new(&conf.data_directory);
    let previous = conf.previous_result.as_ref();
    let saved = store.find(attachment, &conf.name)?;
    let (plugin, config) = match saved.and_then(|saved| saved.delegate(previous)) {
        Some(remembered) => remembered,
        None => {
            let env = SubnetEnv::load(&conf.subnet_file).map_err(Error::SubnetEnv)?;
            let delegate = Delegate::new(&conf, &env)?;
            let config = delegate.to_json();
            (delegate.plugin, config)
        }
    };
    plugins.call("CHECK", &plugin, &config)
}

/// A result in which each route has the gateway that it was made with.
///
/// Routes to the flannel networks come without one, and interface plugins then use that of the first address of the
/// family (containernetworking/plugins, `ipam.ConfigureIface`). But their CHECK compares to the letter in releases before
/// 1.3 (`ip.ValidateExpectedRoute`), and would find every flannel container broken.
fn with_gateways(mut result: Value) -> Value {
    let ips = result["ips"].as_array().cloned().unwrap_or_default();
    let is_v6 = |value: &Value| value.as_str().is_some_and(|text| text.contains(':'));
    let routes = result.get_mut("routes").and_then(Value::as_array_mut);
    for route in routes.into_iter().flatten() {
        let family = is_v6(&route["dst"]);
        let gateway = ips
            .iter()
            .map(|ip| &ip["gateway"])
            .find(|gateway| gateway.is_string() && is_v6(gateway) == family);
        if let (Some(gateway), Some(route)) = (gateway, route.as_object_mut()) {
            route.entry("gw").or_insert_with(|| gateway.clone());
        }
    }
    result
}

/// Tells whether ADD can be served.
///
/// # Errors
/// If `subnet.env` is missing or incomplete, the config does not do, or the delegate is missing or says no.
pub fn status(conf: &NetConf, plugins: &Plugins) -> Result<(), Error> {
    let env = SubnetEnv::load(&conf.subnet_file).map_err(|problem| Error::NotReady {
        problem,
        attached: is_attached(conf),
    })?;
    let delegate = Delegate::new(conf, &env)?;
    if plugins.knows_gc_and_status("STATUS", &delegate.plugin)? {
        plugins.call("STATUS", &delegate.plugin, &delegate.to_json())?;
    }
    Ok(())
}

/// Whether containers of this network are attached. Not to know is not to say so.
fn is_attached(conf: &NetConf) -> bool {
    let store = Store::new(&conf.data_directory);
    let entries = store.entries().unwrap_or_default();
    entries.iter().any(|entry| {
        let saved = store.read(entry).ok().flatten();
        saved.is_some_and(|saved| saved.network() == Some(&conf.name))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn routes_get_the_gateway_of_their_family() {
        let result = json!({
            "ips": [{ "address": "10.5.7.2/24" }, { "gateway": "10.5.7.1" }, { "gateway": "10.5.8.1" }, { "gateway": "fd00::1" }],
            "routes": [{ "dst": "10.5.0.0/16" }, { "dst": "fd00::/48" }, { "dst": "0.0.0.0/0", "gw": "10.5.7.9" }, 1],
        });
        assert_eq!(
            with_gateways(result)["routes"],
            json!([
                { "dst": "10.5.0.0/16", "gw": "10.5.7.1" },
                { "dst": "fd00::/48", "gw": "fd00::1" },
                { "dst": "0.0.0.0/0", "gw": "10.5.7.9" },
                1
            ])
        );
        for odd in [
            json!({}),
            json!({ "ips": 1, "routes": 2 }),
            json!({ "routes": [{}, []] }),
        ] {
            assert_eq!(with_gateways(odd.clone()), odd);
        }
    }
}

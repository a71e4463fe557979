//! GC: removes what belongs to no attachment that the runtime still has.

use serde_json::{Value, json};

use super::{
    delegate::Delegate,
    env::SubnetEnv,
    error::Error,
    invoke::Plugins,
    lock::{self, Lock},
    netconf::{NetConf, VALID_ATTACHMENTS, ValidAttachment},
    request::Attachment,
    state::{Entry, Store},
};

/// The interface's name that every Kubernetes runtime uses, for state files that upstream's plugin wrote.
const USUAL_INTERFACE: &str = "eth0";

/// Detaches what the state files remember of this network and the runtime does not, and passes GC on to the delegate
/// where that knows it. Goes on after a failure.
///
/// # Errors
/// If the config does not say what is still attached, or with all that could not be removed.
pub fn gc(conf: &NetConf, plugins: &Plugins) -> Result<(), Error> {
    let valid = conf.valid_attachments.as_deref().ok_or_else(|| Error::Config {
        problem: format!("missing {VALID_ATTACHMENTS}"),
        details: "GC needs the list of attachments that are still there; without it, nothing is removed".to_owned(),
    })?;
    let store = Store::new(&conf.data_directory);
    let mut failures = Vec::new();
    for entry in store.entries()? {
        if let Err(error) = collect(conf, plugins, &store, &entry, valid) {
            failures.push(format!("{}: {error}", entry.path.display()));
        }
    }
    for name in store.names()? {
        let stale = |container: &str| valid.iter().all(|valid| valid.container != container);
        if lock::container_of(&name).is_some_and(stale) {
            let path = conf.data_directory.join(&name);
            if let Err(error) = Lock::clean(&path) {
                failures.push(format!("{}: {error}", path.display()));
            }
        }
    }
    if let Err(error) = pass_on(conf, plugins, valid) {
        failures.push(error.report().msg);
    }
    if failures.is_empty() {
        return Ok(());
    }
    Err(Error::Garbage(failures))
}

/// Detaches one entry if nothing keeps it.
fn collect(
    conf: &NetConf,
    plugins: &Plugins,
    store: &Store,
    entry: &Entry,
    valid: &[ValidAttachment],
) -> Result<(), Error> {
    let mut of_container = valid
        .iter()
        .filter(|valid| valid.container == entry.container);
    let container_is_valid = of_container.clone().next().is_some();
    let is_valid = match &entry.interface {
        Some(interface) => of_container.any(|valid| valid.interface == *interface),
        None => container_is_valid,
    };
    if is_valid {
        return Ok(());
    }
    let attachment = Attachment {
        container: entry.container.clone(),
        interface: entry
            .interface
            .clone()
            .unwrap_or_else(|| USUAL_INTERFACE.to_owned()),
    };
    let saved = store.read(entry)?;
    let found = saved.is_some();
    let network = saved.as_ref().and_then(|saved| saved.network());
    if network.is_some_and(|network| network != conf.name) {
        return Ok(());
    }
    match saved.and_then(|saved| saved.delegate(None)) {
        Some((plugin, config)) => plugins.release(&plugin, &config, &attachment)?,
        // Damaged, or a link without its file: it may be another network's, and is of no use to either.
        None if container_is_valid => return Ok(()),
        None => {}
    }
    store.forget(&attachment, found);
    Ok(())
}

fn pass_on(conf: &NetConf, plugins: &Plugins, valid: &[ValidAttachment]) -> Result<(), Error> {
    let delegate = match SubnetEnv::load(&conf.subnet_file) {
        Ok(env) => Delegate::new(conf, &env)?,
        Err(_) => Delegate::guess(conf)?,
    };
    if !plugins.knows_gc_and_status("GC", &delegate.plugin)? {
        return Ok(());
    }
    let valid: Vec<Value> = valid
        .iter()
        .map(|valid| json!({ "containerID": valid.container, "ifname": valid.interface }))
        .collect();
    let plugin = delegate.plugin.clone();
    let config = delegate.with(VALID_ATTACHMENTS, valid.into()).to_json();
    plugins.call("GC", &plugin, &config)
}

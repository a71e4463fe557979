//! Node objects as kubelet and controller manager make them, before flannel has been there.

use std::{net::IpAddr, sync::LazyLock};

use serde_json::{Value, json};

/// A node of full size: images, managed fields, conditions.
static TEMPLATE: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("node.json")).expect("node.json is JSON"));

/// A Node object with these addresses (`InternalIP`) and pod CIDRs; without CIDRs as the controller manager has not
/// been there yet.
pub fn node(name: &str, addresses: &[IpAddr], pod_cidrs: &[&str]) -> Value {
    let mut node = TEMPLATE.clone();
    node["metadata"]["name"] = name.into();
    node["metadata"]["labels"]["kubernetes.io/hostname"] = name.into();
    let internal = addresses
        .iter()
        .map(|address| json!({ "type": "InternalIP", "address": address }));
    node["status"]["addresses"] = internal
        .chain([json!({ "type": "Hostname", "address": name })])
        .collect();
    set_pod_cidrs(&mut node, pod_cidrs);
    node
}

/// Gives a Node object these pod CIDRs, or none.
pub fn set_pod_cidrs(node: &mut Value, pod_cidrs: &[&str]) {
    let Some(spec) = node["spec"].as_object_mut() else {
        return;
    };
    match pod_cidrs.first() {
        Some(first) => {
            spec.insert("podCIDR".to_owned(), (*first).into());
            spec.insert("podCIDRs".to_owned(), pod_cidrs.into());
        }
        None => {
            spec.remove("podCIDR");
            spec.remove("podCIDRs");
        }
    }
}

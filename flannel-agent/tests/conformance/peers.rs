//! Nodes that exist only as keys, and what a node's agent makes of them.

use anyhow::Context as _;
use lab::{Cluster, Node, etcd::PREFIX};

use crate::support::{Outcome, PROMPT, eventually, shell};

/// The value of a VXLAN node's lease.
pub(crate) fn vxlan_value(address: &str, mac: &str) -> String {
    format!(
        r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    )
}

/// The value of a host-gw node's lease.
pub(crate) fn host_gw_value(address: &str) -> String {
    format!(r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"host-gw"}}"#)
}

/// The key of a lease, by its name such as `10.5.9.0-24`.
pub(crate) fn key(name: &str) -> String {
    format!("{PREFIX}/subnets/{name}")
}

/// The key of a node's own lease.
pub(crate) fn own_key(node: &Node) -> anyhow::Result<String> {
    Ok(key(&node.subnet_env()?.subnet.key()))
}

/// What stands under a key.
pub(crate) fn value(cluster: &Cluster, key: &str) -> anyhow::Result<String> {
    let found = cluster.etcd().get_prefix(key)?;
    let (_, value) = found.into_iter().next().context("the key is in etcd")?;
    Ok(value)
}

/// A key as etcd has it: value, revision and lease.
pub(crate) fn record(cluster: &Cluster, key: &str) -> anyhow::Result<serde_json::Value> {
    let text = cluster.etcd().ctl(&["get", "--write-out=json", key])?;
    let answer: serde_json::Value = serde_json::from_str(&text)?;
    Ok(answer["kvs"][0].clone())
}

/// The etcd lease of a key, 0 for none.
pub(crate) fn lease_of(cluster: &Cluster, key: &str) -> anyhow::Result<i64> {
    Ok(record(cluster, key)?["lease"].as_i64().unwrap_or_default())
}

/// Seconds that an etcd lease has left.
pub(crate) fn ttl(cluster: &Cluster, lease: i64) -> anyhow::Result<i64> {
    let id = format!("{lease:x}");
    let text = cluster
        .etcd()
        .ctl(&["lease", "timetolive", "--write-out=json", &id])?;
    let answer: serde_json::Value = serde_json::from_str(&text)?;
    answer["ttl"].as_i64().context(text)
}

/// Grants an etcd lease; returns its id as etcdctl writes it.
pub(crate) fn grant(cluster: &Cluster, seconds: u32) -> anyhow::Result<String> {
    let granted = cluster
        .etcd()
        .ctl(&["lease", "grant", &seconds.to_string()])?;
    let id = granted.split_ascii_whitespace().nth(1);
    Ok(id.with_context(|| granted.clone())?.to_owned())
}

/// Puts a key with a lease of its own.
pub(crate) fn put_for(cluster: &Cluster, key: &str, value: &str, seconds: u32) -> Outcome {
    let id = grant(cluster, seconds)?;
    let lease = format!("--lease={id}");
    cluster.etcd().ctl(&["put", &lease, "--", key, value])?;
    Ok(())
}

/// Forgets the history of the store up to now.
pub(crate) fn compact(cluster: &Cluster) -> Outcome {
    let answer = cluster
        .etcd()
        .ctl(&["get", "--write-out=json", "no-such-key"])?;
    let answer: serde_json::Value = serde_json::from_str(&answer)?;
    let revision = answer["header"]["revision"].to_string();
    cluster.etcd().ctl(&["compact", &revision])?;
    Ok(())
}

/// The node's routes that mention `what`.
pub(crate) fn routes(node: &Node, what: &str) -> anyhow::Result<String> {
    let routes = shell(node, "ip route show")?;
    let lines = routes.lines().filter(|line| line.contains(what));
    Ok(lines
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect())
}

/// Waits until the node has just this route to the subnet.
pub(crate) fn route_becomes(node: &Node, subnet: &str, wanted: &str) -> Outcome {
    eventually(&format!("route {wanted:?}"), PROMPT, || {
        let now = routes(node, subnet)?;
        Ok((now == wanted).then_some(()).ok_or(now))
    })
}

//! Leases as annotations of Node objects: what flannel's manifests run with, against the lab's API server. Here is what
//! the tests share.

pub(crate) mod annotations;
pub(crate) mod faults;

use std::collections::BTreeMap;

use lab::{
    Cluster, ClusterConfig, LeaseStore, Node,
    kube::{
        lease::annotations as annotations_of,
        mock::{self, ApiServer},
    },
};
use serde_json::Value;

use crate::setting::agents;
use crate::support::{Outcome, PROMPT, eventually, shell, with_unready_cluster};

const VXLAN: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
const DUAL: &str = r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
/// A node that exists only as a Node object.
const PEER: &str = "peer";
const PEER_ADDRESS: &str = "192.168.100.77";
/// A node with an agent, and the API server.
fn with_agent(network: &str, test: impl FnOnce(&ApiServer, &Node) -> Outcome) -> Outcome {
    let config = ClusterConfig {
        leases: LeaseStore::ApiServer,
        ..agents(1, 0, network)
    };
    with_unready_cluster(config, |cluster: &mut Cluster| {
        test(cluster.api_server(), cluster.node(1))
    })
}

/// A node's annotations below a prefix, without it.
fn below(server: &ApiServer, name: &str, prefix: &str) -> BTreeMap<String, String> {
    let annotations = server.annotations(name).into_iter();
    annotations
        .filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_owned(), value)))
        .collect()
}

/// A Node object that publishes a lease.
fn peer(pod_cidrs: &[&str], value: &str) -> anyhow::Result<Value> {
    let mut node = mock::node(PEER, &[PEER_ADDRESS.parse()?], pod_cidrs);
    for (name, value) in annotations_of(&serde_json::from_str(value)?) {
        node["metadata"]["annotations"][name] = value.into();
    }
    Ok(node)
}

/// Waits until what a command prints on the node contains this.
fn wait_output(node: &Node, command: &str, part: &str) -> Outcome {
    eventually(part, PROMPT, || {
        let now = shell(node, command)?;
        Ok(now.contains(part).then_some(()).ok_or(now))
    })
}

fn start(node: &Node) -> Outcome {
    node.agent().start()?;
    node.agent().wait_ready()?;
    Ok(())
}

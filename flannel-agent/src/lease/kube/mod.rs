//! The Kubernetes subnet manager: a node's lease is what its Node object says, podCIDRs and annotations.
//!
//! What upstream gets wrong and this must never do: hold whole Node objects, withdraw peers because of one Node that is
//! not understood, end because a podCIDR or the API server is not there yet, or leave an annotation as it is that
//! somebody else has changed. Only the node's own object is ever written, and only by patches.

mod access;
mod annotations;
mod api;
mod backoff;
mod condition;
mod connection;
mod error;
mod keeper;
mod list;
mod node;
mod node_name;
mod watch;

use std::{path::PathBuf, time::Duration};

use ipnet::IpNet;
use tokio::{
    sync::{mpsc, watch as channel},
    time::sleep,
};

pub use access::{Access, Error as AccessError};
use annotations::Key;
pub use annotations::{DEFAULT_PREFIX, Names, PrefixError};
use api::Api;
use backoff::Backoff;
use error::Error;
use keeper::Keeper;
use node::Node;
pub use node_name::{NodeName, NodeNameError};

use super::{Attributes, Event, OwnLease, OwnNode, Request, SubnetManager};
use crate::{board::Board, family::PerFamily, netconf::NetworkConfig};

/// Pause before a file, a Node or a podCIDR that is not there is looked for again.
const WAIT: Duration = Duration::from_secs(1);
/// Name of this module's problems with the API server on the status board.
const PROBLEM: &str = "kube";
/// Name of its problems with this node's own Node object.
const OWN_PROBLEM: &str = "kube-node";

/// What the subnet manager is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The way to the API server.
    pub access: Access,
    /// Names of the annotations.
    pub names: Names,
    /// How this node is called.
    pub node: NodeName,
    /// File with the network config.
    pub net_config: PathBuf,
    /// Whether the condition `NetworkUnavailable` is set when this node is up.
    pub set_network_unavailable: bool,
}

/// The Kubernetes subnet manager.
pub struct Kube {
    api: Api,
    options: Options,
    /// The Node's name; set by `own_node`.
    name: String,
    /// What was asked for, what is held, and the Node as it was then; set by `acquire`.
    held: Option<(Request, OwnLease, Node)>,
}

impl Kube {
    /// A manager that has not asked for anything yet.
    pub fn new(options: Options) -> Self {
        Self {
            api: Api::new(options.access.clone(), options.names.clone()),
            options,
            name: String::new(),
            held: None,
        }
    }

    async fn failed(&mut self, error: &Error, backoff: &mut Backoff, board: &Board) {
        let server = self.api.server();
        board.problem(
            PROBLEM,
            Some(format!("Kubernetes API at {server}: {error}")),
        );
        if error.is_of_the_connection() {
            self.api.reset();
        }
        backoff.pause(error.retry_after()).await;
    }

    /// How this node is called. Waits until it is known.
    async fn node_name(&mut self, board: &Board) -> String {
        let (namespace, pod) = match &self.options.node {
            NodeName::Known(name) => return name.clone(),
            NodeName::OfPod { namespace, name } => (namespace.clone(), name.clone()),
        };
        let mut backoff = Backoff::new();
        loop {
            match self.api.node_of_pod(&namespace, &pod).await {
                Ok(name) if name.is_empty() => {
                    let problem = format!(
                        "pod {namespace}/{pod} runs on no node: check POD_NAMESPACE and POD_NAME"
                    );
                    board.problem(PROBLEM, Some(problem));
                    sleep(WAIT).await;
                }
                Ok(name) => {
                    board.problem(PROBLEM, None);
                    return name;
                }
                Err(error) if error.is_not_found() => {
                    let problem = format!(
                        "there is no pod {namespace}/{pod}: check POD_NAMESPACE and POD_NAME, or set NODE_NAME"
                    );
                    board.problem(PROBLEM, Some(problem));
                    sleep(WAIT).await;
                }
                Err(error) => self.failed(&error, &mut backoff, board).await,
            }
        }
    }

    /// This node's Node object. Waits until it is there; that it is no longer waited for is left to the caller to say,
    /// who may have a problem with the API server of his own.
    async fn own_object(&mut self, board: &Board) -> Node {
        let mut backoff = Backoff::new();
        let name = self.name.clone();
        loop {
            match self.api.node(&name).await {
                Ok(node) => return node,
                Err(error) if error.is_not_found() => {
                    board.problem(PROBLEM, Some(absent(&name)));
                    sleep(WAIT).await;
                }
                Err(error) => self.failed(&error, &mut backoff, board).await,
            }
        }
    }
}

impl SubnetManager for Kube {
    async fn network_config(&mut self, board: &Board) -> NetworkConfig {
        loop {
            let path = self.options.net_config.display();
            let problem = match tokio::fs::read(&self.options.net_config).await {
                Ok(text) => match NetworkConfig::parse_assigned(&text) {
                    Ok(config) => {
                        board.problem(PROBLEM, None);
                        return config;
                    }
                    Err(error) => format!("network config in {path}: {error}"),
                },
                Err(error) => format!(
                    "--net-config-path = {path}: {error}; waiting for the network config to be there, as net-conf.json of \
                     a ConfigMap"
                ),
            };
            board.problem(PROBLEM, Some(problem));
            sleep(WAIT).await;
        }
    }

    async fn own_node(&mut self, board: &Board) -> OwnNode {
        self.name = self.node_name(board).await;
        loop {
            let node = self.own_object(board).await;
            board.problem(PROBLEM, None);
            let names = self.api.names();
            match node.annotations.node_public(names) {
                Ok(public) => {
                    board.problem(OWN_PROBLEM, None);
                    // Also what is left of a node that is no longer managed.
                    let published = node.annotations.get(Key::BackendType).and_then(|_| {
                        let attributes = node.annotations.attributes(&BOTH, names);
                        attributes.ok()
                    });
                    return OwnNode { public, published };
                }
                Err(problem) => {
                    board.problem(OWN_PROBLEM, Some(format!("node {}: {problem}", self.name)));
                    sleep(WAIT).await;
                }
            }
        }
    }

    async fn acquire(&mut self, request: Request, board: &Board) -> OwnLease {
        let mut backoff = Backoff::new();
        loop {
            let mut node = self.own_object(board).await;
            let subnets = match assigned(&node, &request.config) {
                Ok(subnets) => subnets,
                Err(problem) => {
                    board.problem(PROBLEM, None);
                    board.problem(OWN_PROBLEM, Some(problem));
                    sleep(WAIT).await;
                    continue;
                }
            };
            board.problem(OWN_PROBLEM, None);
            let changes = node.annotations.changes(&request.attributes);
            if !changes.is_empty() {
                let patch = annotations::patch(&changes, self.api.names());
                match self.api.patch(&self.name, patch).await {
                    Ok(patched) => node = patched,
                    Err(error) => {
                        self.failed(&error, &mut backoff, board).await;
                        continue;
                    }
                }
            }
            board.problem(PROBLEM, None);
            tracing::info!(
                node = self.name,
                subnet = subnets.join(),
                "subnet assigned by Kubernetes"
            );
            let own = OwnLease::without_end(subnets);
            self.held = Some((request, own.clone(), node));
            return own;
        }
    }

    async fn run(
        mut self,
        events: mpsc::Sender<Event>,
        publish: channel::Receiver<Attributes>,
        board: Board,
    ) {
        if let Some((request, own, node)) = self.held.take() {
            Keeper::new(self, request, own, node, events, board)
                .run(publish)
                .await;
        }
    }
}

/// Both families.
const BOTH: PerFamily<()> = PerFamily {
    v4: Some(()),
    v6: Some(()),
};

/// What is said of a Node that is not there.
fn absent(name: &str) -> String {
    format!(
        "there is no Node {name}: waiting for kubelet to register it; if it has another name, set NODE_NAME"
    )
}

/// The subnets that Kubernetes has assigned to a node, one for each family of the config.
///
/// # Errors
/// When one is missing or does not lie in the network; node, values and remedy are named.
fn assigned(node: &Node, config: &NetworkConfig) -> Result<PerFamily<IpNet>, String> {
    let name = &node.name;
    let networks = config.networks();
    let families = networks.map(|_, _| ());
    let subnets = node
        .subnets(&families)
        .map_err(|error| format!("node {name}: {error}"))?;
    for (family, network) in networks.iter() {
        let field = match family {
            crate::family::Family::V4 => "Network",
            crate::family::Family::V6 => "IPv6Network",
        };
        match subnets.get(family) {
            Some(subnet) if network.contains(subnet) => {}
            Some(subnet) => {
                return Err(format!(
                    "node {name}: its podCIDR {subnet} does not lie in {field} = {network} of the network config: set \
                     {field} to kube-controller-manager's --cluster-cidr, or make the node anew"
                ));
            }
            None => {
                return Err(format!(
                    "node {name} has no {} podCIDR: start kube-controller-manager with --allocate-node-cidrs=true \
                     --cluster-cidr={} (kubeadm: --pod-network-cidr), or set spec.podCIDR of the Node by kubectl patch",
                    family.name(),
                    networks.join()
                ));
            }
        }
    }
    Ok(subnets)
}

#[cfg(test)]
mod tests;

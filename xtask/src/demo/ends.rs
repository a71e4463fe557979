//! Who talks to whom: the first two nodes with pods play client and server in all that the demo shows.

use std::sync::Arc;

use lab::{Cluster, Node, Pod};

/// A client's node and a server's, and their pods, at least one each.
#[derive(Clone)]
pub(super) struct Ends {
    pub(super) client_node: Arc<Node>,
    pub(super) server_node: Arc<Node>,
    clients: Vec<Pod>,
    servers: Vec<Pod>,
}

impl Ends {
    /// None in a cluster with fewer than two nodes.
    pub(super) fn of(cluster: &Cluster) -> Option<Self> {
        let mut nodes = cluster
            .nodes()
            .iter()
            .map(|node| (node.clone(), node.pods()))
            .filter(|(_, pods)| !pods.is_empty());
        let ((client_node, clients), (server_node, servers)) = nodes.next().zip(nodes.next())?;
        Some(Self {
            client_node,
            server_node,
            clients,
            servers,
        })
    }

    /// The first pods of both.
    pub(super) fn first(&self) -> (Pod, Pod) {
        (self.clients[0].clone(), self.servers[0].clone())
    }

    /// The last pods of both.
    pub(super) fn last(&self) -> (Pod, Pod) {
        let last = |pods: &[Pod]| pods[pods.len() - 1].clone();
        (last(&self.clients), last(&self.servers))
    }

    /// All pods of the server's node.
    pub(super) fn servers(&self) -> &[Pod] {
        &self.servers
    }
}

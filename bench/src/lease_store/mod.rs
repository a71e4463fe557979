//! Where a cluster keeps its leases and its network config: etcd, a Kubernetes API server, or a file.
//!
//! The rest of the lab asks here for leases, and for what an agent must be told to find them; it does not know which
//! store it is, except for tests of one kind of store.

#[cfg(feature = "api-server")]
mod api;
mod etcd;
mod file;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
};

#[cfg(feature = "api-server")]
use crate::kube::mock::ApiServer;
use crate::{
    error::{Error, Result},
    etcd::Etcd,
    lease::{Lease, Subnet, Subnet6},
    lease_store::file::LeaseFile,
    netns::Netns,
    process::Lifetime,
    state::LabId,
};

/// Where leases are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LeaseStore {
    /// In etcd; nodes choose their subnets.
    #[default]
    Etcd,
    /// As annotations of Node objects, in an API server in this process; nodes have the subnets of their number.
    #[cfg(feature = "api-server")]
    ApiServer,
    /// The same in an API server that speaks TLS and wants bearer tokens, of which each agent has its own in a kubeconfig.
    #[cfg(feature = "api-server")]
    SecureApiServer,
    /// In a file that all agents read, and that the lab writes; nodes have the subnets of their number.
    File,
}

/// What a store must know of a node that runs flannel.
#[derive(Clone, Copy, Debug)]
pub struct NewNode<'a> {
    /// `n1`, …
    pub name: &'a str,
    /// Its addresses on the underlay.
    pub addresses: &'a [IpAddr],
    /// The subnet of its number.
    pub subnet: Subnet,
    /// The same in dual stack.
    pub subnet6: Option<Subnet6>,
    /// Its lease as stock flannel would publish it, or why stock flannel would not.
    pub value: Result<&'a str, &'a Error>,
}

/// How an agent finds its leases.
#[derive(Clone, Debug, Default)]
pub(crate) struct AgentFlags {
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
}

/// A store in use.
pub(crate) trait Store: fmt::Debug + Send + Sync {
    /// Makes the network config known to those who look for it in the store.
    fn publish_network(&self, json: &str) -> Result<()>;

    /// Makes a node known, where nodes must be.
    fn add_node(&self, node: &NewNode<'_>) -> Result<()>;

    /// What the agent of a node is told; what it needs besides is written to the node's directory.
    fn agent_flags(&self, node: &str, directory: &Path, network: &str) -> Result<AgentFlags>;

    /// All leases.
    fn leases(&self) -> Result<Vec<Lease>>;

    /// Publishes the lease of a stock node whose subnets are those of its number.
    fn publish(&self, node: &str, value: &str) -> Result<()>;

    /// Takes away the lease of a node, and what it hangs on. Its key is as in etcd, without prefix.
    fn withdraw(&self, node: &str, key: &str) -> Result<()>;

    /// etcd, if that is the store: nodes choose their subnets.
    fn etcd(&self) -> Option<&Etcd> {
        None
    }

    /// The API server, if that is the store.
    #[cfg(feature = "api-server")]
    fn api_server(&self) -> Option<&ApiServer> {
        None
    }

    /// The file, if that is the store.
    fn file(&self) -> Option<&Path> {
        None
    }
}

/// Starts what is to be started, in a namespace that has this address. etcd serves a little later.
pub(crate) fn start(
    kind: LeaseStore,
    lab: LabId,
    netns: &Netns,
    address: Ipv4Addr,
    lifetime: Lifetime,
) -> Result<Arc<dyn Store>> {
    Ok(match kind {
        LeaseStore::Etcd => {
            let etcd = Etcd::new(lab, netns.clone(), address, lifetime);
            etcd.spawn()?;
            Arc::new(etcd)
        }
        #[cfg(feature = "api-server")]
        LeaseStore::ApiServer => Arc::new(api::start(netns, address, None, lifetime)?),
        #[cfg(feature = "api-server")]
        LeaseStore::SecureApiServer => {
            let directory = lab.directory().join("kube-apiserver");
            Arc::new(api::start(netns, address, Some(directory), lifetime)?)
        }
        LeaseStore::File => Arc::new(LeaseFile::new(&lab.directory())),
    })
}

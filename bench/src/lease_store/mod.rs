//! Where a cluster keeps its leases and its network config: etcd, a Kubernetes API server, or a file.
//!
//! The rest of the lab asks here for leases, and for what an agent must be told to find them; it does not know which
//! store it is, except for tests of one kind of store.

mod file;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

#[cfg(feature = "api-server")]
use crate::kube::{
    lease as node_lease,
    mock::{self, ApiServer},
};
use crate::{
    error::{Error, IoContext, Result},
    etcd::Etcd,
    lease::{Lease, Subnet, Subnet6},
    lease_store::file::LeaseFile,
    netns::Netns,
    process::Lifetime,
    state::LabId,
};

/// The API server's port, on etcd's address.
#[cfg(feature = "api-server")]
const API_PORT: u16 = 8080;

/// Where leases are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LeaseStore {
    /// In etcd; nodes choose their subnets.
    #[default]
    Etcd,
    /// As annotations of Node objects, in an API server in this process; nodes have the subnets of their number.
    #[cfg(feature = "api-server")]
    ApiServer,
    /// In a file that all agents read, and that the lab writes; nodes have the subnets of their number.
    File,
}

/// A store in use.
#[derive(Debug)]
pub(crate) enum Store {
    Etcd(Etcd),
    #[cfg(feature = "api-server")]
    ApiServer(ApiServer),
    File(LeaseFile),
}

/// What a store must know of a node that runs flannel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewNode<'a> {
    pub(crate) name: &'a str,
    pub(crate) addresses: &'a [IpAddr],
    pub(crate) subnet: Subnet,
    pub(crate) subnet6: Option<Subnet6>,
    /// The node's lease as stock flannel would publish it, if the lab knows the backend.
    pub(crate) value: Result<&'a str, &'a Error>,
}

/// How an agent finds its leases.
#[derive(Clone, Debug, Default)]
pub(crate) struct AgentFlags {
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
}

impl Store {
    /// Starts what is to be started, in a namespace that has this address. etcd serves a little later.
    pub(crate) fn start(
        kind: LeaseStore,
        lab: LabId,
        netns: &Netns,
        address: Ipv4Addr,
        lifetime: Lifetime,
    ) -> Result<Self> {
        match kind {
            LeaseStore::Etcd => {
                let etcd = Etcd::new(lab, netns.clone(), address, lifetime);
                etcd.spawn()?;
                Ok(Self::Etcd(etcd))
            }
            #[cfg(feature = "api-server")]
            LeaseStore::ApiServer if lifetime == Lifetime::Outlives => {
                let reason = "the API server is in this process: its cluster cannot outlive it";
                Err(Error::Unsupported(reason.to_owned()))
            }
            #[cfg(feature = "api-server")]
            LeaseStore::ApiServer => {
                let address = (address, API_PORT).into();
                ApiServer::start(Some(netns), address, mock::Options::default())
                    .map(Self::ApiServer)
            }
            LeaseStore::File => Ok(Self::File(LeaseFile::new(&lab.directory()))),
        }
    }

    /// Makes the network config known to those who look for it in the store.
    pub(crate) fn publish_network(&self, json: &str) -> Result<()> {
        match self {
            Self::Etcd(etcd) => {
                etcd.wait_ready()?;
                etcd.put_config(json)
            }
            // It is in the nodes' files.
            #[cfg(feature = "api-server")]
            Self::ApiServer(_) => Ok(()),
            Self::File(file) => file.set_network(json),
        }
    }

    /// Makes a node known, where nodes must be.
    pub(crate) fn add_node(&self, node: &NewNode<'_>) -> Result<()> {
        match self {
            Self::Etcd(_) => Ok(()),
            #[cfg(feature = "api-server")]
            Self::ApiServer(server) => {
                let cidrs = std::iter::once(node.subnet.to_string())
                    .chain(node.subnet6.map(|subnet| subnet.to_string()))
                    .collect::<Vec<_>>();
                let cidrs = cidrs.iter().map(String::as_str).collect::<Vec<_>>();
                server.put_node(mock::node(node.name, node.addresses, &cidrs));
                Ok(())
            }
            Self::File(file) => match node.value {
                Ok(value) => file.put(node.subnet, node.subnet6, value),
                Err(error) => Err(Error::Unsupported(error.to_string())),
            },
        }
    }

    /// What the agent of a node is told. What it needs besides is written to the node's directory.
    pub(crate) fn agent_flags(
        &self,
        node: &str,
        directory: &Path,
        network: &str,
    ) -> Result<AgentFlags> {
        match self {
            Self::Etcd(etcd) => Ok(AgentFlags {
                arguments: vec![format!("--etcd-endpoints={}", etcd.endpoint())],
                ..AgentFlags::default()
            }),
            #[cfg(feature = "api-server")]
            Self::ApiServer(server) => {
                let path = network_file(directory);
                fs::write(&path, network).context("write", path.display())?;
                Ok(AgentFlags {
                    arguments: vec![
                        "--kube-subnet-mgr".to_owned(),
                        format!("--kube-api-url={}", server.url()),
                        format!("--net-config-path={}", path.display()),
                    ],
                    environment: vec![("NODE_NAME".to_owned(), node.to_owned())],
                })
            }
            Self::File(file) => Ok(AgentFlags {
                arguments: vec![format!("--lease-file={}", file.path().display())],
                ..AgentFlags::default()
            }),
        }
    }

    /// All leases.
    pub(crate) fn leases(&self) -> Result<Vec<Lease>> {
        match self {
            Self::Etcd(etcd) => etcd.leases(),
            #[cfg(feature = "api-server")]
            Self::ApiServer(server) => server
                .nodes()
                .iter()
                .filter_map(|node| node_lease::lease(node).transpose())
                .collect(),
            Self::File(file) => file.leases(),
        }
    }

    /// Publishes the lease of a stock node whose subnets are those of its number.
    pub(crate) fn publish(&self, node: &str, value: &str) -> Result<()> {
        match self {
            #[cfg(feature = "api-server")]
            Self::ApiServer(server) => {
                let value = serde_json::from_str(value).map_err(|error| Error::Parse {
                    what: format!("lease of {node}"),
                    reason: error.to_string(),
                    text: value.to_owned(),
                })?;
                let annotations = node_lease::annotations(&value);
                let annotations = annotations
                    .iter()
                    .map(|(name, value)| (name.as_str(), Some(value.as_str())))
                    .collect::<Vec<_>>();
                server.annotate(node, &annotations)
            }
            // It is in the file since the node was made; in etcd, a node publishes with its choice.
            Self::File(_) | Self::Etcd(_) => Ok(()),
        }
    }

    /// Takes away the lease of a node whose subnet this is, and what the lease hangs on.
    pub(crate) fn withdraw(&self, node: &str, key: &str) -> Result<()> {
        match self {
            Self::Etcd(etcd) => etcd.delete(&format!("{}/subnets/{key}", crate::etcd::PREFIX)),
            #[cfg(feature = "api-server")]
            Self::ApiServer(server) => {
                server.delete_node(node);
                Ok(())
            }
            Self::File(file) => file.remove(key),
        }
    }

    /// etcd, if that is the store.
    pub(crate) fn etcd(&self) -> Option<&Etcd> {
        match self {
            Self::Etcd(etcd) => Some(etcd),
            _ => None,
        }
    }

    /// The API server, if that is the store.
    #[cfg(feature = "api-server")]
    pub(crate) fn api_server(&self) -> Option<&ApiServer> {
        match self {
            Self::ApiServer(server) => Some(server),
            _ => None,
        }
    }

    /// The file, if that is the store.
    pub(crate) fn file(&self) -> Option<&Path> {
        match self {
            Self::File(file) => Some(file.path()),
            _ => None,
        }
    }
}

/// `--net-config-path` of a node.
pub(crate) fn network_file(directory: &Path) -> PathBuf {
    directory.join("net-conf.json")
}

//! Leases as annotations of Node objects, in an API server in this process.

use std::{fs, net::Ipv4Addr, path::Path};

use super::{AgentFlags, NewNode, Store};
use crate::{
    error::{Error, IoContext, Result},
    kube::{
        lease,
        mock::{self, ApiServer, Options},
    },
    lease::Lease,
    netns::Netns,
    process::Lifetime,
};

/// The server's port, without TLS.
const PORT: u16 = 8080;

/// Starts a server in a namespace that has this address.
pub(super) fn start(netns: &Netns, address: Ipv4Addr, lifetime: Lifetime) -> Result<ApiServer> {
    if lifetime == Lifetime::Outlives {
        let reason = "the API server is in this process: its cluster cannot outlive it";
        return Err(Error::Unsupported(reason.to_owned()));
    }
    ApiServer::start(Some(netns), (address, PORT).into(), Options::default())
}

impl Store for ApiServer {
    /// It is in the nodes' files.
    fn publish_network(&self, _json: &str) -> Result<()> {
        Ok(())
    }

    fn add_node(&self, node: &NewNode<'_>) -> Result<()> {
        let cidrs = std::iter::once(node.subnet.to_string())
            .chain(node.subnet6.map(|subnet| subnet.to_string()))
            .collect::<Vec<_>>();
        let cidrs = cidrs.iter().map(String::as_str).collect::<Vec<_>>();
        self.put_node(mock::node(node.name, node.addresses, &cidrs));
        Ok(())
    }

    fn agent_flags(&self, node: &str, directory: &Path, network: &str) -> Result<AgentFlags> {
        let path = directory.join("net-conf.json");
        fs::write(&path, network).context("write", path.display())?;
        Ok(AgentFlags {
            arguments: vec![
                "--kube-subnet-mgr".to_owned(),
                format!("--kube-api-url={}", self.url()),
                format!("--net-config-path={}", path.display()),
            ],
            environment: vec![("NODE_NAME".to_owned(), node.to_owned())],
        })
    }

    fn leases(&self) -> Result<Vec<Lease>> {
        let nodes = self.nodes();
        nodes
            .iter()
            .filter_map(|node| lease::lease(node).transpose())
            .collect()
    }

    fn publish(&self, node: &str, value: &str) -> Result<()> {
        let value = serde_json::from_str(value).map_err(|error| Error::Parse {
            what: format!("lease of {node}"),
            reason: error.to_string(),
            text: value.to_owned(),
        })?;
        let annotations = lease::annotations(&value);
        let annotations = annotations
            .iter()
            .map(|(name, value)| (name.as_str(), Some(value.as_str())))
            .collect::<Vec<_>>();
        self.annotate(node, &annotations)
    }

    fn withdraw(&self, node: &str, _key: &str) -> Result<()> {
        self.delete_node(node);
        Ok(())
    }

    fn api_server(&self) -> Option<&ApiServer> {
        Some(self)
    }
}

//! Leases as annotations of Node objects, in an API server in this process.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

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
/// The port with TLS, as kubeadm chooses it.
const SECURE_PORT: u16 = 6443;

/// Starts a server in a namespace that has this address, with TLS if there is a directory for certificates.
pub(super) fn start(
    netns: &Netns,
    address: Ipv4Addr,
    certificates: Option<PathBuf>,
    lifetime: Lifetime,
) -> Result<ApiServer> {
    if lifetime == Lifetime::Outlives {
        let reason = "the API server is in this process: its cluster cannot outlive it";
        return Err(Error::Unsupported(reason.to_owned()));
    }
    if let Some(directory) = &certificates {
        fs::create_dir(directory).context("create", directory.display())?;
    }
    let port = certificates.as_ref().map_or(PORT, |_| SECURE_PORT);
    let options = Options {
        tls: certificates,
        ..Options::default()
    };
    ApiServer::start(Some(netns), (address, port).into(), options)
}

/// The bearer token of a node's agent.
fn token(node: &str) -> String {
    format!("token-of-{node}")
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
        if self.authority().is_some() {
            self.let_in(&token(node.name));
        }
        Ok(())
    }

    fn agent_flags(&self, node: &str, directory: &Path, network: &str) -> Result<AgentFlags> {
        let path = directory.join("net-conf.json");
        fs::write(&path, network).context("write", path.display())?;
        let server = if self.authority().is_some() {
            let path = directory.join("kubeconfig");
            fs::write(&path, self.kubeconfig(&token(node))).context("write", path.display())?;
            format!("--kubeconfig-file={}", path.display())
        } else {
            format!("--kube-api-url={}", self.url())
        };
        Ok(AgentFlags {
            arguments: vec![
                "--kube-subnet-mgr".to_owned(),
                server,
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

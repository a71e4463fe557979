//! Leases in etcd, as flannel keeps them by default.

use std::path::Path;

use super::{AgentFlags, NewNode, Store};
use crate::{
    error::Result,
    etcd::{Etcd, PREFIX},
    lease::Lease,
};

impl Store for Etcd {
    fn publish_network(&self, json: &str) -> Result<()> {
        self.wait_ready()?;
        self.put_config(json)
    }

    fn add_node(&self, _node: &NewNode<'_>) -> Result<()> {
        Ok(())
    }

    fn agent_flags(&self, _node: &str, _directory: &Path, _network: &str) -> Result<AgentFlags> {
        Ok(AgentFlags {
            arguments: vec![format!("--etcd-endpoints={}", self.endpoint())],
            ..AgentFlags::default()
        })
    }

    fn leases(&self) -> Result<Vec<Lease>> {
        Self::leases(self)
    }

    /// Stock nodes have published with their choice.
    fn publish(&self, _node: &str, _value: &str) -> Result<()> {
        Ok(())
    }

    fn withdraw(&self, _node: &str, key: &str) -> Result<()> {
        self.delete(&format!("{PREFIX}/subnets/{key}"))
    }

    fn etcd(&self) -> Option<&Etcd> {
        Some(self)
    }
}

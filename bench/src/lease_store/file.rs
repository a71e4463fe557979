//! Leases and network config in one JSON file: `{"config": …, "leases": {"10.5.34.0-24": …}}`, with keys and values as
//! in etcd.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use serde_json::Value;

use super::{AgentFlags, NewNode, Store};
use crate::{
    error::{Error, IoContext, Result},
    lease::{self, Lease},
};

/// The file and what is in it.
#[derive(Debug)]
pub(crate) struct LeaseFile {
    path: PathBuf,
    content: Mutex<Content>,
}

#[derive(Debug, Default, Serialize)]
struct Content {
    config: Value,
    leases: BTreeMap<String, Value>,
}

impl LeaseFile {
    /// In a lab's directory; there once there is something to write.
    pub(super) fn new(directory: &Path) -> Self {
        Self {
            path: directory.join("leases.json"),
            content: Mutex::default(),
        }
    }

    /// Puts the new content in the old one's place at once. Before there is a config there is no file.
    fn write(&self, content: &Content) -> Result<()> {
        if content.config.is_null() {
            return Ok(());
        }
        let text = serde_json::to_string_pretty(content).expect("the content is JSON");
        let next = self.path.with_extension("next");
        fs::write(&next, text).context("write", next.display())?;
        fs::rename(&next, &self.path).context("rename", next.display())
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for LeaseFile {
    fn publish_network(&self, json: &str) -> Result<()> {
        let mut content = self.content();
        content.config = parse("network config", json)?;
        self.write(&content)
    }

    fn add_node(&self, node: &NewNode<'_>) -> Result<()> {
        let value = node
            .value
            .map_err(|error| Error::Unsupported(error.to_string()))?;
        let mut content = self.content();
        let key = lease::key(node.subnet, node.subnet6);
        let value = parse(&key, value)?;
        content.leases.insert(key, value);
        self.write(&content)
    }

    fn agent_flags(&self, _node: &str, _directory: &Path, _network: &str) -> Result<AgentFlags> {
        Ok(AgentFlags {
            arguments: vec![format!("--lease-file={}", self.path.display())],
            ..AgentFlags::default()
        })
    }

    fn leases(&self) -> Result<Vec<Lease>> {
        let content = self.content();
        let leases = content.leases.iter();
        leases
            .map(|(key, value)| Lease::parse(key, &value.to_string()))
            .collect()
    }

    /// It is in the file since the node was made.
    fn publish(&self, _node: &str, _value: &str) -> Result<()> {
        Ok(())
    }

    fn withdraw(&self, _node: &str, key: &str) -> Result<()> {
        let mut content = self.content();
        content.leases.remove(key);
        self.write(&content)
    }

    fn file(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

fn parse(what: &str, json: &str) -> Result<Value> {
    serde_json::from_str(json).map_err(|error| Error::Parse {
        what: what.to_owned(),
        reason: error.to_string(),
        text: json.to_owned(),
    })
}

//! The Node objects, the counter of revisions (`resourceVersion`), and the log of changes that watches replay.
//!
//! An object is kept as text, as it stands in a list; thousands fit into memory, and answers are copies. Nothing here
//! knows of requests.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    time::SystemTime,
};

use hyper::body::Bytes;
use serde_json::{Value, json};

/// The revision of an empty store; a real one has had a life before its first node, too.
const FIRST_REVISION: u64 = 1000;

/// What has happened to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Added,
    Modified,
    Deleted,
}

impl Change {
    /// `type` of a watch's line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One change in the log.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) revision: u64,
    pub(super) change: Change,
    pub(super) name: String,
    /// The node after the change; a deleted one as it was, with the deletion's revision.
    pub(super) node: Bytes,
    /// The node before it.
    previous: Option<Bytes>,
}

/// All nodes by name.
pub(super) type Nodes = BTreeMap<String, Bytes>;

/// The revision is no longer known; this one is the oldest that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooOld(pub(super) u64);

/// The store.
#[derive(Debug)]
pub(super) struct Store {
    revision: u64,
    nodes: Nodes,
    log: VecDeque<Event>,
    log_limit: usize,
    /// Changes up to this revision are not shown to new readers.
    compacted: u64,
    /// Changes up to this revision are not in the log.
    dropped: u64,
    uids: u64,
}

impl Store {
    /// An empty store that remembers `log_limit` changes.
    pub(super) fn new(log_limit: usize) -> Self {
        Self {
            revision: FIRST_REVISION,
            nodes: Nodes::new(),
            log: VecDeque::new(),
            log_limit,
            compacted: FIRST_REVISION,
            dropped: FIRST_REVISION,
            uids: 0,
        }
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    pub(super) fn node(&self, name: &str) -> Option<Value> {
        self.nodes.get(name).map(|text| parse(text))
    }

    /// Makes the node that `metadata.name` names, or replaces it. A node that does not change keeps its revision.
    pub(super) fn put(&mut self, mut node: Value) -> u64 {
        let name = node["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let previous = self.nodes.get(&name).cloned();
        let metadata = &mut node["metadata"];
        match &previous {
            Some(previous) => {
                let before = parse(previous);
                for kept in ["uid", "creationTimestamp", "resourceVersion"] {
                    metadata[kept] = before["metadata"][kept].clone();
                }
                if before == node {
                    return self.revision;
                }
            }
            None => {
                self.uids += 1;
                metadata["uid"] = format!("5b0a66a5-6b0f-4f0e-8e1c-{:012x}", self.uids).into();
                metadata["creationTimestamp"] = now().into();
            }
        }
        self.revision += 1;
        node["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let text = Bytes::from(node.to_string());
        self.nodes.insert(name.clone(), text.clone());
        let change = match previous {
            Some(_) => Change::Modified,
            None => Change::Added,
        };
        self.remember(change, name, text, previous);
        self.revision
    }

    /// Whether there was such a node.
    pub(super) fn delete(&mut self, name: &str) -> bool {
        let Some(previous) = self.nodes.remove(name) else {
            return false;
        };
        self.revision += 1;
        let mut node = parse(&previous);
        node["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let text = Bytes::from(node.to_string());
        self.remember(Change::Deleted, name.to_owned(), text, Some(previous));
        true
    }

    fn remember(&mut self, change: Change, name: String, node: Bytes, previous: Option<Bytes>) {
        self.log.push_back(Event {
            revision: self.revision,
            change,
            name,
            node,
            previous,
        });
        while self.log.len() > self.log_limit {
            self.dropped = self
                .log
                .pop_front()
                .map_or(self.dropped, |event| event.revision);
            self.compacted = self.compacted.max(self.dropped);
        }
    }

    /// Counts revisions that concern no node, as other objects' changes do.
    pub(super) fn advance(&mut self, revisions: u64) {
        self.revision += revisions;
    }

    /// New readers find no change from before now. Watches that are open miss none.
    pub(super) fn compact(&mut self) {
        self.compacted = self.revision;
    }

    /// Whether a reader may start behind this revision.
    pub(super) fn check(&self, revision: u64) -> Result<(), TooOld> {
        if revision < self.compacted {
            return Err(TooOld(self.compacted));
        }
        Ok(())
    }

    /// The changes behind a revision, for a reader that has followed until then.
    pub(super) fn changes_since(
        &self,
        revision: u64,
    ) -> Result<impl Iterator<Item = &Event>, TooOld> {
        if revision < self.dropped {
            return Err(TooOld(self.dropped));
        }
        let first = self.log.partition_point(|event| event.revision <= revision);
        Ok(self.log.range(first..))
    }

    /// The nodes as they were at a revision.
    pub(super) fn nodes_at(&self, revision: u64) -> Result<Cow<'_, Nodes>, TooOld> {
        self.check(revision)?;
        let mut nodes = Cow::Borrowed(&self.nodes);
        let later = self.log.iter().rev();
        for event in later.take_while(|event| event.revision > revision) {
            let nodes = nodes.to_mut();
            match &event.previous {
                Some(previous) => nodes.insert(event.name.clone(), previous.clone()),
                None => nodes.remove(&event.name),
            };
        }
        Ok(nodes)
    }
}

/// A node as it is sent by itself: lists leave its kind out.
pub(super) fn with_kind(text: &[u8]) -> Bytes {
    const KIND: &[u8] = br#"{"kind":"Node","apiVersion":"v1","#;
    [KIND, text.strip_prefix(b"{").unwrap_or(text)]
        .concat()
        .into()
}

/// As a node without content is sent: it carries a bookmark's revision.
pub(super) fn bookmark(revision: u64) -> Value {
    json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": { "resourceVersion": revision.to_string(), "creationTimestamp": null },
        "spec": {},
        "status": {
            "daemonEndpoints": { "kubeletEndpoint": { "Port": 0 } },
            "nodeInfo": {
                "machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "", "osImage": "",
                "containerRuntimeVersion": "", "kubeletVersion": "", "kubeProxyVersion": "", "operatingSystem": "",
                "architecture": "",
            },
        },
    })
}

fn parse(text: &[u8]) -> Value {
    serde_json::from_slice(text).expect("the store wrote it")
}

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

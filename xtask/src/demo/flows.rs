//! The flows that nodes remember, as `flannel-agent flows` tells them.

use lab::{Error, Node, Result};
use serde::{Deserialize, Serialize};

/// More than the demo's own traffic needs; those attested last come first.
const LIMIT: &str = "--limit=100";

/// What a node remembers: the parts that the demo shows.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Listing {
    /// Age of an attestation, in milliseconds, from which a flow is slow.
    pub(super) stale_ms: u64,
    pub(super) flows: Vec<FlowView>,
}

/// A flow between a pod of the node and a pod elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct FlowView {
    pub(super) protocol: String,
    pub(super) pod: String,
    pub(super) pod_port: u16,
    pub(super) remote: String,
    pub(super) remote_port: u16,
    /// `fast`, `one-leg`, `stale`, `closing` or `kernel`.
    pub(super) state: String,
    pub(super) out: LegView,
    #[serde(rename = "in")]
    pub(super) into: LegView,
}

/// One direction of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct LegView {
    /// `fast`, or why not.
    pub(super) outcome: String,
    /// Milliseconds since it was attested.
    pub(super) attested_ms: Option<u64>,
}

impl FlowView {
    /// Whether both directions are fast.
    pub(super) fn is_fast(&self) -> bool {
        self.state == "fast"
    }
}

/// Asks a node. One that remembers nothing, because its fast path is off, is an error.
pub(super) fn of(node: &Node) -> Result<Listing> {
    let agent = node.agent();
    let pins = format!("--pin-dir={}", agent.pin_directory().display());
    let socket = format!("--status-socket={}", agent.socket().display());
    let text = agent.command_output(&["flows", "--json", LIMIT, &pins, &socket])?;
    serde_json::from_str(&text).map_err(|error| Error::Parse {
        what: format!("flows of {}", node.name()),
        reason: error.to_string(),
        text,
    })
}

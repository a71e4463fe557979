//! What the agent tells about itself: the document behind `flannel-agent status --json`.
//!
//! Plain data, filled by the modules that own the facts and rendered by `cmd/status.rs`. Nothing here reads the
//! kernel or decides anything.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Everything that an operator may ask of a running agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Whether the BPF programs are embedded in this binary.
    pub bpf_object: bool,
    /// Process id of the agent.
    pub pid: u32,
    /// Whether `subnet.env` is written and the first full reconciliation has succeeded.
    pub ready: bool,
    /// The effective network config, defaults filled in; absent until it has been read.
    pub config: Option<serde_json::Value>,
    /// The interface that carries traffic between nodes.
    pub interface: Option<String>,
    /// The address that this node publishes.
    pub public_ip: Option<String>,
    /// The node's own lease.
    pub lease: Option<OwnLease>,
    /// Every other node's lease that was understood.
    pub peers: Vec<Peer>,
    /// Leases and keys that were skipped: key and reason.
    pub skipped_leases: BTreeMap<String, String>,
    /// Kernel objects that the agent owns, each compared with what it should be.
    pub objects: Vec<Object>,
    /// The state of the BPF fast path.
    pub fast_path: FastPath,
    /// What the udp backend's proxy has carried, and what not and why; absent with another backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<crate::udp::Counters>,
    /// What is wrong at the moment, in one line each; empty when all is well.
    pub problems: Vec<String>,
}

/// The node's own lease.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OwnLease {
    /// The node's subnet in CIDR notation.
    pub subnet: String,
    /// Seconds until the lease expires unless it is renewed; absent for a reservation.
    pub expires_in_s: Option<i64>,
}

/// Another node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its subnet in CIDR notation.
    pub subnet: String,
    /// The address that it publishes.
    pub public_ip: String,
    /// How its subnet is reached: `vxlan`, `direct` or `none`.
    pub via: String,
    /// Why it is not reached as it should be, if so.
    pub problem: Option<String>,
    /// What keeps its traffic on the kernel's path, where a fast path was asked for.
    #[serde(default)]
    pub kernel_path: Option<String>,
}

/// A kernel object that the agent owns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// `link`, `address`, `route`, `neighbour`, `fdb`, `rules`, `sysctl`.
    pub kind: String,
    /// What `ip` or `bridge` would call it.
    pub name: String,
    /// `ok`, `missing` or `differs`.
    pub state: String,
    /// What differs, or the last error in repairing it.
    pub detail: Option<String>,
}

/// The state of the BPF fast path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FastPath {
    /// The mode that was asked for: `off`, `subnet` or `flow`.
    pub mode: String,
    /// Whether BPF programs carry packets on this node.
    pub active: bool,
    /// Why not, if it was asked for and is not active.
    pub reason: Option<String>,
    /// What an operator can do about it.
    pub remedy: Option<String>,
    /// How programs are attached: `tcx` or `clsact`.
    pub attach: Option<String>,
    /// Egress tier: `encap` (whole packet built in BPF), `assist` (inner MACs in BPF, encap by the VXLAN device),
    /// `direct` (host-gw).
    pub egress: Option<String>,
    /// Receive tier: `nic` (decap in BPF at the node's interface) or `vtep` (kernel decap, hook on the VXLAN device).
    pub ingress: Option<String>,
    /// As `egress`, for IPv6, whose tunnel is the kernel's: `assist` or `direct`.
    #[serde(default)]
    pub egress_v6: Option<String>,
    /// As `ingress`, for IPv6: `vtep`, or `nic` where there is no tunnel.
    #[serde(default)]
    pub ingress_v6: Option<String>,
    /// Who attests flows: `conntrack` or `mark`.
    #[serde(default)]
    pub attestation: Option<String>,
    /// Flows that are remembered.
    #[serde(default)]
    pub flows: Option<u64>,
    /// How old an attestation gets before the kernel is asked again, in milliseconds: as the option says, or less where
    /// conntrack forgets sooner.
    #[serde(default)]
    pub revalidate_ms: Option<u64>,
    /// Attached hooks.
    pub hooks: Vec<Hook>,
    /// Pods of this node that the fast path serves, or why it does not.
    pub pods: Vec<Pod>,
    /// Packets by outcome since the maps were made, summed over the CPUs.
    pub counters: Counters,
}

/// One attached program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Hook {
    /// Interface name.
    pub device: String,
    /// Program name: `pod_egress`, `bridge_egress`, `nic_ingress`, `vtep_ingress`.
    pub program: String,
}

/// One pod of this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pod {
    /// Its address.
    pub ip: String,
    /// The host side of its veth.
    pub device: String,
    /// Why the fast path does not serve it, or not in the usual way, if so.
    pub problem: Option<String>,
}

/// Packets by outcome.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Pod packets that BPF sent to another node.
    pub fast_egress: u64,
    /// Packets from another node that BPF delivered to a pod.
    pub fast_ingress: u64,
    /// How many of those XDP took out of their tunnel.
    #[serde(default)]
    pub decapsulated: u64,
    /// Packets handed to the kernel, by reason. Only those that a hook saw.
    pub declined: BTreeMap<String, u64>,
    /// Packets that the kernel has forwarded, by what was learned from them.
    #[serde(default)]
    pub attest: BTreeMap<String, u64>,
}

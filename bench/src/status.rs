//! The parts of `flannel-agent status --json` that the lab reads.
//!
//! The types mirror `flannel-agent/src/status.rs` instead of depending on it: the lab is built before the agent is,
//! and reads status documents of other versions too. Fields that are not known here are ignored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The agent's own account of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Whether the BPF programs are embedded in the binary.
    pub bpf_object: bool,
    /// Process id of the agent.
    pub pid: u32,
    /// Whether `subnet.env` is written and the first full reconciliation has succeeded.
    pub ready: bool,
    /// The effective network config, defaults filled in.
    pub config: Option<serde_json::Value>,
    /// The address that the node publishes.
    pub public_ip: Option<String>,
    /// The node's own lease.
    pub lease: Option<OwnLease>,
    /// Every other node's lease that was understood.
    pub peers: Vec<Peer>,
    /// Leases that were skipped: key and reason.
    pub skipped_leases: BTreeMap<String, String>,
    /// Kernel objects that the agent owns.
    pub objects: Vec<Object>,
    /// The state of the BPF fast path.
    pub fast_path: FastPath,
    /// What is wrong at the moment.
    pub problems: Vec<String>,
}

/// The node's own lease.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OwnLease {
    /// The node's subnet in CIDR notation; in dual stack both families' with a comma between.
    pub subnet: String,
    /// Seconds until the lease expires; absent for a reservation.
    pub expires_in_s: Option<i64>,
}

/// Another node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Peer {
    /// Its subnet in CIDR notation.
    pub subnet: String,
    /// The address that it publishes.
    pub public_ip: String,
    /// `vxlan`, `direct` or `none`.
    pub via: String,
    /// Why it is not reached as it should be.
    pub problem: Option<String>,
    /// What keeps its traffic on the kernel's path.
    pub kernel_path: Option<String>,
}

/// A kernel object that the agent owns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Object {
    /// `link`, `address`, `route`, `neighbour`, `fdb`, `rules`, `sysctl`.
    pub kind: String,
    /// What `ip` or `bridge` would call it.
    pub name: String,
    /// `ok`, `missing` or `differs`.
    pub state: String,
    /// What differs.
    pub detail: Option<String>,
}

/// The state of the BPF fast path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FastPath {
    /// The mode that was asked for.
    pub mode: String,
    /// Whether BPF programs carry packets.
    pub active: bool,
    /// Why not, if it was asked for.
    pub reason: Option<String>,
    /// What an operator can do about it.
    pub remedy: Option<String>,
    /// `tcx` or `clsact`.
    pub attach: Option<String>,
    /// Egress tier.
    pub egress: Option<String>,
    /// Receive tier.
    pub ingress: Option<String>,
    /// Who attests flows.
    pub attestation: Option<String>,
    /// Flows that are remembered.
    pub flows: Option<u64>,
    /// How old an attestation gets before the kernel is asked again.
    pub revalidate_ms: Option<u64>,
    /// Attached hooks.
    pub hooks: Vec<Hook>,
    /// Pods that it serves, or why it does not.
    pub pods: Vec<PodState>,
    /// Packets by outcome.
    pub counters: Counters,
}

/// One attached program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hook {
    /// Interface name.
    pub device: String,
    /// Program name.
    pub program: String,
}

/// One pod, as the agent sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodState {
    /// Its address.
    pub ip: String,
    /// The host side of its veth.
    pub device: String,
    /// Why the fast path does not serve it.
    pub problem: Option<String>,
}

/// Packets by outcome since the maps were made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Pod packets that BPF sent to another node.
    pub fast_egress: u64,
    /// Packets from another node that BPF delivered to a pod.
    pub fast_ingress: u64,
    /// How many of those XDP took out of their tunnel.
    pub decapsulated: u64,
    /// Packets handed to the kernel, by reason.
    pub declined: BTreeMap<String, u64>,
    /// Packets that the kernel has forwarded, by what was learned from them.
    pub attest: BTreeMap<String, u64>,
}

impl Counters {
    /// What was counted after `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let since = |now: &BTreeMap<String, u64>, earlier: &BTreeMap<String, u64>| {
            let before = |reason: &str| earlier.get(reason).copied().unwrap_or(0);
            now.iter()
                .map(|(reason, count)| (reason.clone(), count.saturating_sub(before(reason))))
                .collect()
        };
        Self {
            fast_egress: self.fast_egress.saturating_sub(earlier.fast_egress),
            fast_ingress: self.fast_ingress.saturating_sub(earlier.fast_ingress),
            decapsulated: self.decapsulated.saturating_sub(earlier.decapsulated),
            declined: since(&self.declined, &earlier.declined),
            attest: since(&self.attest, &earlier.attest),
        }
    }

    /// Packets that a hook handed to the kernel, for whatever reason.
    pub fn kernel(&self) -> u64 {
        self.declined.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_and_missing_fields_are_no_error() {
        let text = r#"{"pid":7,"ready":true,"news":1,"fast_path":{"mode":"subnet","counters":{"declined":{"icmp":3}}}}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        assert!(status.ready && status.peers.is_empty());
        assert_eq!(status.fast_path.counters.kernel(), 3);
    }

    #[test]
    fn counters_subtract() {
        let count = |egress, icmp| Counters {
            fast_egress: egress,
            fast_ingress: 0,
            decapsulated: 0,
            declined: BTreeMap::from([("icmp".to_owned(), icmp)]),
            attest: BTreeMap::new(),
        };
        assert_eq!(count(9, 5).since(&count(4, 3)), count(5, 2));
        assert_eq!(count(9, 5).since(&Counters::default()), count(9, 5));
        assert_eq!(
            count(1, 1).since(&count(4, 3)),
            count(0, 0),
            "the maps were made anew"
        );
    }
}

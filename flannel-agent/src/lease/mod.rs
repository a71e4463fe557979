//! Leases: which node has which subnet, and how it is reached.
//!
//! A [`SubnetManager`] owns the store. The rest of the agent sees a network config, its own lease and a stream of
//! [`Event`]s; it must never learn where they come from.

pub mod alloc;
pub mod etcd;
pub mod key;
pub mod value;

use std::{collections::BTreeMap, future::Future, net::Ipv4Addr, time::Instant};

use ipnet::Ipv4Net;
use tokio::sync::{mpsc, watch};

pub use value::Attributes;

use crate::{board::Board, netconf::NetworkConfig};

/// A node's claim to a subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The node's subnet.
    pub subnet: Ipv4Net,
    /// Where the node is and how its backend is reached.
    pub attributes: Attributes,
}

/// This node's lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnLease {
    /// The subnet.
    pub subnet: Ipv4Net,
    /// When it expires unless it is renewed; absent for a reservation, which does not expire.
    pub expires: Option<Instant>,
}

/// One entry of the store: a lease, or the reason why it is not understood.
pub type Entry = Result<Lease, String>;

/// What a subnet manager reports.
#[derive(Clone, Debug)]
pub enum Event {
    /// Everything that is in the store, by the store's own name; replaces all that was reported before.
    Snapshot(BTreeMap<String, Entry>),
    /// One entry is new or has changed.
    Put(String, Entry),
    /// One entry is gone.
    Removed(String),
    /// This node's lease was acquired again or renewed.
    Own(OwnLease),
}

/// What this node asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The network config that the subnet must fit.
    pub config: NetworkConfig,
    /// What to publish.
    pub attributes: Attributes,
    /// The subnet of an earlier run, taken again if possible.
    pub previous: Option<Ipv4Net>,
}

/// A store of leases, and the protocol of claiming one.
pub trait SubnetManager {
    /// The network config. Waits until there is a valid one, telling `board` what it waits for.
    fn network_config(&mut self, board: &Board) -> impl Future<Output = NetworkConfig>;

    /// Acquires this node's lease. Waits until it has one, telling `board` what it waits for.
    fn acquire(&mut self, request: Request, board: &Board) -> impl Future<Output = OwnLease>;

    /// Keeps the lease alive and reports events until `events` is closed; publishes what `publish` changes to.
    /// Whatever happens to the store, it only returns when the receiver is gone.
    fn run(
        self,
        events: mpsc::Sender<Event>,
        publish: watch::Receiver<Attributes>,
        board: Board,
    ) -> impl Future<Output = ()>;
}

/// What is known about the store: all entries, by the store's own name.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    entries: BTreeMap<String, Entry>,
}

impl Leases {
    /// Takes over what an event says; logs each entry that is not understood once, when it becomes so.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Snapshot(entries) => {
                for (name, entry) in &entries {
                    self.report(name, entry);
                }
                self.entries = entries;
            }
            Event::Put(name, entry) => {
                self.report(&name, &entry);
                self.entries.insert(name, entry);
            }
            Event::Removed(name) => {
                self.entries.remove(&name);
            }
            Event::Own(_) => {}
        }
    }

    fn report(&self, name: &str, entry: &Entry) {
        if let Err(reason) = entry
            && self.entries.get(name) != Some(entry)
        {
            tracing::error!(key = name, reason, "lease skipped; all others are kept");
        }
    }

    /// The leases of other nodes, ordered by key; `own` and `address` tell which are this node's.
    pub fn peers(&self, own: Ipv4Net, address: Ipv4Addr) -> impl Iterator<Item = &Lease> {
        self.entries
            .values()
            .filter_map(|entry| entry.as_ref().ok())
            .filter(move |lease| lease.subnet != own && lease.attributes.public_ip != address)
    }

    /// Entries that were not understood, with the reason.
    pub fn skipped(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries
            .iter()
            .filter_map(|(name, entry)| Some((name.as_str(), entry.as_ref().err()?.as_str())))
    }
}

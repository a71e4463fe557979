//! Leases: which node has which subnet, and how it is reached.
//!
//! A [`SubnetManager`] owns the store. The rest of the agent sees a network config, its own lease and a stream of
//! [`Event`]s; it must never learn where they come from.

pub mod alloc;
pub mod changes;
pub mod etcd;
pub mod file;
pub mod key;
pub mod kube;
pub mod value;

use std::{collections::BTreeMap, future::Future, net::IpAddr, time::Instant};

use ipnet::IpNet;
use tokio::sync::{mpsc, watch};

pub use value::Attributes;

use crate::{board::Board, family::PerFamily, netconf::NetworkConfig};

/// A node's claim to a subnet, or to one of each family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The node's subnets; at least one.
    pub subnets: PerFamily<IpNet>,
    /// Where the node is and how its backend is reached.
    pub attributes: Attributes,
}

/// This node's lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnLease {
    /// The subnets.
    pub subnets: PerFamily<IpNet>,
    /// When it expires unless it is renewed; absent for a reservation, which does not expire.
    pub expires: Option<Instant>,
}

/// One entry of the store: a lease, or the reason why it is not understood.
pub type Entry = Result<Lease, String>;

/// A name and a value of the store as an entry.
pub fn entry(name: &str, value: &[u8]) -> Entry {
    let subnets = key::parse(name).map_err(|error| error.to_string())?;
    let attributes = Attributes::parse(value).map_err(|error| format!("key = {name}: {error}"))?;
    Ok(Lease {
        subnets,
        attributes,
    })
}

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
    /// The network config that the subnets must fit.
    pub config: NetworkConfig,
    /// What to publish.
    pub attributes: Attributes,
    /// The subnets of an earlier run, taken again if possible.
    pub previous: PerFamily<IpNet>,
}

/// What the store says of this node before it has asked for a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnNode {
    /// Addresses to publish instead of `--public-ip`'s; without any `--iface` option they choose the interface too.
    pub public: PerFamily<IpAddr>,
    /// What an earlier run has published, if that can be understood: the MACs of its devices are kept.
    pub published: Option<Attributes>,
}

/// A store of leases, and the protocol of claiming one. The methods are called once each, in this order.
pub trait SubnetManager: Send + 'static {
    /// The network config. Waits until there is a valid one, telling `board` what it waits for.
    fn network_config(&mut self, board: &Board) -> impl Future<Output = NetworkConfig> + Send;

    /// What the store says of this node. Waits until it is known, telling `board` what it waits for; a store that keeps
    /// nothing by node says nothing.
    fn own_node(&mut self, _board: &Board) -> impl Future<Output = OwnNode> + Send {
        std::future::ready(OwnNode::default())
    }

    /// Acquires this node's lease. Waits until it has one, telling `board` what it waits for.
    fn acquire(&mut self, request: Request, board: &Board)
    -> impl Future<Output = OwnLease> + Send;

    /// Keeps the lease alive and reports events until `events` is closed; publishes what `publish` changes to.
    /// Whatever happens to the store, it only returns when the receiver is gone.
    fn run(
        self,
        events: mpsc::Sender<Event>,
        publish: watch::Receiver<Attributes>,
        board: Board,
    ) -> impl Future<Output = ()> + Send;
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

    /// The lease under `key`, if it is another node's; `own` and `addresses` tell which are this node's.
    pub fn peer(
        &self,
        key: &str,
        own: &PerFamily<IpNet>,
        addresses: &PerFamily<IpAddr>,
    ) -> Option<&Lease> {
        peer(self.entries.get(key)?, own, addresses)
    }

    /// The leases of other nodes with their keys, in the order of those.
    pub fn peers(
        &self,
        own: &PerFamily<IpNet>,
        addresses: &PerFamily<IpAddr>,
    ) -> impl Iterator<Item = (&str, &Lease)> {
        self.entries
            .iter()
            .filter_map(move |(key, entry)| Some((key.as_str(), peer(entry, own, addresses)?)))
    }

    /// Entries that were not understood, with the reason.
    pub fn skipped(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries
            .iter()
            .filter_map(|(name, entry)| Some((name.as_str(), entry.as_ref().err()?.as_str())))
    }
}

/// The lease, if it is understood and another node's.
fn peer<'a>(
    entry: &'a Entry,
    own: &PerFamily<IpNet>,
    addresses: &PerFamily<IpAddr>,
) -> Option<&'a Lease> {
    let lease = entry.as_ref().ok()?;
    (lease.subnets != *own && !lease.attributes.is_of(addresses)).then_some(lease)
}

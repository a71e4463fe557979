//! What a test does to a store, and the nodes that it speaks of.

use std::{net::Ipv4Addr, time::Duration};

use flannel_agent::{
    family::PerFamily,
    lease::{
        Attributes, Lease, SubnetManager,
        value::{BackendData, Vtep},
    },
};
use flannel_common::addr::Mac;
use ipnet::IpNet;
use lab::{Cluster, LeaseStore};

use crate::support::{Outcome, PROMPT};

/// The network config of these tests.
pub(crate) const NETWORK: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
/// VXLAN network identifier of flannel's default.
const VNI: u32 = 1;

/// A node as its entry tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its name where nodes have names.
    pub(crate) name: String,
    pub(crate) subnet: IpNet,
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: Mac,
}

impl Entry {
    /// Peer number `number`, below 100, which is nobody's on the underlay.
    pub(crate) fn peer(number: u8) -> Self {
        Self {
            name: format!("peer{number}"),
            subnet: format!("10.5.{number}.0/24").parse().expect("a prefix"),
            address: Ipv4Addr::new(192, 168, 100, 100 + number),
            mac: Mac([0x0e, 0, 0, 0, 0, number]),
        }
    }

    /// The node that the tests run on: the first of a cluster.
    pub(crate) fn own() -> Self {
        Self {
            name: "n1".into(),
            subnet: "10.5.134.0/24".parse().expect("a prefix"),
            address: Ipv4Addr::new(192, 168, 100, 1),
            mac: Mac([0x0e, 0xde, 0xd4, 0x9c, 0x3c, 0xd8]),
        }
    }

    /// The same with another MAC.
    pub(crate) fn with_mac(self, mac: [u8; 6]) -> Self {
        Self {
            mac: Mac(mac),
            ..self
        }
    }

    /// Its name in etcd and in a file.
    pub(crate) fn key(&self) -> String {
        format!("{}-{}", self.subnet.network(), self.subnet.prefix_len())
    }

    pub(crate) fn attributes(&self) -> Attributes {
        Attributes {
            addresses: PerFamily::v4(self.address.into()),
            backend: BackendData::Vxlan(PerFamily::v4(Vtep {
                vni: Some(VNI),
                mac: self.mac,
            })),
        }
    }

    /// The lease that an agent is to make of it.
    pub(crate) fn lease(&self) -> Lease {
        Lease {
            subnets: PerFamily::v4(self.subnet),
            attributes: self.attributes(),
        }
    }
}

/// Who keeps this node's entry right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnEntry {
    /// The node publishes it, and publishes it again.
    Published,
    /// Somebody else; the node says what is wrong.
    Given,
}

/// A store with its subnet manager, as the tests need it. Nothing is in it but what a node of the store's kind needs to
/// start, and [`NETWORK`].
pub(crate) trait TestStore: Sized + Send + Sync + 'static {
    type Manager: SubnetManager;
    const NAME: &'static str;
    const OWN: OwnEntry;
    /// How soon a change of an entry is known, at the latest.
    const SEEN_WITHIN: Duration = PROMPT;
    /// The store of the same kind that the lab can give a whole cluster.
    const CLUSTER: LeaseStore;
    /// What a cluster must have for [`TestStore::make`]; a file costs nothing.
    const IN_CLUSTER: LeaseStore = LeaseStore::File;

    /// An empty store for node [`Entry::own`].
    fn make(cluster: &Cluster) -> anyhow::Result<Self>;

    /// A subnet manager of that node; called where tasks can be started.
    fn manager(&self) -> anyhow::Result<Self::Manager>;

    /// Options and variables by which an agent of that node uses the store.
    fn options(&self) -> (Vec<String>, Vec<(String, String)>);

    /// Replaces the network config by a text, or removes it.
    fn set_config(&self, text: Option<&str>) -> Outcome;

    /// Makes an entry, or changes it.
    fn put(&self, entry: &Entry) -> Outcome;

    /// Makes an entry say what nobody understands.
    fn spoil(&self, entry: &Entry) -> Outcome;

    fn remove(&self, entry: &Entry) -> Outcome;

    /// Makes the store unreachable for the node. Entries can be changed meanwhile.
    fn take_away(&self) -> Outcome;

    fn bring_back(&self) -> Outcome;

    /// What this node's entry says.
    fn own(&self) -> anyhow::Result<Option<Attributes>>;

    /// Makes this node's entry say something else of it.
    fn overwrite_own(&self, entry: &Entry) -> Outcome;

    /// Takes this node's entry away as far as the node's own doing goes.
    fn delete_own(&self) -> Outcome;

    /// A text that changes with every write to this node's entry.
    fn own_revision(&self) -> anyhow::Result<String>;
}

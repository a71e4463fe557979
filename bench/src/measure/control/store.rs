//! The stores that leases are in, each by its shortest way: starting `etcdctl` or `kubectl` would take longer than what is
//! measured.

use super::{
    etcd::Etcd,
    kube::Nodes,
    peers::{self, Peer},
};
use crate::testbed::Result;

/// A store of leases.
pub enum Store<'a> {
    /// etcd, in which other nodes are mere keys.
    Etcd(Box<Etcd>),
    /// The lab's API server, in which they are Node objects of full size.
    Kube(Nodes<'a>),
}

impl Store<'_> {
    /// Makes the leases exactly those of the first `count` nodes, and that of the node under measurement.
    ///
    /// # Errors
    /// If the store refuses.
    pub async fn fill(&mut self, count: u32) -> Result<()> {
        match self {
            Self::Etcd(etcd) => {
                etcd.delete_all().await?;
                etcd.put_all(&peers::all(count).collect::<Vec<_>>()).await
            }
            Self::Kube(nodes) => {
                nodes.fill(count);
                Ok(())
            }
        }
    }

    /// Writes these leases.
    ///
    /// # Errors
    /// If the store refuses.
    pub async fn put_all(&mut self, peers: &[Peer]) -> Result<()> {
        match self {
            Self::Etcd(etcd) => etcd.put_all(peers).await,
            Self::Kube(nodes) => {
                peers.iter().for_each(|peer| nodes.put(*peer));
                Ok(())
            }
        }
    }

    /// Writes one lease.
    ///
    /// # Errors
    /// If the store refuses.
    pub async fn put(&mut self, peer: Peer) -> Result<()> {
        match self {
            Self::Etcd(etcd) => etcd.put(peer).await,
            Self::Kube(nodes) => {
                nodes.put(peer);
                Ok(())
            }
        }
    }

    /// Requests that the store has answered so far, and watches that it has been asked for, by its own count.
    ///
    /// # Errors
    /// If it does not tell.
    pub fn requests(&self) -> Result<u64> {
        match self {
            Self::Etcd(etcd) => etcd.requests(),
            Self::Kube(nodes) => Ok(nodes.requests()),
        }
    }
}

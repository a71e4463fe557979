//! Leases into etcd, by a client of its own: starting `etcdctl` would take longer than what is measured.

use etcd_client::{Client, DeleteOptions, Txn, TxnOp};
use lab::etcd::PREFIX;

use super::peers::{self, Peer};
use crate::{
    testbed::{Error, Result},
    variants::Backend,
};

/// Operations of a transaction: etcd's own limit.
const TRANSACTION: usize = 128;

/// A connection to etcd.
pub struct Store {
    client: Client,
    backend: Backend,
}

impl Store {
    /// Connects, from the network namespace of the calling thread.
    ///
    /// # Errors
    /// If etcd does not answer.
    pub async fn connect(endpoint: &str, backend: Backend) -> Result<Self> {
        let client = Client::connect([endpoint], None).await.map_err(failed)?;
        Ok(Self { client, backend })
    }

    /// Makes the leases exactly those of the first `count` nodes.
    ///
    /// # Errors
    /// If etcd refuses.
    pub async fn fill(&mut self, count: u32) -> Result<()> {
        let options = DeleteOptions::new().with_prefix();
        let subnets = format!("{PREFIX}/subnets/");
        let deleted = self.client.delete(subnets, Some(options)).await;
        deleted.map_err(failed)?;
        let peers: Vec<Peer> = peers::all(count).collect();
        self.put_all(&peers).await
    }

    /// Writes these leases.
    ///
    /// # Errors
    /// If etcd refuses.
    pub async fn put_all(&mut self, peers: &[Peer]) -> Result<()> {
        for peers in peers.chunks(TRANSACTION) {
            let puts = peers.iter();
            let puts = puts.map(|peer| TxnOp::put(peer.key(), peer.value(self.backend), None));
            let transaction = Txn::new().and_then(puts.collect::<Vec<_>>());
            self.client.txn(transaction).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Writes one lease.
    ///
    /// # Errors
    /// If etcd refuses.
    pub async fn put(&mut self, peer: Peer) -> Result<()> {
        let put = self.client.put(peer.key(), peer.value(self.backend), None);
        put.await.map(drop).map_err(failed)
    }
}

fn failed(error: etcd_client::Error) -> Error {
    Error::Control(format!("etcd: {error}"))
}

//! Leases in etcd: keys and values.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use etcd_client::{Client, DeleteOptions, Txn, TxnOp};
use lab::etcd::PREFIX;

use super::peers::Peer;
use crate::{
    testbed::{Error, Result},
    variants::Backend,
};

/// Operations of a transaction: etcd's own limit.
const TRANSACTION: usize = 128;

/// A connection to etcd.
pub struct Etcd {
    client: Client,
    endpoint: String,
    backend: Backend,
}

impl Etcd {
    /// Connects, from the network namespace of the calling thread.
    ///
    /// # Errors
    /// If etcd does not answer.
    pub async fn connect(endpoint: String, backend: Backend) -> Result<Self> {
        let client = Client::connect([&endpoint], None).await.map_err(failed)?;
        Ok(Self {
            client,
            endpoint,
            backend,
        })
    }

    /// Deletes all leases.
    ///
    /// # Errors
    /// If etcd refuses.
    pub async fn delete_all(&mut self) -> Result<()> {
        let options = DeleteOptions::new().with_prefix();
        let subnets = format!("{PREFIX}/subnets/");
        let deleted = self.client.delete(subnets, Some(options)).await;
        deleted.map(drop).map_err(failed)
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

    /// Requests that it has answered so far, and watches that it has been asked for, by its own count.
    ///
    /// # Errors
    /// If it does not tell.
    pub fn requests(&self) -> Result<u64> {
        let failed = |error: std::io::Error| Error::Control(format!("metrics of etcd: {error}"));
        let address = self.endpoint.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).map_err(failed)?;
        stream
            .write_all(format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())
            .map_err(failed)?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(failed)?;
        Ok(count_requests(&text))
    }
}

fn failed(error: etcd_client::Error) -> Error {
    Error::Control(format!("etcd: {error}"))
}

/// The sum of `grpc_server_started_total` of etcd's key-value, lease and watch services.
fn count_requests(metrics: &str) -> u64 {
    metrics
        .lines()
        .filter(|line| line.starts_with("grpc_server_started_total{"))
        .filter(|line| {
            [
                "etcdserverpb.KV",
                "etcdserverpb.Lease",
                "etcdserverpb.Watch",
            ]
            .iter()
            .any(|service| line.contains(&format!("grpc_service=\"{service}\"")))
        })
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum::<f64>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_three_services_count() {
        let metrics = "\
# TYPE grpc_server_started_total counter
grpc_server_started_total{grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 7
grpc_server_started_total{grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"} 1
grpc_server_started_total{grpc_method=\"MemberList\",grpc_service=\"etcdserverpb.Cluster\",grpc_type=\"unary\"} 9
grpc_server_handled_total{grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 7
";
        assert_eq!(count_requests(metrics), 8);
    }
}

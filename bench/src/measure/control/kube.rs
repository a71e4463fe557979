//! Leases in the Kubernetes API: Node objects of full size, in the lab's API server.
//!
//! The server is a thread of this process, so that what it needs is no part of what is counted for the agent. It is
//! changed without a request: what is measured begins when it has the change.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use lab::kube::{
    lease,
    mock::{self, ApiServer, Interrupt, Kind},
};
use serde_json::{Value, json};

use super::peers::{self, Peer};
use crate::{testbed::Result, variants::Backend};

/// The other nodes in an API server.
pub struct Nodes<'a> {
    server: &'a ApiServer,
    backend: Backend,
    /// Heartbeats so far: each is another than all before.
    beats: u64,
}

impl<'a> Nodes<'a> {
    /// Those of a server that may have some already.
    pub fn new(server: &'a ApiServer, backend: Backend) -> Self {
        Self {
            server,
            backend,
            beats: 0,
        }
    }

    /// Makes them exactly the first `count`.
    pub fn fill(&self, count: u32) {
        peers::all(count).for_each(|peer| self.put(peer));
        for number in count.. {
            if !self.server.delete_node(&name(number)) {
                break;
            }
        }
    }

    /// Writes a Node object with its lease.
    pub fn put(&self, peer: Peer) {
        self.server.put_node(object(peer, self.backend));
    }

    /// Changes in a Node object what kubelet changes all the time, and not its lease.
    ///
    /// # Errors
    /// If there is none.
    pub fn beat(&mut self, peer: Peer) -> Result<()> {
        self.beats += 1;
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(self.beats);
        let time = humantime::format_rfc3339_seconds(time).to_string();
        self.server.change_node(&name(peer.number), |node| {
            let conditions = node["status"]["conditions"].as_array_mut();
            for condition in conditions.into_iter().flatten() {
                condition["lastHeartbeatTime"] = time.as_str().into();
            }
        })?;
        Ok(())
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.server.requests().len() as u64
    }

    /// Makes the agent list all Nodes anew: its watch ends as one does whose past is forgotten (410). Returns when it has
    /// read the list and watches again.
    ///
    /// # Errors
    /// If it does not.
    pub fn list_anew(&self) -> Result<()> {
        let watches = self.server.count(Kind::Watch);
        self.server.interrupt_watches(Interrupt::Expired);
        // It watches when it has reported what was listed.
        self.server.wait_requests(Kind::Watch, watches + 1)?;
        Ok(())
    }
}

/// A name as long as a cloud's.
fn name(number: u32) -> String {
    format!("node-{number:05}.eu-central-1.compute.internal")
}

/// The Node object of a node that stock flannel has annotated.
fn object(peer: Peer, backend: Backend) -> Value {
    let (name, subnet) = (name(peer.number), peer.subnet().to_string());
    let mut node = mock::node(&name, &[IpAddr::V4(peer.address(backend))], &[&subnet]);
    let value = serde_json::from_str(&peer.value(backend)).unwrap_or_default();
    let annotations = &mut node["metadata"]["annotations"];
    for (name, value) in lease::annotations(&value) {
        annotations[name] = json!(value);
    }
    node
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_of_full_size_and_have_the_leases_that_etcd_has() {
        for backend in [Backend::Vxlan, Backend::HostGw] {
            let peer = Peer {
                number: 4_711,
                changed: 3,
            };
            let node = object(peer, backend);
            assert_eq!(
                lease::lease(&node).unwrap(),
                Some(peer.lease(backend).unwrap())
            );
            let size = node.to_string().len();
            assert!((10_000..15_000).contains(&size), "{size}");
        }
    }
}

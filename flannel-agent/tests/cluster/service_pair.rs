//! A client on one node, a server on another: what tests of single flows are about.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, bail};
use lab::{
    ClusterConfig, Node, Pod,
    services::{self, Service},
    traffic::{
        rtt::Transport,
        whoami::{Questioner, WhoAmI},
    },
};

use crate::legs::{Count, Legs};
use crate::support::{Outcome, Path, shell, with_cluster};

/// The cluster address of the service under test; no filler has it.
const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 200, 1), 80);
/// Services beside it.
const FILLERS: usize = 20;
/// The server's port.
const PORT: u16 = 8080;
/// The port of a second server in the same pod.
const SECOND_PORT: u16 = 8081;

/// After so long conntrack calls an answered UDP flow assured.
pub(crate) const ASSURED: Duration = Duration::from_millis(2500);

/// The two pods, their nodes, and the servers.
pub(crate) struct Pair<'a> {
    pub(crate) client_node: &'a Node,
    pub(crate) server_node: &'a Node,
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    /// What answers at [`Pair::second`].
    pub(crate) second_server: WhoAmI,
    _server: WhoAmI,
}

impl<'a> Pair<'a> {
    /// Starts the servers.
    pub(crate) fn of(nodes: [&'a Node; 2], client: Pod, server: Pod) -> anyhow::Result<Self> {
        Ok(Self {
            client_node: nodes[0],
            server_node: nodes[1],
            client,
            _server: WhoAmI::start(server.netns(), "first", PORT)?,
            second_server: WhoAmI::start(server.netns(), "second", SECOND_PORT)?,
            server,
        })
    }

    /// The server's own address.
    pub(crate) fn direct(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.server.address(), PORT)
    }

    /// That of the second server.
    pub(crate) fn second(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.server.address(), SECOND_PORT)
    }

    /// The address of the service in front of the server.
    pub(crate) fn service(&self) -> SocketAddrV4 {
        SERVICE
    }

    /// Client's and server's.
    pub(crate) fn nodes(&self) -> [&'a Node; 2] {
        [self.client_node, self.server_node]
    }

    /// Opens a flow from the client.
    pub(crate) fn open(
        &self,
        to: SocketAddrV4,
        transport: Transport,
        port: u16,
        limit: Duration,
    ) -> anyhow::Result<Questioner> {
        let netns = self.client.netns();
        Ok(Questioner::open(netns, to, transport, port, limit)?)
    }

    /// Loads kube-proxy's rules on both nodes, as every node has them.
    pub(crate) fn install_service(&self) -> Outcome {
        let mut all = services::filler(FILLERS);
        let service = Service::new("echo", SERVICE, vec![self.direct()]);
        all.push(service.clone().udp());
        all.push(service);
        for node in self.nodes() {
            services::install(node.netns(), &all)?;
        }
        Ok(())
    }

    /// Makes both nodes forget all connections of a protocol.
    pub(crate) fn forget(&self, protocol: &str) -> Outcome {
        for node in self.nodes() {
            // Fails when there is nothing to delete.
            shell(
                node,
                &format!("conntrack -D -p {protocol} >/dev/null 2>&1 || true"),
            )?;
        }
        Ok(())
    }

    /// What both nodes have counted.
    pub(crate) fn count(&self) -> anyhow::Result<Count> {
        Count::of(self.nodes())
    }

    /// Asserts which legs have carried packets since `before`.
    pub(crate) fn assert_legs(&self, path: Path, before: &Count, expected: Legs) -> Outcome {
        before.assert_legs(self.nodes(), path, expected)
    }
}

/// Runs a test with two nodes and a pod on each.
pub(crate) fn with_pair(config: ClusterConfig, test: impl FnOnce(&Pair<'_>) -> Outcome) -> Outcome {
    with_cluster(config, |cluster| {
        let [client_node, server_node] = cluster.nodes() else {
            bail!("two nodes were asked for");
        };
        let pod = |node: &Node| node.pods().first().cloned().context("a node without a pod");
        let nodes: [&Node; 2] = [client_node, server_node];
        test(&Pair::of(nodes, pod(client_node)?, pod(server_node)?)?)
    })
}

//! The ways in which traffic reaches a pod, and where each is fast: the README's table, and what [`crate::services`]
//! asserts of every line of it.

mod table;

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::ensure;
use lab::{Node, Pod};

use crate::support::{Backend, Outcome, Setting};
pub(crate) use table::TABLE;

/// The port that every server listens on.
pub(crate) const PORT: u16 = 8080;
/// Further ports of the far pod: what goes there is masqueraded at the client's node, or at the server's.
pub(crate) const MASQUERADED_AT_CLIENT: u16 = 8081;
pub(crate) const MASQUERADED_AT_SERVER: u16 = 8082;
/// The port of services, and of the addresses that are translated without one.
pub(crate) const SERVICE_PORT: u16 = 80;
/// A port of the far pod that its node translates.
pub(crate) const TRANSLATED_PORT: u16 = 81;

/// Services by their cluster addresses.
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 1);
pub(crate) const NEAR: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 2);
pub(crate) const ITSELF: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 3);
pub(crate) const LOCAL: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 4);
pub(crate) const STICKY: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 5);
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 6);
/// With `internalTrafficPolicy: Local`, and a pod on each node.
pub(crate) const INTERNAL: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 7);
/// The same with a pod on the second node alone.
pub(crate) const INTERNAL_FAR: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 8);
/// With a load balancer that is for pods alone.
pub(crate) const RESTRICTED_CLUSTER: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 9);

/// The ports that nodes open for services.
pub(crate) const FAR_NODE_PORT: u16 = 30001;
pub(crate) const NEAR_NODE_PORT: u16 = 30002;
pub(crate) const LOCAL_NODE_PORT: u16 = 30004;

/// Addresses that others lead to the nodes: of the far service, and of the local one's load balancer.
pub(crate) const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub(crate) const BALANCED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 4);
/// That of a load balancer that pods alone may use.
pub(crate) const RESTRICTED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);
/// One that is translated at the client's node without a service.
pub(crate) const TRANSLATED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

/// Ports that nodes open for pods.
pub(crate) const CLIENT_HOST_PORT: u16 = 31001;
pub(crate) const NEAR_HOST_PORT: u16 = 31002;
pub(crate) const FAR_HOST_PORT: u16 = 31003;

/// Two nodes with two pods each, and a machine that is no node. Each runs a server of that name.
pub(crate) struct World<'a> {
    /// The client's node.
    pub(crate) node1: &'a Node,
    /// The other.
    pub(crate) node2: &'a Node,
    /// A machine outside of the cluster.
    pub(crate) outside: &'a Node,
    /// The client, on the first node.
    pub(crate) client: Pod,
    /// The pod beside it.
    pub(crate) near: Pod,
    /// A pod of the second node.
    pub(crate) far: Pod,
    /// The pod beside that.
    pub(crate) other: Pod,
    /// An address of the second node's subnet that no pod has.
    pub(crate) unused: Ipv4Addr,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// The first node's pod.
    Pod,
    /// The first node itself.
    Node,
    /// A machine outside of the cluster.
    Outside,
}

/// Whom the server sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sees {
    /// The client's own address.
    Client,
    /// The address of a node that has masqueraded the client.
    Node,
}

/// Whether a flow is fast at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Always,
    Never,
    /// With VXLAN, where a node masquerades by an address of its own subnet. With host-gw it does by its address on the
    /// wire, which is no pod's.
    Vxlan,
}

impl When {
    pub(crate) fn holds(self, backend: Backend) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Vxlan => backend == Backend::Vxlan,
        }
    }

    fn readme(self) -> &'static str {
        match self {
            Self::Always => "yes",
            Self::Never => "no",
            Self::Vxlan => "with VXLAN",
        }
    }
}

/// A line of the README's table.
pub(crate) struct Row {
    pub(crate) traffic: &'static str,
    /// Whether it is fast at the client's node, and at the server's.
    pub(crate) fast: [When; 2],
    pub(crate) cases: &'static [Case],
}

/// A way to a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) from: From,
    pub(crate) to: fn(&World<'_>) -> SocketAddrV4,
    /// Who may answer.
    pub(crate) servers: &'static [&'static str],
    pub(crate) sees: Sees,
    /// Whether it works only where bridged packets meet netfilter, which answers between pods of one node must.
    pub(crate) bridged: bool,
}

/// The README has the table that is asserted.
pub(crate) fn readme_has_the_table(_: Setting) -> Outcome {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"))?;
    let mut table =
        "| traffic | fast at the client's node | fast at the server's node |\n|---|---|---|\n"
            .to_owned();
    for row in TABLE {
        let [client, server] = row.fast.map(When::readme);
        table += &format!("| {} | {client} | {server} |\n", row.traffic);
    }
    ensure!(
        readme.contains(&table),
        "README.md lacks this table:\n{table}"
    );
    Ok(())
}

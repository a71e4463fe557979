//! Networks in which some nodes are reached by the tunnel and others by a route (`DirectRouting`).

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::{
    ClusterConfig, Node,
    traffic::rtt::{EchoServer, Transport, round_trips},
};

use crate::pair::counters;
use crate::support::{Outcome, Path, Setting, udp_arrives, with_cluster};

/// Round trips of one check.
const TRIPS: usize = 2000;
/// One round trip in so many may take the kernel's path: handshake, end, the kernel being asked.
const TOLERANCE: u64 = 10;
/// How long a request may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Datagrams beside.
const PACKETS: u64 = 500;

/// Nodes of one segment reach each other without the tunnel, those behind the router by it, in one network and at the
/// same time; each as fast as if there were no other.
pub(crate) fn direct_and_tunnelled_peers_mix(setting: Setting) -> Outcome {
    let config = ClusterConfig {
        network: r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#
            .into(),
        ..setting.cluster(vec![
            setting.node(),
            setting.node(),
            setting.node().routed(),
        ])
    };
    with_cluster(config, |cluster| {
        let [near, other, far] = [1, 2, 3].map(|number| &**cluster.node(number));
        for (from, to, via) in [
            (near, other, "direct"),
            (near, far, "vxlan"),
            (far, other, "vxlan"),
            (other, near, "direct"),
        ] {
            carried(setting, from, to, via)
                .with_context(|| format!("from {} to {}", from.name(), to.name()))?;
        }
        Ok(())
    })
}

fn carried(setting: Setting, from: &Node, to: &Node, via: &str) -> Outcome {
    let subnet = to.subnet_env()?.subnet.to_string();
    let peers = from.agent().status()?.peers;
    let peer = peers.iter().find(|peer| peer.subnet == subnet);
    ensure!(peer.is_some_and(|peer| peer.via == via), "{peers:?}");

    let (client, server) = (&from.pods()[0], &to.pods()[0]);
    udp_arrives(client, server, PACKETS, 64)?;
    let echo = EchoServer::start(server.netns())?;
    let address = SocketAddr::new(server.address().into(), echo.port());
    let before = (counters(from)?, counters(to)?);
    round_trips(client, address, Transport::Tcp, TRIPS, 1000, LIMIT)?;
    let sent = counters(from)?.since(&before.0);
    let received = counters(to)?.since(&before.1);
    let fast = [
        sent.fast_egress,
        received.fast_ingress,
        received.fast_egress,
        sent.fast_ingress,
    ];
    let least = match setting.path {
        Path::Kernel => 0,
        Path::Fast | Path::Flow => TRIPS as u64 - TRIPS as u64 / TOLERANCE,
    };
    let holds = fast
        .iter()
        .all(|leg| *leg >= least && (least > 0 || *leg == 0));
    ensure!(
        holds,
        "fast packets by leg {fast:?}: {sent:?}, {received:?}"
    );
    Ok(())
}

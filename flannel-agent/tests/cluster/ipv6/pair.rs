//! Two nodes with a pod each that have both families, and a flow of datagrams between them.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lab::{
    Cluster, ClusterConfig, Node, Pod, Underlay,
    counters::Protocols,
    status::Counters,
    traffic::{Host as _, OverIpv6},
};

use crate::pair::{counters, first_pod};
use crate::support::{Backend, Outcome, Path, Setting, with_cluster};

/// After so long conntrack calls an answered flow assured (`nf_conntrack_udp_packet`), and some time to spare.
const ASSURED: Duration = Duration::from_millis(2_500);
/// Counters of a pod that grow when segments arrive in another order than they were sent, or altered.
pub(super) const WRONG: [&str; 3] = [
    "TcpExt.TCPOFOQueue",
    "TcpExt.TCPSACKReorder",
    "Tcp.InCsumErrors",
];

/// Two nodes with a pod each, which have both families.
pub(super) struct Pair<'a> {
    pub(super) nodes: [&'a Node; 2],
    pub(super) pods: [Pod; 2],
    pub(super) ends: [OverIpv6; 2],
}

impl<'a> Pair<'a> {
    pub(super) fn of(cluster: &'a Cluster) -> anyhow::Result<Self> {
        let nodes: [&Node; 2] = [cluster.node(1), cluster.node(2)];
        let pods = [first_pod(nodes[0])?, first_pod(nodes[1])?];
        let end = |pod: &Pod| OverIpv6::pod(pod).context("a pod without IPv6");
        let ends = [end(&pods[0])?, end(&pods[1])?];
        Ok(Self { nodes, pods, ends })
    }

    pub(super) fn counters(&self) -> anyhow::Result<[Counters; 2]> {
        Ok([counters(self.nodes[0])?, counters(self.nodes[1])?])
    }

    pub(super) fn since(&self, before: &[Counters; 2]) -> anyhow::Result<[Counters; 2]> {
        let now = self.counters()?;
        Ok([now[0].since(&before[0]), now[1].since(&before[1])])
    }

    pub(super) fn wrong(&self) -> anyhow::Result<[[i64; 3]; 2]> {
        let of = |pod: &Pod| -> anyhow::Result<[i64; 3]> {
            let counters = Protocols::read(pod.netns())?;
            Ok(WRONG.map(|name| counters.get(name)))
        };
        Ok([of(&self.pods[0])?, of(&self.pods[1])?])
    }
}

pub(super) fn config(setting: Setting, offloads: bool, arguments: &[&str]) -> ClusterConfig {
    let backend = match setting.backend {
        Backend::Vxlan => "vxlan",
        Backend::HostGw => "host-gw",
    };
    let nftables = setting.mark && setting.backend == Backend::Vxlan;
    let mut agent = setting.agent();
    agent
        .arguments
        .extend(arguments.iter().map(|&it| it.into()));
    let node = || lab::NodeConfig::agent(&agent);
    ClusterConfig {
        network: format!(
            r#"{{"EnableIPv6":true,"EnableNFTables":{nftables},"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{{"Type":"{backend}"}}}}"#
        ),
        underlay: Underlay {
            offloads,
            ..Underlay::default()
        },
        ..setting.cluster(vec![node(), node()])
    }
}

pub(super) fn with_pair(
    setting: Setting,
    offloads: bool,
    arguments: &[&str],
    test: impl FnOnce(&Pair<'_>) -> Outcome,
) -> Outcome {
    with_cluster(config(setting, offloads, arguments), |cluster| {
        let pair = Pair::of(cluster)?;
        for (node, end) in pair.nodes.iter().zip(&pair.ends) {
            if setting.path != Path::Kernel {
                wait_served(node, end)?;
            }
        }
        test(&pair)
    })
}

/// Waits until the fast path of a node serves a pod's IPv6 address.
pub(super) fn wait_served(node: &Node, end: &OverIpv6) -> Outcome {
    node.agent().wait_status("a fast path for IPv6", |status| {
        let address = end.ip().to_string();
        let mut pods = status.fast_path.pods.iter();
        pods.any(|pod| pod.ip == address && pod.problem.is_none())
    })?;
    Ok(())
}

/// Questions by one datagram each, from one port.
pub(super) struct Asked(UdpSocket);

impl Asked {
    pub(super) fn open(from: &OverIpv6, to: SocketAddr) -> anyhow::Result<Self> {
        /// An answer that has not come by then does not come.
        const SILENCE: Duration = Duration::from_millis(300);
        let socket = from.netns().run(|| UdpSocket::bind((from.ip(), 0)))??;
        socket.connect(to)?;
        socket.set_read_timeout(Some(SILENCE))?;
        Ok(Self(socket))
    }

    pub(super) fn ask(&self) -> Outcome {
        let mut answer = [0; 8];
        self.0.send(b"question")?;
        let length = self.0.recv(&mut answer)?;
        ensure!(answer[..length] == *b"question", "altered: {answer:?}");
        Ok(())
    }

    /// Asks until conntrack calls the flow assured.
    pub(super) fn until_assured(&self) -> Outcome {
        let start = Instant::now();
        while start.elapsed() < ASSURED {
            self.ask()?;
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

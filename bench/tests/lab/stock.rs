//! Stock nodes of every kind, alone: pods and nodes reach each other in each family, and leases are upstream's.

use std::net::IpAddr;

use lab::{
    Cluster, ClusterConfig, Node, NodeConfig, Result,
    stock::missing,
    traffic::{
        Host, OverIpv6,
        rtt::{EchoServer, Transport, round_trips},
        tcp::{self, TcpPlan},
        tools::{self, PingPlan},
        udp::{self, UdpPlan},
    },
};

use crate::cluster;

const IPIP: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"ipip"}}"#;
const VXLAN_DUAL: &str = r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;

pub(crate) fn vxlan_dual() -> Result<()> {
    let nodes = vec![
        NodeConfig::stock(),
        NodeConfig::stock(),
        NodeConfig::stock().routed(),
    ];
    let cluster = start(VXLAN_DUAL, nodes)?;
    all_reach_all(&cluster, true)?;
    let node = cluster.node(1);
    let links = show(node, "ip -details link show type vxlan")?;
    // What the kernel makes of the 1450 bytes that upstream asks for.
    assert!(
        links.contains("flannel.1: ") && links.contains("mtu 1450"),
        "{links}"
    );
    assert!(
        links.contains("flannel-v6.1: ") && links.contains("mtu 1430"),
        "{links}"
    );
    assert!(
        links.contains("local fd00:100::1 dev eth0 srcport 0 0 dstport 8472 nolearning"),
        "{links}"
    );
    Ok(())
}

pub(crate) fn direct_routing() -> Result<()> {
    let network = VXLAN_DUAL.replace("\"vxlan\"", "\"vxlan\",\"DirectRouting\":true");
    let nodes = vec![
        NodeConfig::stock(),
        NodeConfig::stock(),
        NodeConfig::stock().routed(),
    ];
    let cluster = start(&network, nodes)?;
    all_reach_all(&cluster, true)?;
    let routes = show(cluster.node(1), "ip route show; ip -6 route show")?;
    for via in ["via 192.168.100.2 dev eth0", "via fd00:100::2 dev eth0"] {
        assert!(routes.contains(via), "{routes}");
    }
    let tunnelled = |device: &str| {
        let of = format!("dev {device} ");
        let lines = routes.lines().filter(|line| line.contains("onlink"));
        lines.filter(|line| line.contains(&of)).count()
    };
    assert_eq!(
        (tunnelled("flannel.1"), tunnelled("flannel-v6.1")),
        (1, 1),
        "{routes}"
    );
    Ok(())
}

pub(crate) fn host_gw_dual() -> Result<()> {
    let network = VXLAN_DUAL.replace("vxlan", "host-gw");
    let cluster = start(&network, vec![NodeConfig::stock(), NodeConfig::stock()])?;
    all_reach_all(&cluster, true)
}

pub(crate) fn udp() -> Result<()> {
    let network = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#;
    let nodes = vec![
        NodeConfig::stock(),
        NodeConfig::stock(),
        NodeConfig::stock().routed(),
    ];
    let cluster = start(network, nodes)?;
    all_reach_all(&cluster, false)?;
    let device = show(cluster.node(1), "ip -details address show flannel0")?;
    assert!(
        device.contains("mtu 1472") && device.contains("tun type tun"),
        "{device}"
    );
    Ok(())
}

/// Whether the kernel has no such devices.
pub(crate) fn lacks_ipip() -> bool {
    let reason = missing(IPIP).ok().flatten();
    if let Some(reason) = &reason {
        println!("skipped: stock_ipip_nodes_reach_each_other: {reason}");
    }
    reason.is_some()
}

pub(crate) fn ipip() -> Result<()> {
    let cluster = start(IPIP, vec![NodeConfig::stock(), NodeConfig::stock()])?;
    all_reach_all(&cluster, false)
}

pub(crate) fn leases_are_upstreams() -> Result<()> {
    let cluster = start(VXLAN_DUAL, vec![NodeConfig::stock()])?;
    let found = cluster.etcd().get_prefix("/coreos.com/network/subnets/")?;
    let expected = (
        "/coreos.com/network/subnets/10.5.255.0-24&fd00:5:0:ffff::-64".to_owned(),
        r#"{"PublicIP":"192.168.100.1","PublicIPv6":"fd00:100::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:de:d4:9c:3c:01"},"BackendV6Data":{"VNI":1,"VtepMAC":"0e:de:d4:9c:3d:01"}}"#.to_owned(),
    );
    assert_eq!(found, [expected]);
    assert_eq!(cluster.node(1).stock().key()?, found[0].0);
    Ok(())
}

fn start(network: &str, nodes: Vec<NodeConfig>) -> Result<Cluster> {
    Cluster::start(ClusterConfig {
        network: network.to_owned(),
        ..cluster(nodes, 1)
    })
}

fn show(node: &Node, command: &str) -> Result<String> {
    lab::process::run(Some(node.netns()), "sh", &["-c", command])
}

/// Pods reach pods of other nodes by ICMP, UDP and TCP, and nodes reach them; in both families if there are two.
fn all_reach_all(cluster: &Cluster, dual: bool) -> Result<()> {
    for from in cluster.nodes() {
        for to in cluster.nodes() {
            if from.number() == to.number() {
                continue;
            }
            let (source, target) = (&from.pods()[0], &to.pods()[0]);
            reaches(source, target)?;
            answers(from.netns(), Host::ip(target))?;
            if dual {
                let over6 = |pod| OverIpv6::pod(pod).expect("a pod of a dual-stack network");
                reaches(&over6(source), &over6(target))?;
                let node = OverIpv6::node(from).expect("a node of a dual-stack cluster");
                answers(node.netns(), over6(target).ip())?;
            }
        }
    }
    Ok(())
}

fn answers(from: &lab::Netns, to: IpAddr) -> Result<()> {
    let report = tools::ping(from, to, PingPlan::default())?;
    assert_eq!(report.received, 1, "ping from {} to {to}", from.name());
    Ok(())
}

fn reaches(from: &dyn Host, to: &dyn Host) -> Result<()> {
    answers(from.netns(), to.ip())?;
    let plan = UdpPlan {
        packets: 100,
        rate: 2000,
        size: 900,
    };
    let report = udp::run(from, to, plan)?;
    let way = format!("{} to {}", from.netns().name(), to.ip());
    assert_eq!((report.sent, report.lost), (100, 0), "{way}: {report:?}");
    let source = report.source.expect("packets arrived").ip();
    assert_eq!(source, from.ip(), "{way}: nobody translates");
    let plan = TcpPlan {
        bytes: 500_000,
        rate: None,
    };
    let report = tcp::run(from, to, plan)?;
    assert!(
        report.is_intact() && report.received > 0,
        "{way}: {report:?}"
    );
    let echo = EchoServer::start_for(to.netns(), to.ip())?;
    let address = (to.ip(), echo.port()).into();
    round_trips(
        from,
        address,
        Transport::Udp,
        3,
        100,
        lab::wait::patient(std::time::Duration::from_secs(2)),
    )?;
    Ok(())
}

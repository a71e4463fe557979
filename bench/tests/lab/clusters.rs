//! Clusters of stock nodes, which need no agent, and the life of an agent.

use std::{fs, path::Path};

use lab::{AgentConfig, Cluster, ClusterConfig, NodeConfig, Result, Underlay, process, state};

use crate::{AGENT_VARIABLE, all_reach_all, cluster, ping};

fn host_gw() -> String {
    r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#.to_owned()
}

pub(crate) fn stock_vxlan() -> Result<()> {
    let nodes = vec![
        NodeConfig::stock(),
        NodeConfig::stock(),
        NodeConfig::stock().routed(),
    ];
    all_reach_all(&Cluster::start(cluster(nodes, 2))?)
}

pub(crate) fn stock_host_gw() -> Result<()> {
    let config = cluster(vec![NodeConfig::stock(), NodeConfig::stock()], 1);
    let cluster = Cluster::start(ClusterConfig {
        network: host_gw(),
        services: 200,
        ..config
    })?;
    all_reach_all(&cluster)?;
    let rules = process::run(Some(cluster.node(1).netns()), "iptables-save", &[])?;
    assert_eq!(rules.matches("-A KUBE-SERVICES -d").count(), 200, "{rules}");
    let jumps = rules
        .lines()
        .filter(|line| line.starts_with("-A POSTROUTING"))
        .collect::<Vec<_>>();
    assert!(
        jumps[0].ends_with("KUBE-POSTROUTING") && jumps[1].ends_with("FLANNEL-POSTRTG"),
        "{jumps:?}"
    );
    Ok(())
}

pub(crate) fn stock_follows_leases() -> Result<()> {
    let mut cluster = Cluster::start(cluster(vec![NodeConfig::stock()], 1))?;
    let second = cluster.add_node(&NodeConfig::stock())?;
    let pod = second.add_pod()?;
    let first = cluster.node(1).pods()[0].clone();
    ping(first.netns(), &pod, &[])?;

    second.stock().expire()?;
    cluster.node(1).stock().refresh()?;
    let show = |command: &str| process::run(Some(cluster.node(1).netns()), "sh", &["-c", command]);
    for command in [
        "ip route show dev flannel.1",
        "bridge fdb show dev flannel.1",
        "ip neighbour show dev flannel.1",
    ] {
        assert_eq!(show(command)?, "", "{command} after the only peer has gone");
    }
    assert!(ping(first.netns(), &pod, &[]).is_err());

    let third = cluster.add_node(&NodeConfig::stock())?;
    assert_eq!((third.number(), cluster.etcd().leases()?.len()), (3, 2));
    let pod = third.add_pod()?;
    ping(first.netns(), &pod, &[])?;
    cluster.remove_node(3)?;
    assert!(!third.netns().path().exists() && !pod.netns().path().exists());
    assert!(ping(first.netns(), &pod, &[]).is_err());
    assert_eq!(
        cluster.etcd().leases()?.len(),
        2,
        "the lease of a node without power stays"
    );
    Ok(())
}

pub(crate) fn without_offloads() -> Result<()> {
    let config = cluster(vec![NodeConfig::stock(), NodeConfig::stock()], 1);
    let underlay = Underlay {
        offloads: false,
        mtu: 1400,
    };
    let cluster = Cluster::start(ClusterConfig { underlay, ..config })?;
    let (from, to) = (&cluster.node(1).pods()[0], &cluster.node(2).pods()[0]);
    // 1400 less 50 for VXLAN, 20 for IPv4 and 8 for ICMP.
    ping(from.netns(), to, &["-M", "do", "-s", "1322"])?;
    assert!(ping(from.netns(), to, &["-M", "do", "-s", "1323"]).is_err());
    let features = process::run(Some(cluster.node(1).netns()), "ethtool", &["-k", "eth0"])?;
    assert!(
        features.contains("tcp-segmentation-offload: off"),
        "{features}"
    );
    Ok(())
}

pub(crate) fn side_by_side() -> Result<()> {
    let nodes = || cluster(vec![NodeConfig::stock(), NodeConfig::stock()], 1);
    let clusters = lab::cluster::in_parallel(&[(), ()], |()| Cluster::start(nodes()))?;
    let ids = [clusters[0].id(), clusters[1].id()];
    assert_ne!(ids[0], ids[1]);
    clusters.iter().try_for_each(all_reach_all)?;

    let namespaces: Vec<_> = clusters
        .iter()
        .flat_map(|cluster| cluster.nodes())
        .map(|node| node.netns().path().to_owned())
        .collect();
    assert!(namespaces.iter().all(|path| path.exists()));
    drop(clusters);
    for path in namespaces {
        assert!(!path.exists(), "{} is left", path.display());
    }
    for id in ids {
        assert!(!id.directory().exists() && !id.pin_directory().exists());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        assert!(
            !mounts.contains(&format!("/{} ", id.namespace("sw"))),
            "{mounts}"
        );
    }
    Ok(())
}

pub(crate) fn pods_come_and_go() -> Result<()> {
    let cluster = Cluster::start(cluster(vec![NodeConfig::stock(), NodeConfig::stock()], 1))?;
    let node = cluster.node(1);
    let pod = node.add_pod()?;
    assert_eq!(node.pods().len(), 2);
    assert!(node.subnet_env()?.subnet.contains(pod.address()));
    ping(cluster.node(2).pods()[0].netns(), &pod, &[])?;
    let (path, device) = (
        pod.netns().path().to_owned(),
        pod.attachment().host_device.clone(),
    );
    assert!(process::run(Some(node.netns()), "ip", &["link", "show", &device]).is_ok());
    node.delete_pod(pod)?;
    assert!(!path.exists());
    assert!(process::run(Some(node.netns()), "ip", &["link", "show", &device]).is_err());
    assert!(
        Path::new(state::DIRECTORY).exists(),
        "the cluster is still there"
    );
    Ok(())
}

pub(crate) fn agent_lifecycle() -> Result<()> {
    let config =
        AgentConfig::new(std::env::var_os(AGENT_VARIABLE).expect("tests without it are skipped"));
    let nodes = vec![NodeConfig::agent(&config), NodeConfig::stock()];
    let cluster = Cluster::start(cluster(nodes, 1))?;
    all_reach_all(&cluster)?;
    let agent = cluster.node(1).agent();
    let first = agent.status()?;
    assert_eq!((first.ready, first.peers.len()), (true, 1));
    let lease = first.lease.expect("a ready agent has a lease");
    assert_eq!(
        lease.subnet.parse::<lab::lease::Subnet>()?,
        cluster.node(1).subnet_env()?.subnet
    );

    agent.kill()?;
    assert!(agent.check_running().is_err() && agent.status().is_err());
    all_reach_all(&cluster)?;
    agent.start()?;
    let second = agent.wait_ready()?;
    assert_ne!(second.pid, first.pid);
    assert_eq!(
        second.lease.map(|lease| lease.subnet),
        Some(lease.subnet),
        "the lease is taken over"
    );

    agent.stop()?;
    agent.configure(|config| config.arguments.push("--no-such-option".to_owned()));
    agent.start()?;
    let error = agent
        .wait_ready()
        .expect_err("no agent knows this option")
        .to_string();
    assert!(
        error.contains("no-such-option"),
        "the error shows the log: {error}"
    );
    assert!(agent.log().contains("no-such-option"));
    Ok(())
}

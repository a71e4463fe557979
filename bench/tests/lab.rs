//! The lab itself: clusters of stock nodes alone, and what is left when they go.

use std::{fs, path::Path, process::ExitCode};

use lab::{
    Cluster, ClusterConfig, Netns, NodeConfig, Pod, Result, Underlay, process, signals, state,
};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    signals::tear_down_on_signals(signals::exit_code).expect("signal handlers can be installed");
    let tests: [(&str, fn() -> Result<()>); 6] = [
        (
            "stock_vxlan_nodes_reach_each_other_also_through_the_router",
            stock_vxlan,
        ),
        (
            "stock_host_gw_nodes_reach_each_other_with_service_rules",
            stock_host_gw,
        ),
        ("stock_nodes_follow_leases", stock_follows_leases),
        ("large_packets_pass_without_offloads", without_offloads),
        (
            "clusters_in_one_process_are_separate_and_leave_nothing",
            side_by_side,
        ),
        ("pods_come_and_go", pods_come_and_go),
    ];
    let root = rustix::process::geteuid().is_root();
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::test(name, move || {
            test().map_err(|error| Failed::from(error.to_string()))
        })
        .with_ignored_flag(!root)
    });
    if !root {
        println!("skipped: network namespaces need root");
    }
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn cluster(nodes: Vec<NodeConfig>, pods: usize) -> ClusterConfig {
    ClusterConfig {
        nodes,
        pods,
        ..ClusterConfig::default()
    }
}

fn host_gw() -> String {
    r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#.to_owned()
}

fn ping(from: &Netns, to: &Pod, options: &[&str]) -> Result<String> {
    let address = to.address().to_string();
    process::run(
        Some(from),
        "ping",
        &[&["-c", "1", "-W", "2"], options, &[&address]].concat(),
    )
}

fn all_reach_all(cluster: &Cluster) -> Result<()> {
    let pods: Vec<Pod> = cluster
        .nodes()
        .iter()
        .flat_map(|node| node.pods())
        .collect();
    assert!(pods.len() > 1);
    for from in &pods {
        for to in &pods {
            ping(from.netns(), to, &[])?;
        }
    }
    Ok(())
}

fn stock_vxlan() -> Result<()> {
    let nodes = vec![
        NodeConfig::stock(),
        NodeConfig::stock(),
        NodeConfig::stock().routed(),
    ];
    all_reach_all(&Cluster::start(cluster(nodes, 2))?)
}

fn stock_host_gw() -> Result<()> {
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

fn stock_follows_leases() -> Result<()> {
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
    Ok(())
}

fn without_offloads() -> Result<()> {
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

fn side_by_side() -> Result<()> {
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

fn pods_come_and_go() -> Result<()> {
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

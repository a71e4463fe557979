//! Clusters of stock nodes whose leases are not in etcd.

use std::fs;

use lab::{Cluster, ClusterConfig, LeaseStore, NodeConfig, Result, kube::lease::PREFIX};
use serde_json::{Value, json};

use crate::{all_reach_all, cluster, ping};

const DUAL: &str = r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;

fn start(leases: LeaseStore) -> Result<Cluster> {
    let nodes = vec![NodeConfig::stock(), NodeConfig::stock().routed()];
    Cluster::start(ClusterConfig {
        leases,
        network: DUAL.to_owned(),
        ..cluster(nodes, 1)
    })
}

/// Whether nobody but the first node is left, after the third has come and the others have gone.
fn nodes_come_and_go(cluster: &mut Cluster) -> Result<()> {
    let third = cluster.add_node(&NodeConfig::stock())?;
    let pod = third.add_pod()?;
    let first = cluster.node(1).pods()[0].clone();
    ping(first.netns(), &pod, &[])?;
    for node in [2, 3] {
        cluster.node(node).stock().expire()?;
    }
    cluster.node(1).stock().refresh()?;
    assert!(ping(first.netns(), &pod, &[]).is_err());
    Ok(())
}

pub(crate) fn in_the_kubernetes_api() -> Result<()> {
    let mut cluster = start(LeaseStore::ApiServer)?;
    all_reach_all(&cluster)?;
    let etcd = cluster.id().directory().join("etcd");
    assert!(!etcd.exists(), "no etcd was started");
    let server = cluster.api_server();
    let node = server.node("n2").expect("nodes have Node objects");
    assert_eq!(
        node["spec"]["podCIDRs"],
        json!(["10.5.2.0/24", "fd00:5:0:2::/64"])
    );
    assert_eq!(node["status"]["addresses"][1]["address"], "fd00:101::2");
    let published = server
        .annotations("n2")
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{}={value}", name.strip_prefix(PREFIX)?)))
        .collect::<Vec<_>>();
    assert_eq!(
        published,
        [
            r#"backend-data={"VNI":1,"VtepMAC":"0e:de:d4:9c:3c:02"}"#,
            "backend-type=vxlan",
            r#"backend-v6-data={"VNI":1,"VtepMAC":"0e:de:d4:9c:3d:02"}"#,
            "kube-subnet-manager=true",
            "public-ip=192.168.101.2",
            "public-ipv6=fd00:101::2",
        ]
    );
    nodes_come_and_go(&mut cluster)?;
    assert_eq!(cluster.api_server().nodes().len(), 1);
    Ok(())
}

pub(crate) fn in_a_file() -> Result<()> {
    let mut cluster = start(LeaseStore::File)?;
    all_reach_all(&cluster)?;
    let read = |cluster: &Cluster| -> Value {
        let text = fs::read_to_string(cluster.lease_file()).expect("the file is there");
        serde_json::from_str(&text).expect("it is JSON")
    };
    let content = read(&cluster);
    assert_eq!(content["config"]["Backend"]["Type"], "vxlan");
    assert_eq!(
        content["leases"]["10.5.2.0-24&fd00:5:0:2::-64"],
        json!({
            "PublicIP": "192.168.101.2", "PublicIPv6": "fd00:101::2", "BackendType": "vxlan",
            "BackendData": { "VNI": 1, "VtepMAC": "0e:de:d4:9c:3c:02" },
            "BackendV6Data": { "VNI": 1, "VtepMAC": "0e:de:d4:9c:3d:02" },
        })
    );
    nodes_come_and_go(&mut cluster)?;
    let left = read(&cluster)["leases"]
        .as_object()
        .map(|leases| leases.len());
    assert_eq!(left, Some(1));
    Ok(())
}

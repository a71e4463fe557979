//! Faults of flannel's Kubernetes subnet manager, and that this agent is without them.

use std::fs;

use anyhow::ensure;
use lab::{kube::lease::PREFIX, kube::mock};
use serde_json::Value;

use super::{DUAL, PEER, PEER_ADDRESS, VXLAN, below, peer, start, wait_output, with_agent};
use crate::peers::vxlan_value;
use crate::support::{Outcome, PROMPT, eventually, shell};

/// Nodes without any annotations: the agent's own, which gets them, and another, which is nobody's peer.
pub(crate) fn no_annotations() -> Outcome {
    let bare = |node: &mut Value| {
        node["metadata"]
            .as_object_mut()
            .map(|metadata| metadata.remove("annotations"));
    };
    with_agent(VXLAN, |server, node| {
        node.agent().stop()?;
        server.change_node(node.name(), bare)?;
        let mut other = mock::node(PEER, &[PEER_ADDRESS.parse()?], &["10.5.77.0/24"]);
        bare(&mut other);
        server.put_node(other);
        start(node)?;
        let published = below(server, node.name(), PREFIX);
        ensure!(published.len() == 4, "{published:?}");
        let status = node.agent().status()?;
        ensure!(
            status.peers.is_empty()
                && status.skipped_leases.is_empty()
                && status.problems.is_empty(),
            "{status:?}"
        );
        // As it is when flannel starts there.
        let value = vxlan_value(PEER_ADDRESS, "0e:00:00:00:00:77");
        server.put_node(peer(&["10.5.77.0/24"], &value)?);
        wait_output(
            node,
            "ip route show",
            "10.5.77.0/24 via 10.5.77.0 dev flannel.1",
        )
    })
}

/// What somebody removes from the kernel comes back, whatever the API server has to say.
pub(crate) fn resync() -> Outcome {
    with_agent(VXLAN, |server, node| {
        let value = vxlan_value(PEER_ADDRESS, "0e:00:00:00:00:77");
        server.put_node(peer(&["10.5.77.0/24"], &value)?);
        let entry = "0e:00:00:00:00:77 dst 192.168.100.77";
        let there = || {
            wait_output(
                node,
                "ip route show",
                "10.5.77.0/24 via 10.5.77.0 dev flannel.1",
            )?;
            wait_output(node, "bridge fdb show dev flannel.1", entry)
        };
        there()?;
        server.stop_listening();
        shell(
            node,
            "ip route delete 10.5.77.0/24 && bridge fdb delete 0e:00:00:00:00:77 dev flannel.1 dst 192.168.100.77",
        )?;
        there()?;
        server.listen()?;
        Ok(())
    })
}

/// A node without a podCIDR says what to do, and goes on when it has one.
pub(crate) fn pod_cidr_is_missing() -> Outcome {
    with_agent(VXLAN, |server, node| {
        node.agent().stop()?;
        fs::remove_file(node.agent().subnet_file())?;
        server.set_pod_cidrs(node.name(), &[])?;
        node.agent().start()?;
        eventually("the problem", PROMPT, || {
            let problems = match node.agent().status() {
                Ok(status) => status.problems.join("; "),
                Err(error) => error.to_string(),
            };
            let says = [
                "node n1",
                "podCIDR",
                "--allocate-node-cidrs=true",
                "--cluster-cidr=10.5.0.0/16",
            ]
            .iter()
            .all(|part| problems.contains(part));
            Ok(says.then_some(()).ok_or(problems))
        })?;
        ensure!(!node.agent().status()?.ready, "ready without a subnet");
        server.set_pod_cidrs(node.name(), &["10.5.66.0/24"])?;
        let status = node.agent().wait_ready()?;
        ensure!(status.problems.is_empty(), "{status:?}");
        let subnet = node.subnet_env()?.subnet.to_string();
        ensure!(subnet == "10.5.66.0/24", "{subnet}");
        Ok(())
    })
}

/// Of a peer with both families, only what belongs to IPv4 changes.
pub(crate) fn ipv4_data_alone_changes() -> Outcome {
    const CIDRS: [&str; 2] = ["10.5.77.0/24", "fd00:5:0:77::/64"];
    let value = |mac: &str| {
        format!(
            r#"{{"PublicIP":"{PEER_ADDRESS}","PublicIPv6":"fd00:100::77","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"0e:00:00:00:06:77"}}}}"#
        )
    };
    with_agent(DUAL, |server, node| {
        for mac in ["0e:00:00:00:00:77", "0e:00:00:00:00:78"] {
            server.put_node(peer(&CIDRS, &value(mac))?);
            let entry = format!("{mac} dst {PEER_ADDRESS}");
            wait_output(node, "bridge fdb show dev flannel.1", &entry)?;
            let entry = "0e:00:00:00:06:77 dst fd00:100::77";
            wait_output(node, "bridge fdb show dev flannel-v6.1", entry)?;
        }
        let left = shell(node, "bridge fdb show dev flannel.1")?;
        ensure!(!left.contains("0e:00:00:00:00:77"), "{left}");
        Ok(())
    })
}

/// A podCIDR that changes is followed, a peer's and the node's own.
pub(crate) fn pod_cidr_changes() -> Outcome {
    with_agent(VXLAN, |server, node| {
        let value = vxlan_value(PEER_ADDRESS, "0e:00:00:00:00:77");
        server.put_node(peer(&["10.5.77.0/24"], &value)?);
        let route = |subnet: &str| format!("10.5.{subnet}.0/24 via 10.5.{subnet}.0 dev flannel.1");
        wait_output(node, "ip route show", &route("77"))?;
        server.set_pod_cidrs(PEER, &["10.5.78.0/24"])?;
        wait_output(node, "ip route show", &route("78"))?;
        let routes = shell(node, "ip route show")?;
        ensure!(!routes.contains(&route("77")), "{routes}");

        server.set_pod_cidrs(node.name(), &["10.5.66.0/24"])?;
        let file = format!("cat {}", node.agent().subnet_file().display());
        wait_output(node, &file, "FLANNEL_SUBNET=10.5.66.1/24")?;
        wait_output(
            node,
            "ip -4 address show dev flannel.1",
            "inet 10.5.66.0/32",
        )?;
        wait_output(node, "ip route show", &route("78"))
    })
}

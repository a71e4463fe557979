//! Devices that others delete, recreate or change.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::Node;

use crate::peers::{own_key, value};
use crate::setting;
use crate::support::{Outcome, PROMPT, eventually, link, shell, udp_arrives, with_cluster};

/// How long a node may take until it is reached again by a new MAC address: an event, a put, an event at the peer.
const SOON: Duration = Duration::from_secs(5);

/// systemd or NetworkManager gives the VXLAN device another MAC address: whatever the device has in the end, the lease
/// and the peer's entries say so, and packets flow.
pub(crate) fn mac_changes() -> Outcome {
    with_cluster(setting::vxlan().pair(), |cluster| {
        let [node, other] = [1, 2].map(|number| &**cluster.node(number));
        let before = mac(node)?;
        for wrong in ["0e:11:22:33:44:55", "0e:11:22:33:44:66"] {
            shell(node, &format!("ip link set flannel.1 address {wrong}"))?;
            is_published(cluster, node, other)?;
            udp_arrives(&other.pods()[0], &node.pods()[0], 200, 64)?;
        }
        ensure!(!before.is_empty(), "a MAC address");
        // While nobody looks: a reboot with other rules.
        node.agent().stop()?;
        shell(node, "ip link set flannel.1 address 0e:11:22:33:44:77")?;
        node.agent().start()?;
        node.agent().wait_ready()?;
        is_published(cluster, node, other)?;
        udp_arrives(&other.pods()[0], &node.pods()[0], 200, 64).map(drop)
    })
}

fn mac(node: &Node) -> anyhow::Result<String> {
    let (_, mac) = link(node, "flannel.1")?.context("a VXLAN device")?;
    Ok(mac)
}

/// Waits until lease, FDB entry and neighbour have the MAC address of the node's device, and no other.
fn is_published(cluster: &lab::Cluster, node: &Node, other: &Node) -> Outcome {
    let key = own_key(node)?;
    let first = node.subnet_env()?.subnet.address;
    eventually("the device's MAC address everywhere", SOON, || {
        let mac = mac(node)?;
        let lease = value(cluster, &key)?;
        let fdb = shell(
            other,
            &format!(
                "bridge fdb show dev flannel.1 | grep 'dst {}'",
                node.address()
            ),
        )?;
        let neighbour = shell(
            other,
            &format!("ip neighbour show dev flannel.1 | grep '^{first} '"),
        )?;
        let everywhere = [&lease, &fdb, &neighbour]
            .iter()
            .all(|text| text.contains(&mac));
        let alone = fdb.lines().count() == 1 && neighbour.lines().count() == 1;
        Ok((everywhere && alone)
            .then_some(())
            .ok_or_else(|| format!("{mac}: {lease} {fdb} {neighbour}")))
    })
}

/// The node's own interface goes, and the VXLAN device with it; both come back, and packets flow.
pub(crate) fn parent_recreated() -> Outcome {
    with_cluster(setting::vxlan().pair(), |cluster| {
        let [node, other] = [1, 2].map(|number| &**cluster.node(number));
        let entries = || {
            shell(
                node,
                "ip route show | grep flannel; bridge fdb show dev flannel.1; ip neighbour show dev flannel.1",
            )
        };
        let before = entries()?;
        ensure!(before.lines().count() == 3, "{before}");
        shell(node, "ip link delete eth0")?;
        eventually("the end of the device", PROMPT, || {
            let now = link(node, "flannel.1")?;
            Ok(now
                .is_none()
                .then_some(())
                .ok_or_else(|| format!("{now:?}")))
        })?;
        let namespace = node.netns().name();
        lab::underlay::ip_batch(
            cluster.switch(),
            &format!(
                "link add n1 type veth peer name eth0 netns {namespace}\n\
                 link set n1 master br0 up\n"
            ),
        )?;
        lab::underlay::ip_batch(
            node.netns(),
            "address add 192.168.100.1/24 dev eth0\n\
             link set eth0 up\n\
             route add default via 192.168.100.254\n",
        )?;
        eventually("a new device", 2 * PROMPT, || {
            let now = link(node, "flannel.1")?;
            Ok(now.map(drop).ok_or_else(|| "none".to_owned()))
        })?;
        eventually("the peer's entries", PROMPT, || {
            let now = entries().unwrap_or_default();
            Ok((now == before).then_some(()).ok_or(now))
        })?;
        is_published(cluster, node, other)?;
        for (from, to) in [(node, other), (other, node)] {
            udp_arrives(&from.pods()[0], &to.pods()[0], 200, 64)?;
        }
        Ok(())
    })
}

/// The node gets another address: it is published, the device is of it, and packets flow.
pub(crate) fn address_changes() -> Outcome {
    /// The connection to etcd was of the old address, and its end has to be noticed first.
    const NOTICED: Duration = Duration::from_secs(30);
    const ADDRESS: &str = "192.168.100.11";
    with_cluster(setting::vxlan().pair(), |cluster| {
        let [node, other] = [1, 2].map(|number| &**cluster.node(number));
        let key = own_key(node)?;
        shell(
            node,
            &format!(
                "ip address delete 192.168.100.1/24 dev eth0; ip address add {ADDRESS}/24 dev eth0; \
                 ip route replace default via 192.168.100.254"
            ),
        )?;
        eventually("the new address in the lease", NOTICED, || {
            let now = value(cluster, &key)?;
            let published = now.contains(&format!(r#""PublicIP":"{ADDRESS}""#));
            Ok(published.then_some(()).ok_or(now))
        })?;
        eventually("the peer's entry", PROMPT, || {
            let now = shell(other, "bridge fdb show dev flannel.1")?;
            let follows =
                now.contains(&format!("dst {ADDRESS} ")) && !now.contains("dst 192.168.100.1 ");
            Ok(follows.then_some(()).ok_or(now))
        })?;
        let device = shell(node, "ip -details link show flannel.1")?;
        ensure!(device.contains(&format!("local {ADDRESS} ")), "{device}");
        node.agent()
            .wait_status("all objects as they should be", |status| {
                status.objects.iter().all(|object| object.state == "ok")
            })?;
        for (from, to) in [(node, other), (other, node)] {
            udp_arrives(&from.pods()[0], &to.pods()[0], 200, 64)?;
        }
        Ok(())
    })
}

//! What others break in the kernel or in etcd is repaired, and harms nobody else.

use std::{thread, time::Duration};

use anyhow::{Context, ensure};
use lab::{Node, etcd::PREFIX, traffic::udp::UdpFlow};

use crate::meter::Meter;
use crate::support::{
    Backend, ENDLESS, Outcome, PROMPT, Setting, eventually, link, shell, udp_arrives,
    wait_pods_served, with_cluster,
};

/// How long traffic may stand still after its device was deleted.
const DEVICE_LIMIT: Duration = Duration::from_secs(1);
/// Packets of one check.
const PACKETS: u64 = 1000;

pub(crate) fn deleted_device(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let (from, to) = (cluster.node(1), cluster.node(2));
        for (broken, name) in [(from, "the sender's"), (to, "the receiver's")] {
            let flow = UdpFlow::start(&from.pods()[0], &to.pods()[0], ENDLESS)?;
            let before = link(broken, "flannel.1")?;
            ensure!(before.is_some(), "there is a device to delete");
            shell(broken, "ip link delete flannel.1")?;
            eventually("a new device", PROMPT, || {
                let now = link(broken, "flannel.1")?;
                Ok((now.is_some() && now != before)
                    .then_some(())
                    .ok_or_else(|| format!("{now:?}")))
            })?;
            thread::sleep(DEVICE_LIMIT);
            let arrived = flow.arrived();
            eventually("packets", PROMPT, || {
                Ok((flow.arrived() > arrived)
                    .then_some(())
                    .ok_or_else(|| "none".to_owned()))
            })
            .with_context(|| format!("after {name} device was deleted"))?;
            let report = flow.stop()?;
            ensure!(
                report.longest_gap < DEVICE_LIMIT,
                "after {name} device was deleted: {report:?}"
            );
        }
        all_ok(from)?;
        all_ok(to)?;
        wait_pods_served(from)?;
        wait_pods_served(to)?;
        let meter = Meter::start(from, to)?;
        udp_arrives(&from.pods()[0], &to.pods()[0], PACKETS, 64)?;
        meter.expect(setting.path, PACKETS)
    })
}

/// Waits until the agent sees all its kernel objects as they should be.
fn all_ok(node: &Node) -> Outcome {
    node.agent()
        .wait_status("all objects as they should be", |status| {
            status.objects.iter().all(|object| object.state == "ok")
        })?;
    Ok(())
}

pub(crate) fn removed_entries(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let node = cluster.node(1);
        let subnet = cluster.node(2).subnet_env()?.subnet;
        let mut removals = vec![(
            "ip route show".to_owned(),
            format!("ip route delete {subnet}"),
        )];
        if setting.backend == Backend::Vxlan {
            let (_, mac) = link(cluster.node(2), "flannel.1")?.context("n2 has a device")?;
            let first = subnet.address;
            removals.push((
                "bridge fdb show dev flannel.1".to_owned(),
                format!("bridge fdb delete {mac} dev flannel.1 dst 192.168.100.2 self"),
            ));
            removals.push((
                "ip neighbour show dev flannel.1".to_owned(),
                format!("ip neighbour delete {first} dev flannel.1"),
            ));
        }
        for (show, remove) in &removals {
            let before = shell(node, show)?;
            ensure!(!before.is_empty(), "{show} shows nothing");
            shell(node, remove)?;
            eventually("the entry", PROMPT, || {
                let now = shell(node, show)?;
                Ok((now == before).then_some(()).ok_or(now))
            })
            .with_context(|| format!("after {remove}, {show} was to show again {before}"))?;
        }
        let meter = Meter::start(node, cluster.node(2))?;
        udp_arrives(&node.pods()[0], &cluster.node(2).pods()[0], PACKETS, 64)?;
        meter.expect(setting.path, PACKETS)
    })
}

pub(crate) fn bad_leases(setting: Setting) -> Outcome {
    // Of the network, but before the first subnet that a node may get.
    const BAD: [(&str, &str); 3] = [
        ("no-subnet", "{}"),
        ("10.5.0.0-25", "{\"PublicIP\":"),
        (
            "10.5.0.128-25",
            "{\"PublicIP\":\"nowhere\",\"BackendType\":\"vxlan\"}",
        ),
    ];
    with_cluster(setting.pair(), |cluster| {
        for (key, value) in BAD {
            cluster
                .etcd()
                .put(&format!("{PREFIX}/subnets/{key}"), value)?;
        }
        let (from, to) = (cluster.node(1), cluster.node(2));
        for node in [from, to] {
            node.agent()
                .wait_status("bad leases are reported", |status| {
                    status.peers.len() == 1
                        && BAD.iter().all(|(key, _)| {
                            status.skipped_leases.keys().any(|name| name.contains(key))
                        })
                })?;
        }
        udp_arrives(&from.pods()[0], &to.pods()[0], PACKETS, 64)?;
        // A start with them there, too.
        from.agent().restart()?;
        from.agent()
            .wait_status("the peer", |status| status.peers.len() == 1)?;
        wait_pods_served(from)?;
        let meter = Meter::start(from, to)?;
        udp_arrives(&from.pods()[0], &to.pods()[0], PACKETS, 64)?;
        meter.expect(setting.path, PACKETS)?;
        for (key, _) in BAD {
            cluster.etcd().delete(&format!("{PREFIX}/subnets/{key}"))?;
        }
        from.agent()
            .wait_status("no bad lease any more", |status| {
                status.skipped_leases.is_empty()
            })?;
        Ok(())
    })
}

pub(crate) fn overwritten_lease(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let (first, second) = (cluster.node(1), cluster.node(2));
        let etcd = cluster.etcd();
        let key = format!("{PREFIX}/subnets/{}", first.subnet_env()?.subnet.key());
        let value = || -> anyhow::Result<String> {
            let mut found = etcd.get_prefix(&key)?;
            Ok(found.pop().context("the lease is in etcd")?.1)
        };
        let right = value()?;
        let overwrite = right.replace("192.168.100.1\"", "192.168.100.1\",\"Note\":1");
        let wrong = match setting.backend {
            // Another VTEP MAC under the same node's address: what an earlier incarnation might write.
            Backend::Vxlan => with_other_mac(&right),
            Backend::HostGw => overwrite,
        };
        ensure!(wrong != right, "{right}");
        etcd.put(&key, &wrong)?;
        eventually("the node's own value in etcd", PROMPT, || {
            let now = value()?;
            Ok((now == right).then_some(()).ok_or(now))
        })?;
        all_ok(second)?;
        udp_arrives(&second.pods()[0], &first.pods()[0], PACKETS, 64)?;

        etcd.delete(&key)?;
        eventually("the lease in etcd again", PROMPT, || {
            let now = value().unwrap_or_default();
            Ok((now == right).then_some(()).ok_or(now))
        })?;
        second.agent().wait_status("the peer again", |status| {
            status.peers.len() == 1 && status.objects.iter().all(|object| object.state == "ok")
        })?;
        let meter = Meter::start(second, first)?;
        udp_arrives(&second.pods()[0], &first.pods()[0], PACKETS, 64)?;
        meter.expect(setting.path, PACKETS)
    })
}

fn with_other_mac(value: &str) -> String {
    const FIELD: &str = "\"VtepMAC\":\"";
    let Some((before, after)) = value.split_once(FIELD) else {
        return value.to_owned();
    };
    let rest = after.split_once('"').map_or("", |(_, rest)| rest);
    format!("{before}{FIELD}0e:00:00:00:00:01\"{rest}")
}

/// A key that another node has taken is left to it: the node gets another subnet, and the others follow.
pub(crate) fn stolen_lease(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let (first, second) = (cluster.node(1), cluster.node(2));
        let lost = first.subnet_env()?.subnet;
        let key = format!("{PREFIX}/subnets/{}", lost.key());
        let own = cluster.etcd().get_prefix(&key)?;
        let stolen = with_other_mac(&own[0].1).replace("192.168.100.1", "192.168.100.77");
        cluster.etcd().put(&key, &stolen)?;
        eventually("another subnet in subnet.env", PROMPT, || {
            let now = first.subnet_env()?.subnet;
            Ok((now != lost).then_some(()).ok_or_else(|| now.to_string()))
        })?;
        let now = first.subnet_env()?.subnet.to_string();
        let status = first.agent().wait_ready()?;
        ensure!(
            status.lease.is_some_and(|lease| lease.subnet == now),
            "subnet.env says {now}"
        );
        let kept = cluster.etcd().get_prefix(&key)?;
        ensure!(
            kept[0].1 == stolen,
            "the other node's lease was changed: {kept:?}"
        );
        second.agent().wait_status("the new subnet", |status| {
            status
                .peers
                .iter()
                .any(|peer| peer.subnet == now && peer.via == "vxlan")
        })?;
        Ok(())
    })
}

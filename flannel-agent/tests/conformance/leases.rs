//! The node's own lease: how it is taken, kept, lost and found again.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::{Cluster, Node, wait};

use crate::peers::{grant, key, lease_of, own_key, put_for, record, ttl, value, vxlan_value};
use crate::setting::{self, agents};
use crate::support::{Outcome, PROMPT, eventually, link, with_cluster, with_unready_cluster};

const NETWORK: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
/// Time to live of flannel's leases, in seconds.
const TTL: i64 = 86_400;
/// How much of it may be over in a test.
const SLACK: i64 = 120;

/// The key and the value are upstream's byte by byte, and live for 24 h.
pub(crate) fn golden_value() -> Outcome {
    with_unready_cluster(agents(1, 0, NETWORK), |cluster| {
        let node = cluster.node(1);
        let (_, mac) = link(node, "flannel.1")?.context("a device")?;
        let found = cluster.etcd().get_prefix(&key(""))?;
        let expected = (own_key(node)?, vxlan_value("192.168.100.1", &mac));
        ensure!(found == [expected.clone()], "{found:?}, not {expected:?}");
        lives_a_day(cluster, &expected.0)
    })
}

/// The same in dual stack: both subnets in the key, both addresses and both devices in the value.
pub(crate) fn golden_dual_value() -> Outcome {
    let network = r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
    with_unready_cluster(agents(1, 0, network), |cluster| {
        let node = cluster.node(1);
        let env = node.subnet_env()?;
        let subnet6 = env.ipv6.context("an IPv6 subnet")?.subnet;
        let mac = |device| -> anyhow::Result<String> {
            let (_, mac) = link(node, device)?.with_context(|| device.to_owned())?;
            Ok(mac)
        };
        let (mac4, mac6) = (mac("flannel.1")?, mac("flannel-v6.1")?);
        let expected = (
            key(&lab::lease::key(env.subnet, Some(subnet6))),
            format!(
                r#"{{"PublicIP":"192.168.100.1","PublicIPv6":"fd00:100::1","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac4}"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"{mac6}"}}}}"#
            ),
        );
        let found = cluster.etcd().get_prefix(&key(""))?;
        ensure!(found == [expected.clone()], "{found:?}, not {expected:?}");
        lives_a_day(cluster, &expected.0)
    })
}

fn lives_a_day(cluster: &Cluster, key: &str) -> Outcome {
    let left = ttl(cluster, lease_of(cluster, key)?)?;
    ensure!(
        (TTL - SLACK..=TTL).contains(&left),
        "{key} lives for {left} s more"
    );
    Ok(())
}

/// Renewal, here a minute after the start by the largest margin, gives the lease its whole time back.
pub(crate) fn renewal() -> Outcome {
    const LARGEST_MARGIN: &str = "--subnet-lease-renew-margin=1439";
    /// From a lease's start to its renewal with that margin, and some more.
    const RENEWED: Duration = Duration::from_secs(75);
    let mut agent = setting::vxlan().agent();
    agent.arguments.push(LARGEST_MARGIN.into());
    let nodes = vec![lab::NodeConfig::agent(&agent)];
    with_unready_cluster(setting::vxlan().cluster(nodes), |cluster| {
        let key = own_key(cluster.node(1))?;
        let before = value(cluster, &key)?;
        // Whether the time is given back to the same lease or by another one is the agent's to choose.
        let mut least = TTL;
        wait::until("renewal", RENEWED, || {
            let left = ttl(cluster, lease_of(cluster, &key).unwrap_or_default()).unwrap_or(0);
            let renewed = left > least;
            least = least.min(left);
            thread::sleep(Duration::from_millis(300));
            Ok(renewed
                .then_some(())
                .ok_or_else(|| format!("{left} s left")))
        })?;
        lives_a_day(cluster, &key)?;
        let after = value(cluster, &key)?;
        ensure!(before == after, "{before} became {after}");
        Ok(())
    })
}

/// A key whose lease somebody has made short is renewed before it ends.
pub(crate) fn shortened() -> Outcome {
    const SHORT: u32 = 8;
    with_unready_cluster(agents(1, 0, NETWORK), |cluster| {
        let key = own_key(cluster.node(1))?;
        let own = value(cluster, &key)?;
        put_for(cluster, &key, &own, SHORT)?;
        eventually(
            "a whole lease",
            PROMPT + Duration::from_secs(SHORT.into()),
            || {
                let left = lease_of(cluster, &key)
                    .and_then(|lease| ttl(cluster, lease))
                    .unwrap_or(0);
                let whole = left > i64::from(SHORT);
                Ok(whole.then_some(()).ok_or_else(|| format!("{left} s left")))
            },
        )?;
        ensure!(value(cluster, &key)? == own, "the value was changed");
        lives_a_day(cluster, &key)
    })
}

/// A peer whose lease ends after three seconds is taken up and then given up.
pub(crate) fn peer_expires() -> Outcome {
    const SHORT: u32 = 3;
    /// etcd looks for leases that have ended every half a second, and may be later.
    const ENDED: Duration = Duration::from_secs(10);
    with_unready_cluster(agents(1, 0, NETWORK), |cluster| {
        let node = cluster.node(1);
        let peer = vxlan_value("192.168.100.77", "0e:00:00:00:00:77");
        put_for(cluster, &key("10.5.0.0-25"), &peer, SHORT)?;
        let traces = || {
            crate::support::shell(
                node,
                "ip route show | grep '^10.5.0.0/25' || true; bridge fdb show dev flannel.1 | grep 77 || true; \
                 ip neighbour show dev flannel.1",
            )
        };
        eventually("the peer", PROMPT, || {
            let now = traces()?;
            Ok((now.lines().count() == 3).then_some(()).ok_or(now))
        })?;
        eventually("the end of the peer", ENDED, || {
            let now = traces()?;
            Ok(now.is_empty().then_some(()).ok_or(now))
        })
    })
}

/// After the loss of `subnet.env`, the subnet is found by the node's address.
pub(crate) fn reused_by_address() -> Outcome {
    with_unready_cluster(agents(1, 0, NETWORK), |cluster| {
        let node = cluster.node(1);
        let before = node.subnet_env()?.subnet;
        node.agent().stop()?;
        fs::remove_file(node.agent().subnet_file())?;
        start(node)?;
        let after = node.subnet_env()?.subnet;
        ensure!(before == after, "{before} became {after}");
        ensure!(cluster.etcd().leases()?.len() == 1, "one lease");
        Ok(())
    })
}

/// After the loss of the lease while the agent was away, the subnet is found in `subnet.env`, whatever else the file
/// says; not if it is of another network, nor if it says several.
pub(crate) fn reused_by_file() -> Outcome {
    const CASES: [(&str, Option<&str>); 5] = [
        ("10.5.77.1/24", Some("10.5.77.0/24")),
        ("not-a-cidr,10.5.88.1/24", Some("10.5.88.0/24")),
        ("10.5.77.1/24,10.5.78.1/24", None),
        ("not-a-cidr", None),
        ("10.9.1.1/24", None),
    ];
    with_unready_cluster(agents(1, 0, NETWORK), |cluster| {
        let node = cluster.node(1);
        let file = node.agent().subnet_file();
        for (subnet, expected) in CASES {
            node.agent().stop()?;
            cluster.etcd().ctl(&["del", "--prefix", &key("")])?;
            let text = format!(
                "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
            );
            fs::write(&file, text)?;
            start(node).with_context(|| subnet.to_owned())?;
            let taken = node.subnet_env()?.subnet.to_string();
            // What is chosen freely is of the first hundred, and 10.5.77.0 and 10.5.78.0 could be among them.
            let holds = match expected {
                Some(expected) => taken == expected,
                None => taken.starts_with("10.5."),
            };
            ensure!(holds, "{subnet} in subnet.env led to {taken}");
            let leases = cluster.etcd().leases()?;
            ensure!(leases.len() == 1, "{leases:?}");
        }
        Ok(())
    })
}

/// Another network config gives another subnet.
pub(crate) fn config_changes() -> Outcome {
    with_unready_cluster(agents(1, 0, NETWORK), |cluster| {
        let node = cluster.node(1);
        node.agent().stop()?;
        cluster
            .etcd()
            .put_config(&NETWORK.replace("10.5.", "10.6."))?;
        start(node)?;
        let env = node.subnet_env()?;
        ensure!(
            env.network.to_string() == "10.6.0.0/16" && env.subnet.to_string().starts_with("10.6."),
            "{env}"
        );
        let routes = crate::support::shell(node, "ip route show")?;
        ensure!(!routes.contains("10.5."), "{routes}");
        let addresses = crate::support::shell(node, "ip -4 address show dev flannel.1")?;
        ensure!(
            addresses.contains("10.6.") && !addresses.contains("10.5."),
            "{addresses}"
        );
        Ok(())
    })
}

/// A reservation, which is a key without a lease, stays one.
pub(crate) fn reservation() -> Outcome {
    with_unready_cluster(agents(1, 0, NETWORK), |cluster| {
        let node = cluster.node(1);
        node.agent().stop()?;
        let own = value(cluster, &own_key(node)?)?;
        cluster.etcd().ctl(&["del", "--prefix", &key("")])?;
        let reserved = key("10.5.42.0-24");
        cluster.etcd().put(&reserved, &own)?;
        start(node)?;
        ensure!(own_key(node)? == reserved, "{}", node.subnet_env()?);
        let lease = lease_of(cluster, &reserved)?;
        ensure!(lease == 0, "the reservation has become lease {lease:x}");
        // Written anew while the agent runs, as when an operator changes it.
        cluster.etcd().put(&reserved, &own)?;
        thread::sleep(Duration::from_secs(1));
        let lease = lease_of(cluster, &reserved)?;
        ensure!(lease == 0, "the reservation has become lease {lease:x}");
        Ok(())
    })
}

/// Nodes that start at once take different subnets, down to the last that is free.
pub(crate) fn no_two_alike() -> Outcome {
    const NODES: usize = 5;
    // From 10.5.1.0, the second of the network, on: five.
    let network = r#"{"Network":"10.5.0.0/20","SubnetMax":"10.5.5.0","Backend":{"Type":"vxlan"}}"#;
    with_unready_cluster(agents(NODES, 0, network), |cluster| {
        let mut subnets = BTreeSet::new();
        for node in cluster.nodes() {
            subnets.insert(node.subnet_env()?.subnet);
        }
        let leases = cluster.etcd().leases()?;
        ensure!(
            subnets.len() == NODES && leases.len() == NODES,
            "{subnets:?}, {leases:?}"
        );
        Ok(())
    })
}

/// A renewal leaves alone what another node has put under the key meanwhile.
pub(crate) fn restart_keeps_others() -> Outcome {
    with_unready_cluster(agents(1, 0, NETWORK), |cluster| {
        let node = cluster.node(1);
        node.agent().stop()?;
        let taken = own_key(node)?;
        let other = vxlan_value("192.168.100.77", "0e:00:00:00:00:77");
        let id = grant(cluster, 3600)?;
        cluster
            .etcd()
            .ctl(&["put", &format!("--lease={id}"), "--", &taken, &other])?;
        let before = record(cluster, &taken)?;
        start(node)?;
        ensure!(own_key(node)? != taken, "both have {taken}");
        ensure!(record(cluster, &taken)? == before, "{taken} was written");
        Ok(())
    })
}

/// After a restart the node has its subnet, and pods have lost nothing.
pub(crate) fn restart_keeps() -> Outcome {
    use lab::traffic::udp::{UdpFlow, UdpPlan};
    with_cluster(setting::vxlan().pair(), |cluster| {
        let [first, second] = [1, 2].map(|number| &**cluster.node(number));
        let before = [first.subnet_env()?, second.subnet_env()?];
        let plan = UdpPlan {
            packets: u64::MAX,
            rate: 1000,
            size: 64,
        };
        let flow = UdpFlow::start(&first.pods()[0], &second.pods()[0], plan)?;
        for node in [first, second] {
            node.agent().restart()?;
        }
        crate::support::all_arrived(&flow.stop()?)?;
        let after = [first.subnet_env()?, second.subnet_env()?];
        ensure!(before == after, "{before:?} became {after:?}");
        let pod = second.add_pod()?;
        crate::support::udp_arrives(&first.pods()[0], &pod, 200, 64).map(drop)
    })
}

fn start(node: &Node) -> Outcome {
    node.agent().start()?;
    node.agent().wait_ready()?;
    Ok(())
}

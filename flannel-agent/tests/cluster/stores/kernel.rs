//! What the agent makes of a store in the kernel, whichever store it is.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, ensure};
use lab::{ClusterConfig, process};

use super::{
    Test,
    agent::{Agent, DEVICE, traces_of, with_agent},
    session::FOLLOWS,
    store::{Entry, OwnEntry, TestStore},
};
use crate::support::{
    Backend, Outcome, Path, Setting, eventually, link, shell, udp_arrives, with_cluster,
};

/// How long a store is away.
const WHILE: Duration = Duration::from_secs(3);
/// Packets of one check.
const PACKETS: u64 = 200;
/// A network of both families.
const DUAL: &str = r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;

/// The tests of a store.
pub(crate) fn tests<S: TestStore>() -> Vec<Test> {
    vec![
        ("the_kernel_follows_the_store", follows::<S>),
        ("pods_reach_pods", pods_reach_pods::<S>),
        (
            "dual_stack_pods_reach_pods",
            dual_stack_pods_reach_pods::<S>,
        ),
    ]
}

/// Two agents with a pod each, whose leases are in the store that the lab gives a cluster.
fn pair<S: TestStore>() -> ClusterConfig {
    let setting = Setting {
        backend: Backend::Vxlan,
        path: Path::Kernel,
        mark: false,
        broken: None,
    };
    ClusterConfig {
        leases: S::CLUSTER,
        ..setting.pair()
    }
}

/// Pods of both families reach each other.
fn dual_stack_pods_reach_pods<S: TestStore>() -> Outcome {
    let config = ClusterConfig {
        network: DUAL.into(),
        ..pair::<S>()
    };
    with_cluster(config, |cluster| {
        let [first, second] = [1, 2].map(|number| cluster.node(number).pods()[0].clone());
        udp_arrives(&first, &second, PACKETS, 64)?;
        let address = second.address6().context("an IPv6 address")?.to_string();
        let ping = ["-6", "-c", "3", "-i", "0.2", "-W", "2", &address];
        process::run(Some(first.netns()), "ping", &ping)?;
        Ok(())
    })
}

/// Pods reach each other, and nodes keep their subnets over restarts.
fn pods_reach_pods<S: TestStore>() -> Outcome {
    let config = pair::<S>();
    with_cluster(config, |cluster| {
        let [first, second] = [1, 2].map(|number| cluster.node(number).pods()[0].clone());
        udp_arrives(&first, &second, PACKETS, 64)?;
        udp_arrives(&second, &first, PACKETS, 64)?;
        for node in cluster.nodes() {
            let before = node.subnet_env()?;
            node.agent().restart()?;
            let after = node.subnet_env()?;
            ensure!(before == after, "{before} became {after}");
        }
        udp_arrives(&first, &second, PACKETS, 64).map(drop)
    })
}

/// Peers come into the kernel, change there and go; nothing changes while the store is away, or by a restart.
fn follows<S: TestStore>() -> Outcome {
    with_agent::<S>(|store, agent| {
        let [first, second, third] = [1, 2, 3].map(Entry::peer);
        store.put(&first)?;
        store.put(&second)?;
        agent.start()?;
        agent.wait_ready()?;
        agent.wait_kernel("two peers", &[&first, &second])?;
        let env = fs::read_to_string(agent.path("subnet.env"))?;
        ensure!(env.contains("FLANNEL_SUBNET=10.5.134.1/24"), "{env}");
        let moved = second.clone().with_mac([0x0e, 4, 4, 4, 4, 4]);
        store.put(&moved)?;
        agent.wait_kernel("another MAC", &[&first, &moved])?;

        store.take_away()?;
        store.remove(&first)?;
        store.put(&third)?;
        thread::sleep(WHILE);
        let away = agent.traces()?;
        ensure!(
            away == traces_of(&[&first, &moved]),
            "without the store: {away:?}"
        );
        store.bring_back()?;
        agent.wait_kernel("what has changed meanwhile", &[&moved, &third])?;
        agent.wait_status("no problem", |status| status.problems.is_empty())?;

        let device = link(agent.node, DEVICE)?;
        let revision = store.own_revision()?;
        agent.stop()?;
        store.remove(&moved)?;
        agent.start()?;
        agent.wait_ready()?;
        agent.wait_kernel("what has changed without the agent", &[&third])?;
        ensure!(
            device == link(agent.node, DEVICE)?,
            "the device was made anew"
        );
        let after = fs::read_to_string(agent.path("subnet.env"))?;
        ensure!(env == after, "{env} became {after}");
        let written = store.own_revision()?;
        ensure!(
            revision == written || S::OWN == OwnEntry::Given,
            "own entry written anew: {revision}, {written}"
        );
        agent.stop()
    })
}

/// This node's lease in the file chooses interface and MAC; what is not as the file says is said before anything else.
pub(crate) fn file_rules() -> Outcome {
    with_agent::<super::file::File>(|store, agent| {
        let own = Entry::own();
        let mac = |agent: &Agent<'_>| anyhow::Ok(link(agent.node, DEVICE)?.map(|(_, mac)| mac));
        store.delete_own()?;
        agent.start()?;
        agent.wait_problem("no lease with PublicIP = 192.168.100.1")?;
        ensure!(mac(agent)?.is_none(), "a device without a lease");
        store.put(&own)?;
        agent.wait_ready()?;
        let made = mac(agent)?;
        ensure!(made == Some(own.mac.to_string()), "{made:?}");
        shell(agent.node, &format!("ip link delete {DEVICE}"))?;
        eventually("the device again", FOLLOWS, || {
            let made = mac(agent)?;
            Ok((made == Some(own.mac.to_string()))
                .then_some(())
                .ok_or(format!("{made:?}")))
        })?;

        let other = own.clone().with_mac([0x0e, 5, 5, 5, 5, 5]);
        store.overwrite_own(&other)?;
        let differs = "VtepMAC = 0e:05:05:05:05:05, where it is 0e:de:d4:9c:3c:d8";
        agent.wait_problem(differs)?;
        agent.stop()?;
        agent.start()?;
        agent.wait_problem(differs)?;
        ensure!(
            !agent.status()?.ready,
            "ready with another MAC than the file's"
        );
        agent.stop()?;
        shell(agent.node, &format!("ip link delete {DEVICE}"))?;
        agent.start()?;
        agent.wait_ready()?;
        let made = mac(agent)?;
        ensure!(made == Some(other.mac.to_string()), "{made:?}");
        agent.stop()
    })
}

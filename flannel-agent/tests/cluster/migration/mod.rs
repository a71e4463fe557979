//! From flanneld to the agent and back, node by node, while pods talk: nothing is lost, no connection breaks, and the
//! device, the routes, the rules and the lease are the same before and after each step.
//!
//! The tables that the tests print are those of `deploy/migration.md`.

mod flows;
mod laps;
mod steps;
mod traffic;

use std::time::Duration;

use anyhow::ensure;
use lab::{Cluster, ClusterConfig, LeaseStore, NodeConfig, wait};

use crate::suites::Test;
use crate::support::{Backend, Outcome, Path, Setting, with_unready_cluster};

/// No flow is silent for so long: not even one retransmission of TCP was waited for twice. A busy machine is silent for
/// a good part of it by itself.
const SILENCE: Duration = Duration::from_secs(2);

const KUBERNETES: &str = "nodes_move_from_flanneld_and_back_with_kubernetes";
const ETCD: &str = "nodes_move_from_flanneld_and_back_with_etcd";

/// All tests, by name, with what each runs on: streams, services and masquerading do not depend on all of it at once.
pub(crate) const TESTS: &[(&str, Setting, Test)] = &[
    (
        KUBERNETES,
        setting(Backend::Vxlan, Path::Flow, false),
        with_kubernetes,
    ),
    // Attested by a mark, whose rule is nftables' here and iptables' there.
    (
        KUBERNETES,
        setting(Backend::Vxlan, Path::Flow, true),
        with_kubernetes,
    ),
    (
        KUBERNETES,
        setting(Backend::HostGw, Path::Flow, true),
        with_kubernetes,
    ),
    (
        KUBERNETES,
        setting(Backend::HostGw, Path::Kernel, false),
        with_kubernetes,
    ),
    (
        ETCD,
        setting(Backend::Vxlan, Path::Kernel, false),
        with_etcd,
    ),
];

const fn setting(backend: Backend, path: Path, mark: bool) -> Setting {
    Setting {
        backend,
        path,
        mark,
        broken: None,
    }
}

fn with_kubernetes(setting: Setting) -> Outcome {
    there_and_back(setting, LeaseStore::ApiServer)
}

fn with_etcd(setting: Setting) -> Outcome {
    there_and_back(setting, LeaseStore::Etcd)
}

fn there_and_back(setting: Setting, leases: LeaseStore) -> Outcome {
    let config = ClusterConfig {
        nodes: vec![
            NodeConfig::stock(),
            NodeConfig::stock(),
            NodeConfig::stock(),
        ],
        pods: 1,
        network: setting.network(),
        leases,
        ..ClusterConfig::default()
    };
    with_unready_cluster(config, |cluster| travel(cluster, setting, leases))
}

fn travel(cluster: &Cluster, setting: Setting, leases: LeaseStore) -> Outcome {
    let (mut traffic, _servers) = flows::start(cluster)?;
    let before = steps::State::of_all(cluster, leases)?;
    let mut step = |name: &str, work: &dyn Fn() -> Outcome| {
        let worked = work();
        // What the step has begun shows soon: flows turn fast, timers run.
        std::thread::sleep(wait::patient(steps::PAUSE));
        traffic.lap(name)?;
        worked
    };
    step("flanneld on all nodes", &|| Ok(()))?;
    for number in 1..=3 {
        step(&format!("n{number}: the agent takes over"), &|| {
            steps::take_over(cluster, number, setting)?;
            before.still(cluster)
        })?;
    }
    step("n1: the agent is stopped and started", &|| {
        cluster.node(1).agent().restart()?;
        before.still(cluster)
    })?;
    step(
        "n2: the agent is killed and started, as in an upgrade",
        &|| {
            let agent = cluster.node(2).agent();
            agent.kill()?;
            agent.start()?;
            agent.wait_ready()?;
            before.still(cluster)
        },
    )?;
    steps::fast(cluster, setting)?;
    step(
        "n1: agent stopped, cleanup --keep-network, flanneld",
        &|| {
            cluster.node(1).agent().stop()?;
            steps::cleanup(cluster.node(1))?;
            steps::flanneld(cluster, 1)?;
            before.still(cluster)
        },
    )?;
    step(
        "n2: fast-path off, agent stopped, flanneld, cleanup --keep-network",
        &|| {
            steps::turn_off(cluster.node(2), setting)?;
            cluster.node(2).agent().stop()?;
            steps::flanneld(cluster, 2)?;
            steps::cleanup(cluster.node(2))?;
            before.still(cluster)
        },
    )?;
    step(
        "n3: agent killed, flanneld, cleanup --keep-network",
        &|| {
            cluster.node(3).agent().kill()?;
            steps::flanneld(cluster, 3)?;
            steps::cleanup(cluster.node(3))?;
            before.still(cluster)
        },
    )?;
    step("flanneld on all nodes, as before", &|| Ok(()))?;
    let laps = traffic.stop()?;
    println!("{setting}, leases in {leases:?}:\n{laps}");
    for node in cluster.nodes() {
        steps::nothing_left(node)?;
        let invalid = flows::invalid(node)?;
        ensure!(
            invalid == 0,
            "{}: {invalid} packets were INVALID\n{laps}",
            node.name()
        );
    }
    laps.assert_whole(wait::patient(SILENCE))
}

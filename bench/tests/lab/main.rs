//! The lab itself: clusters of stock nodes alone, and what is left when they go.

mod clusters;
mod endings;
mod remote;
mod secure;
mod stock;
mod stores;
mod traffic;

use std::process::ExitCode;

use lab::{Cluster, ClusterConfig, Netns, NodeConfig, Pod, Result, process, signals};
use libtest_mimic::{Arguments, Failed, Trial};

/// Names the agent that the tests start.
const AGENT_VARIABLE: &str = "FLANNEL_AGENT";

/// Makes this program build a cluster and wait, for tests that end it: `keep` to let the cluster stay.
const CHILD_VARIABLE: &str = "LAB_TEST_CHILD";
const KEEP: &str = "keep";

type Test = fn() -> Result<()>;

fn main() -> ExitCode {
    signals::tear_down_on_signals(signals::exit_code).expect("signal handlers can be installed");
    if let Some(keep) = std::env::var_os(CHILD_VARIABLE) {
        return endings::stay_up(keep == KEEP);
    }
    let tests: [(&str, Test); 24] = [
        ("a_signal_leaves_nothing", endings::after_a_signal),
        (
            "leftovers_of_a_killed_process_go_with_the_next_start",
            endings::after_a_kill,
        ),
        (
            "a_kept_cluster_outlives_its_process",
            endings::after_keeping,
        ),
        ("agents_start_die_and_come_back", clusters::agent_lifecycle),
        (
            "stock_vxlan_nodes_reach_each_other_also_through_the_router",
            clusters::stock_vxlan,
        ),
        (
            "stock_host_gw_nodes_reach_each_other_with_service_rules",
            clusters::stock_host_gw,
        ),
        ("stock_vxlan_nodes_in_dual_stack", stock::vxlan_dual),
        (
            "stock_nodes_mix_tunnels_and_direct_routes",
            stock::direct_routing,
        ),
        ("stock_host_gw_nodes_in_dual_stack", stock::host_gw_dual),
        ("stock_udp_nodes_reach_each_other", stock::udp),
        ("stock_ipip_nodes_reach_each_other", stock::ipip),
        (
            "stock_leases_are_upstreams_byte_by_byte",
            stock::leases_are_upstreams,
        ),
        ("stock_nodes_follow_leases", clusters::stock_follows_leases),
        (
            "leases_in_the_kubernetes_api",
            stores::in_the_kubernetes_api,
        ),
        ("leases_in_the_kubernetes_api_with_tls", secure::over_tls),
        ("leases_in_a_file", stores::in_a_file),
        (
            "large_packets_pass_without_offloads",
            clusters::without_offloads,
        ),
        (
            "clusters_in_one_process_are_separate_and_leave_nothing",
            clusters::side_by_side,
        ),
        ("pods_come_and_go", clusters::pods_come_and_go),
        (
            "generators_find_nothing_on_a_sound_network",
            traffic::generators_sound,
        ),
        (
            "generators_find_loss_resets_and_stalls",
            traffic::generators_unsound,
        ),
        ("captured_frames_are_flannels_vxlan", traffic::capture_vxlan),
        (
            "server_and_client_yield_all_figures",
            remote::all_figures_come,
        ),
        (
            "server_and_client_say_what_is_wrong",
            remote::what_is_wrong_is_said,
        ),
    ];
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: network namespaces need root");
    }
    let has_agent = std::env::var_os(AGENT_VARIABLE).is_some();
    if !has_agent {
        println!("skipped: tests of agents need {AGENT_VARIABLE}=<path of flannel-agent>");
    }
    let trials = tests.into_iter().map(|(name, test)| {
        let lacks = root
            && (name.starts_with("stock_ipip") && stock::lacks_ipip()
                || name.ends_with("with_tls") && secure::lacks_openssl());
        let runs = root && !lacks && (has_agent || !name.starts_with("agents_"));
        Trial::test(name, move || {
            test().map_err(|error| Failed::from(error.to_string()))
        })
        .with_ignored_flag(!runs)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn cluster(nodes: Vec<NodeConfig>, pods: usize) -> ClusterConfig {
    ClusterConfig {
        nodes,
        pods,
        ..ClusterConfig::default()
    }
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

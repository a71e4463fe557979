//! The agent in clusters: real etcd, real CNI plugins, real packets between pods on different nodes.
//!
//! One theme per file. A test's name says what is claimed, after the backend and the path that it is claimed for:
//! `vxlan::subnet::…` runs with `--fast-path=subnet`, `vxlan::off::…` on the kernel path alone. Each test has a cluster
//! of its own, so any number of them run side by side.

mod bypass;
mod cleanup;
mod config;
mod declined;
mod fallback;
mod flow;
mod ipvs;
mod kernels;
mod matrix;
mod meter;
mod mixed;
mod nodes;
mod permission;
mod repair;
mod restart;
mod routes;
mod rules;
mod spoofing;
mod support;
mod tiers;
mod wire;

use std::process::ExitCode;

use lab::signals;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use support::{Backend, Outcome, Path, Setting};

/// A test of one backend on one path.
type Test = fn(Setting) -> Outcome;

/// Tests of every backend on every path.
const EVERYWHERE: &[(&str, Test)] = &[
    ("pods_reach_pods_with_offloads", matrix::with_offloads),
    ("pods_reach_pods_without_offloads", matrix::without_offloads),
    (
        "large_packets_get_through_or_are_answered",
        matrix::large_packets,
    ),
    ("nodes_join_and_leave", nodes::join_and_leave),
    (
        "nodes_behind_a_router_are_reached_or_named",
        nodes::behind_a_router,
    ),
    ("pods_come_and_go", nodes::pods_come_and_go),
    ("agents_restart_without_loss", restart::agents_restart),
    ("agents_are_killed_without_loss", restart::agents_are_killed),
    ("etcd_is_away_without_loss", restart::etcd_is_away),
    ("removed_entries_come_back", repair::removed_entries),
    ("bad_leases_harm_no_other", repair::bad_leases),
    (
        "an_overwritten_or_deleted_lease_is_restored",
        repair::overwritten_lease,
    ),
    ("stock_nodes_are_peers_like_any", mixed::with_stock_node),
    (
        "the_end_leaves_all_and_cleanup_nothing",
        cleanup::end_and_cleanup,
    ),
];

/// Tests of the VXLAN backend on every path.
const VXLAN: &[(&str, Test)] = &[
    (
        "a_deleted_device_is_back_within_a_second",
        repair::deleted_device,
    ),
    (
        "100000_packets_cross_kills_without_loss",
        restart::agents_are_killed_in_a_long_run,
    ),
    (
        "direct_and_tunnelled_peers_mix",
        routes::direct_and_tunnelled_peers_mix,
    ),
];

/// Tests of what does not depend on the path.
const CONTROL: &[(&str, Test)] = &[
    (
        "rules_drop_what_has_a_false_source",
        spoofing::rules_drop_what_has_a_false_source,
    ),
    ("rules_are_upstreams_with_either_tool", rules::as_upstream),
    (
        "a_lease_that_another_node_took_is_left_to_it",
        repair::stolen_lease,
    ),
    ("leases_are_found_after_a_compaction", rules::compaction),
    (
        "a_wrong_network_config_is_named_and_its_correction_taken",
        config::malformed_network_config,
    ),
    (
        "a_missing_network_config_is_waited_for",
        config::no_network_config,
    ),
];

/// Tests of the fast path, with every backend.
const FAST: &[(&str, Test)] = &[
    ("clsact_filters_carry", tiers::attached_by_clsact),
    (
        "a_hook_at_the_bridge_carries",
        tiers::taken_up_at_the_bridge,
    ),
    ("frames_are_those_that_the_kernel_sends", wire::same_frames),
    (
        "what_it_declines_the_kernel_carries",
        declined::declined_traffic,
    ),
    (
        "without_the_right_to_use_bpf_the_kernel_carries_all",
        fallback::bpf_denied,
    ),
    (
        "without_a_place_for_pins_the_kernel_carries_all",
        fallback::no_pins,
    ),
    (
        "a_shaper_sees_what_a_pod_receives",
        bypass::a_shaper_sees_what_a_pod_receives,
    ),
    (
        "a_filter_sees_what_a_pod_sends",
        bypass::a_filter_sees_what_a_pod_sends,
    ),
    (
        "programs_that_come_later_see_what_a_pod_sends_and_receives",
        bypass::programs_that_come_later,
    ),
    (
        "a_filter_on_the_uplink_sees_all",
        bypass::a_filter_on_the_uplink_sees_all,
    ),
    (
        "ipsec_policies_are_obeyed",
        bypass::ipsec_policies_are_obeyed,
    ),
    (
        "a_fast_path_that_is_turned_off_is_gone",
        cleanup::turned_off,
    ),
];

/// Tests of the fast path where there is a VXLAN device.
const FAST_VXLAN: &[(&str, Test)] = &[
    ("the_device_receives", tiers::received_at_the_device),
    ("the_device_sends", tiers::sent_by_the_device),
];

/// Tests of what the kernel was told to do to pods' flows: on its own path, and where flows need its permission.
const RULED: &[(&str, Test)] = &[
    ("services_work", permission::services_work),
    (
        "one_port_for_pod_and_service",
        permission::one_port_for_pod_and_service,
    ),
    (
        "one_port_after_conntrack_forgot",
        permission::one_port_after_conntrack_forgot,
    ),
    ("policies_are_obeyed", permission::policies_are_obeyed),
];

/// Tests of flow permission, with every backend.
const FLOW: &[(&str, Test)] = &[
    (
        "a_false_source_is_dropped_if_wanted",
        spoofing::a_false_source_is_dropped_if_wanted,
    ),
    (
        "both_directions_are_fast",
        kernels::both_directions_are_fast,
    ),
    ("a_stream_stays_in_order", flow::a_stream_stays_in_order),
    (
        "datagrams_turn_fast_when_assured",
        flow::datagrams_turn_fast_when_assured,
    ),
    ("modes_change_without_loss", restart::modes_change),
    (
        "connections_close_properly",
        flow::connections_close_properly,
    ),
];

/// Says what this machine lacks for a test, if it lacks anything.
type Lacks = fn() -> Option<&'static str>;

/// Tests of flow permission that need more of the kernel than most have built in: `cargo xtask vm` boots kernels that do.
const SPECIAL: &[(&str, Test, Lacks)] = &[
    (
        "a_tagged_uplink_is_fast_and_tagged_frames_are_the_kernels",
        kernels::tagged_uplink,
        kernels::lacks_vlan,
    ),
    (
        "sctp_is_the_kernels",
        kernels::sctp_is_the_kernels,
        kernels::lacks_sctp,
    ),
];

/// Such tests of what the kernel was told to do to flows, for each way to attest them.
const SPECIAL_RULED: &[(&str, Test, Lacks)] = &[(
    "what_ipvs_rewrites_is_never_fast",
    ipvs::what_it_rewrites_is_never_fast,
    ipvs::is_lacking,
)];

/// Wrong BPF objects, each with a test that must fail on it and what it must say: a test that cannot fail proves nothing.
const CAUGHT: &[(&str, Test, &str)] = &[
    (
        "broken-no-nat-test",
        permission::one_port_for_pod_and_service,
        "an answer of 8 bytes from",
    ),
    (
        "broken-no-kill",
        permission::one_port_after_conntrack_forgot,
        "an answer of 8 bytes from",
    ),
    (
        "broken-probes-reorder",
        flow::a_stream_stays_in_order,
        "out of order",
    ),
];

fn main() -> ExitCode {
    signals::tear_down_on_signals(signals::exit_code).expect("signal handlers can be installed");
    let mut trials = Vec::new();
    for backend in [Backend::Vxlan, Backend::HostGw] {
        for path in [Path::Kernel, Path::Fast, Path::Flow] {
            let setting = Setting {
                backend,
                path,
                mark: false,
                broken: None,
            };
            let vxlan = (backend == Backend::Vxlan).then_some(VXLAN);
            let control = (backend == Backend::Vxlan && path == Path::Kernel).then_some(CONTROL);
            let fast = (path == Path::Fast).then_some(FAST);
            let fast_vxlan = fast.and(vxlan).map(|_| FAST_VXLAN);
            let flow = (path == Path::Flow).then_some(FLOW);
            let ruled = (path != Path::Fast).then_some(RULED);
            let tests = [
                Some(EVERYWHERE),
                vxlan,
                control,
                fast,
                fast_vxlan,
                flow,
                ruled,
            ];
            trials.extend(
                tests
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|(name, test)| trial(setting, name, *test)),
            );
        }
    }
    for backend in [Backend::Vxlan, Backend::HostGw] {
        let setting = Setting {
            backend,
            path: Path::Flow,
            mark: true,
            broken: None,
        };
        let tests = RULED.iter().chain(FLOW);
        trials.extend(tests.map(|(name, test)| trial(setting, name, *test)));
        let read = Setting {
            mark: false,
            ..setting
        };
        let both = SPECIAL_RULED.iter();
        trials.extend(both.clone().map(|test| special(setting, *test)));
        let by_reading = SPECIAL.iter().chain(both);
        trials.extend(by_reading.map(|test| special(read, *test)));
    }
    trials.extend(
        CAUGHT
            .iter()
            .map(|(broken, test, complaint)| caught(broken, *test, complaint)),
    );
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(setting: Setting, name: &str, test: Test) -> Trial {
    Trial::ignorable_test(
        format!("{setting}::{name}"),
        move || match support::missing(setting.path) {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => test(setting)
                .map(|()| Completion::Completed)
                .map_err(|error| Failed::from(format!("{error:#}"))),
        },
    )
}

/// A trial of something that not every kernel has.
fn special(setting: Setting, (name, test, lacks): (&str, Test, Lacks)) -> Trial {
    Trial::ignorable_test(
        format!("{setting}::{name}"),
        move || match support::missing(setting.path).or_else(lacks) {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => test(setting)
                .map(|()| Completion::Completed)
                .map_err(|error| Failed::from(format!("{error:#}"))),
        },
    )
}

/// A trial that wants `test` to fail on a wrong object.
fn caught(broken: &'static str, test: Test, complaint: &'static str) -> Trial {
    let setting = Setting {
        backend: Backend::Vxlan,
        path: Path::Flow,
        mark: false,
        broken: Some(broken),
    };
    Trial::ignorable_test(format!("{broken}_is_caught"), move || {
        if std::env::var_os(support::BROKEN_OBJECTS).is_none() {
            return Ok(Completion::ignored_with(
                "no wrong objects: `cargo xtask test` builds them",
            ));
        }
        if let Some(reason) = support::missing(setting.path) {
            return Ok(Completion::ignored_with(reason));
        }
        match test(setting) {
            Ok(()) => Err(Failed::from("the test does not notice what is wrong")),
            Err(error) if error.to_string().contains(complaint) => Ok(Completion::Completed),
            Err(error) => Err(Failed::from(format!(
                "fails for another reason than {complaint:?}: {error:#}"
            ))),
        }
    })
}

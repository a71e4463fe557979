//! Which tests there are, in lists by what they are run with.

use lab::services::Form;

use crate::support::{Outcome, Setting};
use crate::{
    away, blackholes, bypass, cleanup, cni, comparison, config, declined, differential, escape,
    fallback, floods, flow, flows, headers, ipv6, ipvs, kernels, kube, life, marks, matrix,
    members, mixed, model, mtu, nodes, offloads, order, permission, policies, privileges, process,
    repair, restart, routes, rule_sources, rule_tools, rules, scenarios, secure, services,
    spoofing, tiers, window, wire, xdp,
};

/// A test of one backend on one path.
pub(crate) type Test = fn(Setting) -> Outcome;

/// Tests of every backend on every path.
pub(crate) const EVERYWHERE: &[(&str, Test)] = &[
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
pub(crate) const VXLAN: &[(&str, Test)] = &[
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
    ("pods_of_the_cni_plugin_are_pods_like_any", cni::with_agents),
];

/// Tests of the CNI plugin on a node of its own, which know neither backend nor path.
pub(crate) const CNI: &[(&str, Test)] = &[
    ("cni_pods_come_and_go", cni::come_and_go),
    ("cni_pods_come_and_go_in_crowds", cni::crowds),
    ("cni_pods_have_both_families", cni::dual_stack),
    ("cni_results_go_along_the_chain", cni::chained),
    ("cni_pods_are_checked", cni::checked),
    ("cni_killed_plugins_leave_nothing", cni::killed),
    (
        "cni_commands_for_one_container_take_turns",
        cni::same_container,
    ),
    ("cni_del_needs_no_state", cni::without_state),
    ("cni_interfaces_do_not_meet", cni::interfaces),
    ("cni_garbage_is_collected", cni::collected),
    ("cni_delegates_get_upstreams_bytes", cni::exchanged),
    ("cni_status_and_gc_are_passed_on", cni::passed_on),
    ("cni_errors_are_the_specifications", cni::errors),
];

/// Tests of IPv6 beside IPv4, where flows need permission.
pub(crate) const IPV6: &[(&str, Test)] = &[
    (
        "ipv6_streams_are_fast_and_in_order",
        ipv6::streams_are_fast_and_in_order,
    ),
    (
        "ipv6_datagrams_turn_fast_when_assured",
        ipv6::datagrams_turn_fast_when_assured,
    ),
    (
        "ipv6_connections_close_properly",
        ipv6::connections_close_properly,
    ),
    (
        "ipv6_rewritten_flows_are_the_kernels",
        ipv6::rewritten_flows_are_the_kernels,
    ),
    ("ipv6_revoked_flows_end", ipv6::revoked_flows_end),
    (
        "ipv6_frames_are_those_that_the_kernel_sends",
        ipv6::frames_are_those_that_the_kernel_sends,
    ),
    (
        "ipv6_what_is_declined_the_kernel_carries",
        ipv6::what_is_declined_the_kernel_carries,
    ),
];

/// Tests of what does not depend on the path.
pub(crate) const CONTROL: &[(&str, Test)] = &[
    (
        "any_sequence_of_events_ends_as_wanted",
        model::any_sequence_ends_as_wanted,
    ),
    (
        "a_restart_changes_nothing_in_the_kernel",
        model::a_restart_changes_nothing,
    ),
    (
        "rules_drop_what_has_a_false_source",
        spoofing::rules_drop_what_has_a_false_source,
    ),
    ("rules_are_upstreams_with_either_tool", rules::as_upstream),
    ("rules_are_of_both_families", rules::of_both_families),
    (
        "each_way_of_writing_rules_is_alone",
        rule_tools::each_way_is_alone,
    ),
    (
        "a_chain_of_others_interest_is_emptied",
        rule_tools::a_chain_of_others_interest_is_emptied,
    ),
    (
        "the_variant_of_iptables_is_that_of_others_rules",
        rule_tools::the_variant_is_that_of_others_rules,
    ),
    (
        "strict_checks_drop_false_sources_of_both_families",
        rule_sources::strict_checks_drop_false_sources,
    ),
    (
        "sources_are_upstreams_without_a_gap",
        rule_sources::sources_are_upstreams_without_a_gap,
    ),
    ("a_rule_that_somebody_deletes_is_back", rules::deleted_rules),
    (
        "a_missing_tool_is_replaced_by_the_other",
        rules::missing_tool,
    ),
    (
        "blackhole_routes_stand_behind_all_others",
        blackholes::behind_all_others,
    ),
    (
        "a_blackhole_route_hides_no_pod_and_goes",
        blackholes::of_the_agent,
    ),
    (
        "readme_has_the_table_that_is_asserted",
        scenarios::readme_has_the_table,
    ),
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
    (
        "etcd_is_verified_by_the_authority_alone",
        secure::by_the_authority_alone,
    ),
    (
        "certificates_change_while_the_agent_runs",
        secure::with_certificates_that_change,
    ),
    ("tokens_expire_and_passwords_change", secure::with_users),
    (
        "signed_tokens_expire_and_passwords_change",
        secure::with_users_and_signed_tokens,
    ),
    ("members_of_etcd_come_and_go", members::come_and_go),
    ("kube_nodes_come_and_go", kube::nodes_come_and_go),
    (
        "kube_api_server_is_away_without_loss",
        kube::the_api_server_is_away_without_loss,
    ),
    ("kube_5000_nodes_need_little", kube::many_nodes),
    (
        "what_cannot_work_ends_with_its_status_and_one_line",
        process::exit_statuses,
    ),
    ("a_signal_ends_it_whatever_it_waits_for", process::stops),
    ("systemd_hears_how_it_is", process::tells_systemd),
    (
        "probes_are_answered_and_metrics_are_true",
        process::probes_and_metrics,
    ),
    ("a_thousand_leases_are_a_few_lines", process::logs_are_brief),
];

/// Tests of the fast path, with every backend.
pub(crate) const FAST: &[(&str, Test)] = &[
    (
        "probes_are_answered_and_metrics_are_true",
        process::probes_and_metrics,
    ),
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
pub(crate) const FAST_VXLAN: &[(&str, Test)] = &[
    ("the_device_receives", tiers::received_at_the_device),
    ("the_device_sends", tiers::sent_by_the_device),
    ("xdp_receives", xdp::xdp_receives),
    (
        "an_xdp_program_of_others_stays",
        xdp::an_xdp_program_of_others_stays,
    ),
    ("xdp_goes_with_its_option", xdp::xdp_goes_with_its_option),
];

/// Tests of what the kernel was told to do to pods' flows: on its own path, and where flows need its permission.
pub(crate) const RULED: &[(&str, Test)] = &[
    ("services_work_by_iptables_nft", |setting| {
        services::work(setting, Form::IptablesNft, true)
    }),
    ("services_work_by_iptables_legacy", |setting| {
        services::work(setting, Form::IptablesLegacy, true)
    }),
    ("services_work_by_nftables", |setting| {
        services::work(setting, Form::Nftables, true)
    }),
    ("services_work_by_iptables_nft_unbridged", |setting| {
        services::work(setting, Form::IptablesNft, false)
    }),
    ("services_work_by_iptables_legacy_unbridged", |setting| {
        services::work(setting, Form::IptablesLegacy, false)
    }),
    ("services_work_by_nftables_unbridged", |setting| {
        services::work(setting, Form::Nftables, false)
    }),
    (
        "one_port_for_pod_and_service",
        permission::one_port_for_pod_and_service,
    ),
    (
        "one_port_after_conntrack_forgot",
        permission::one_port_after_conntrack_forgot,
    ),
    (
        "one_port_for_two_connections",
        permission::one_port_for_two_connections,
    ),
    (
        "one_port_for_one_connection_after_another",
        permission::one_port_for_one_connection_after_another,
    ),
    ("revoked_flows_end", policies::revoked_flows_end),
    (
        "revoked_flows_end_sooner_if_wanted",
        policies::revoked_flows_end_sooner_if_wanted,
    ),
    (
        "new_flows_get_past_no_policy",
        policies::new_flows_get_past_no_policy,
    ),
    (
        "policies_for_new_flows_end_none",
        policies::policies_for_new_flows_end_none,
    ),
    (
        "connections_end_as_in_the_kernel",
        life::connections_end_as_in_the_kernel,
    ),
];

/// Tests of flow permission, with every backend.
pub(crate) const FLOW: &[(&str, Test)] = &[
    (
        "the_manifests_privileges_are_enough",
        privileges::are_enough,
    ),
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
    ("a_stream_learns_the_mtu", mtu::a_stream_learns_the_mtu),
    (
        "a_stream_comes_back_to_the_kernel",
        window::a_stream_comes_back_to_the_kernel,
    ),
    (
        "tcp_never_leaves_a_strict_conntrack",
        window::tcp_never_leaves_a_strict_conntrack,
    ),
    (
        "connections_close_properly",
        flow::connections_close_properly,
    ),
    (
        "flows_are_told_with_their_reasons",
        flows::flows_are_told_with_their_reasons,
    ),
];

/// Tests of flow permission that do not depend on what attests, with every backend.
pub(crate) const FLOW_TRAFFIC: &[(&str, Test)] = &[
    (
        "a_comparison_measures_and_proves_both_paths",
        comparison::both_paths_are_measured_and_proven,
    ),
    (
        "a_comparison_gives_modes_back_when_interrupted",
        comparison::modes_come_back_after_an_interruption,
    ),
    (
        "random_packets_fare_alike",
        differential::random_packets_fare_alike,
    ),
    ("aggregates_are_fast", flow::aggregates_are_fast),
    (
        "two_processors_are_as_one",
        order::two_processors_are_as_one,
    ),
];

/// Tests of what permitted flows must have in common with the kernel's own path, on both.
pub(crate) const TRAFFIC: &[(&str, Test)] = &[
    ("hops_are_the_kernels", headers::hops_are_the_kernels),
    (
        "a_narrower_path_is_learned",
        headers::a_narrower_path_is_learned,
    ),
    (
        "content_is_right_with_any_offloads",
        offloads::any_combination,
    ),
    (
        "aggregates_are_passed_on_by_a_router",
        offloads::passed_on_by_a_router,
    ),
    (
        "aggregates_of_datagrams_arrive",
        offloads::datagram_aggregates,
    ),
    ("jumbo_frames_get_through", offloads::jumbo_frames),
    ("bursts_stay_in_order", order::bursts_stay_in_order),
    ("datagrams_stay_in_order", order::datagrams_stay_in_order),
];

/// Says what this machine lacks for a test, if it lacks anything.
pub(crate) type Lacks = fn() -> Option<&'static str>;

/// Tests of flow permission that need more of the kernel than most have built in: `cargo xtask vm` boots kernels that do.
pub(crate) const SPECIAL: &[(&str, Test, Lacks)] = &[
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
pub(crate) const SPECIAL_RULED: &[(&str, Test, Lacks)] = &[(
    "what_ipvs_rewrites_is_never_fast",
    ipvs::what_it_rewrites_is_never_fast,
    ipvs::is_lacking,
)];

/// Tests of flow permission that do not depend on who attests.
pub(crate) const FLOW_LIFE: &[(&str, Test)] = &[
    (
        "half_closed_downloads_stay_fast",
        life::half_closed_downloads_stay_fast,
    ),
    ("flows_come_back", life::flows_come_back),
    ("one_node_alone_is_fast", life::one_node_alone_is_fast),
    (
        "probes_without_a_hook_reach_nobody",
        escape::probes_without_a_hook_reach_nobody,
    ),
    (
        "redirected_packets_end_no_flow",
        marks::redirected_packets_end_no_flow,
    ),
    ("tags_stay_on_their_node", marks::tags_stay_on_their_node),
    (
        "without_a_heartbeat_the_kernel_carries",
        away::without_a_heartbeat_the_kernel_carries,
    ),
    (
        "flows_stay_fast_without_the_agent",
        away::flows_stay_fast_without_the_agent,
    ),
];

/// Tests of flow permission that depend neither on who attests nor on the backend.
pub(crate) const FLOW_ALONE: &[(&str, Test)] = &[
    (
        "a_missing_privilege_is_named_and_the_kernel_carries_all",
        privileges::say_what_is_missing,
    ),
    ("without_net_admin_it_ends", privileges::net_admin_is_named),
    (
        "without_net_broadcast_pods_are_found",
        privileges::net_broadcast_can_be_missing,
    ),
    (
        "net_raw_is_for_iptables_legacy",
        privileges::net_raw_is_for_iptables_legacy,
    ),
    (
        "marks_of_the_node_stay_on_it",
        kernels::marks_of_the_node_stay_on_it,
    ),
    (
        "one_way_datagrams_outlive_short_timeouts",
        life::one_way_datagrams_outlive_short_timeouts,
    ),
    ("scans_leave_nothing", floods::scans_leave_nothing),
    (
        "more_flows_than_the_map_holds_are_slow",
        floods::more_flows_than_the_map_holds,
    ),
    (
        "probes_on_a_turned_route_reach_nobody",
        escape::probes_on_a_turned_route_reach_nobody,
    ),
    (
        "one_probe_at_most_reaches_a_pod",
        escape::one_probe_at_most_reaches_a_pod,
    ),
    (
        "probes_with_another_time_to_live_reach_nobody",
        escape::probes_with_another_time_to_live_reach_nobody,
    ),
    (
        "probes_across_changes_reach_nobody",
        escape::probes_across_changes_reach_nobody,
    ),
    (
        "a_stream_that_the_device_merges_stays_in_order",
        flow::a_stream_that_the_device_merges_stays_in_order,
    ),
    (
        "xdp_keeps_a_stream_in_order",
        xdp::xdp_keeps_a_stream_in_order,
    ),
    (
        "pods_that_come_and_go_make_no_other_cold",
        away::pods_that_come_and_go_make_no_other_cold,
    ),
    (
        "a_changed_lease_makes_its_own_flows_cold",
        away::a_changed_lease_makes_its_own_flows_cold,
    ),
];

/// Tests of marks, whoever attests.
pub(crate) const MARKS: &[(&str, Test)] = &[(
    "copied_marks_harm_nothing",
    marks::copied_marks_harm_nothing,
)];

/// Tests of attestation by a mark.
pub(crate) const MARKED: &[(&str, Test)] = &[
    (
        "routing_by_the_mark_catches_nothing",
        marks::routing_by_the_mark_catches_nothing,
    ),
    (
        "marks_of_others_attest_nothing",
        marks::marks_of_others_attest_nothing,
    ),
];

/// Wrong BPF objects, each with a test that must fail on it and what it must say: a test that cannot fail proves nothing.
pub(crate) const CAUGHT: &[(&str, Test, &str)] = &[
    (
        "broken-no-nat-test",
        permission::one_port_for_pod_and_service,
        "an answer of 1024 bytes from",
    ),
    (
        "broken-no-kill",
        permission::one_port_after_conntrack_forgot,
        "an answer of 1024 bytes from",
    ),
    (
        "broken-probes-reorder",
        flow::a_stream_stays_in_order,
        "out of order",
    ),
    (
        "broken-no-gso-size",
        mtu::a_stream_learns_the_mtu,
        "packets were sent that the wire does not take",
    ),
    (
        "broken-no-be-liberal",
        window::tcp_never_leaves_a_strict_conntrack,
        "packets were INVALID",
    ),
];

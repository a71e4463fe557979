//! Every check and every fault: what is asked, where it comes from, what flanneld does, what this agent does, and the
//! tests that assert it. The README's table is made of this.

use lab::services::Form;

use crate::support::Outcome;
use crate::{
    cleanup, cluster, cni, compaction, config, daemons, devices, faults, interfaces, keys,
    kubernetes, leases, masquerade, matrix, mixed, offloads, repair, restart, routes, services,
    setting, wire,
};

/// A test and its name behind the number.
pub(crate) type Test = (&'static str, fn() -> Outcome);

/// A check of upstream's, or a fault that its users report.
pub(crate) struct Check {
    pub(crate) kind: Kind,
    pub(crate) number: u8,
    /// What is asked, or what is wrong.
    pub(crate) what: &'static str,
    /// Where it comes from: files of flannel-io/flannel, or issues there.
    pub(crate) origin: &'static str,
    /// What flanneld v0.28.9 does.
    pub(crate) upstream: &'static str,
    /// What this agent does.
    pub(crate) ours: &'static str,
    pub(crate) tests: &'static [Test],
}

/// Which of the two lists a check is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Check,
    Fault,
}

impl Check {
    /// What its tests' names begin with: `c01`, `f02`.
    pub(crate) fn prefix(&self) -> String {
        let letter = match self.kind {
            Kind::Check => 'c',
            Kind::Fault => 'f',
        };
        format!("{letter}{:02}", self.number)
    }
}

const fn check(number: u8, what: &'static str, origin: &'static str) -> Check {
    Check {
        kind: Kind::Check,
        number,
        what,
        origin,
        upstream: "yes",
        ours: "yes",
        tests: &[],
    }
}

const fn fault(number: u8, what: &'static str, origin: &'static str) -> Check {
    Check {
        kind: Kind::Fault,
        ..check(number, what, origin)
    }
}

/// Upstream's own checks, as a black box can make them.
pub(crate) const CHECKS: &[Check] = &[
    Check {
        tests: &[("vxlan_two_agents", daemons::vxlan)],
        ..check(
            1,
            "`vxlan`: two daemons, each pings the other's `FLANNEL_SUBNET`",
            "functional/etcd_test.go",
        )
    },
    Check {
        tests: &[("host_gw_two_agents", daemons::host_gw)],
        ..check(2, "`host-gw`: the same", "functional/etcd_test.go")
    },
    Check {
        tests: &[
            ("udp_two_agents", daemons::udp),
            ("udp_with_a_stock_node", daemons::udp_with_stock_node),
        ],
        ..check(
            3,
            "`udp`: the same, and with a stock node",
            "functional/etcd_test.go",
        )
    },
    Check {
        tests: &[
            ("ipip_two_agents", daemons::ipip),
            ("ipip_with_a_stock_node", daemons::ipip_with_stock_node),
        ],
        ..check(
            4,
            "`ipip`: the same, where the kernel has it",
            "functional/etcd_test.go",
        )
    },
    Check {
        tests: &[("two_agents_per_host", daemons::two_per_host)],
        ..check(
            5,
            "two daemons per host (`-etcd-prefix`, `-subnet-file`), each with its own path",
            "functional/etcd_test.go",
        )
    },
    Check {
        tests: &[
            ("iperf3_completes", daemons::iperf),
            ("pods_reach_stock_nodes_by_vxlan", || {
                mixed::with_stock_node(setting::vxlan())
            }),
            ("pods_reach_stock_nodes_by_host_gw", || {
                mixed::with_stock_node(setting::host_gw())
            }),
        ],
        ..check(
            6,
            "`iperf3` between pods; mixed with stock nodes",
            "e2e/connectivity_test.go",
        )
    },
    Check {
        tests: &[
            ("iptables_rules", || {
                cluster::rules::as_upstream(setting::vxlan())
            }),
            ("iptables_rules_ipv6", masquerade::ip6tables_golden),
        ],
        ..check(7, "iptables rules, line by line in order", "e2e/rules.go")
    },
    Check {
        tests: &[
            ("nftables_rules", masquerade::nftables_golden),
            ("nftables_rules_ipv6", masquerade::nftables6_golden),
        ],
        ..check(8, "nftables rules, character by character", "e2e/rules.go")
    },
    Check {
        tests: &[
            ("restart_keeps_subnet_and_traffic", leases::restart_keeps),
            ("a_killed_agent_costs_no_packet", || {
                restart::agents_are_killed(setting::vxlan())
            }),
        ],
        ..check(
            9,
            "a restart keeps `FLANNEL_SUBNET`, and traffic",
            "e2e/resilience_test.go",
        )
    },
    Check {
        upstream: "yes; ends when its own key is deleted",
        ours: "yes; takes its own key again",
        tests: &[
            ("lease_is_golden_and_lives_a_day", leases::golden_value),
            ("dual_stack_lease_is_golden", leases::golden_dual_value),
            ("renewal_gives_the_time_back", leases::renewal),
            ("shortened_lease_is_renewed", leases::shortened),
            ("expired_peer_is_removed", leases::peer_expires),
            ("subnet_is_found_by_address", leases::reused_by_address),
            ("subnet_is_found_in_subnet_env", leases::reused_by_file),
            (
                "changed_config_gives_another_subnet",
                leases::config_changes,
            ),
        ],
        ..check(
            10,
            "leases: value, 24 h, renewal, expiry of peers, reuse by address and by `subnet.env`, changed config",
            "pkg/subnet/etcd/{subnet,registry}_test.go",
        )
    },
    Check {
        tests: &[
            ("compaction_under_a_watch", compaction::while_watching),
            ("compaction_before_the_start", compaction::before_the_start),
            ("compaction_while_away", || {
                cluster::rules::compaction(setting::vxlan())
            }),
            ("compaction_over_the_own_key", compaction::over_the_own_key),
        ],
        ..check(
            11,
            "compaction of etcd, in four places",
            "pkg/subnet/etcd/registry_test.go",
        )
    },
    Check {
        upstream: "yes; a key that does not parse withdraws all peers",
        ours: "yes; such a key is named and skipped",
        tests: &[("key_grammar", keys::grammar)],
        ..check(12, "keys: 2 valid, 11 invalid", "pkg/subnet/subnet_test.go")
    },
    Check {
        tests: &[("config_ipv4", config::ipv4), ("config_ipv6", config::ipv6)],
        ..check(
            13,
            "network config: defaults and overrides, IPv4 and IPv6",
            "pkg/subnet/config_test.go",
        )
    },
    Check {
        upstream: "yes, within 10 s",
        ours: "yes, at once",
        tests: &[("gateway_and_deleted_route", routes::gateway_changes)],
        ..check(
            14,
            "a changed gateway replaces the route; a deleted route is back",
            "pkg/backend/route_network_test.go",
        )
    },
    Check {
        tests: &[("interfaces", interfaces::are_chosen)],
        ..check(
            15,
            "interface by name, address, regex, reachability, public address",
            "pkg/ipmatch/match_test.go",
        )
    },
    Check {
        upstream: "yes; CHECK, GC and STATUS do nothing",
        ours: "yes, and CHECK, GC and STATUS",
        tests: &[
            ("cni_life_cycles", || cni::come_and_go(setting::vxlan())),
            ("cni_delegates_get_upstreams_bytes", || {
                cni::exchanged(setting::vxlan())
            }),
            ("cni_both_families", || cni::dual_stack(setting::vxlan())),
            ("cni_errors", || cni::errors(setting::vxlan())),
            ("cni_del_without_state", || {
                cni::without_state(setting::vxlan())
            }),
            ("cni_check", || cni::checked(setting::vxlan())),
            ("cni_gc", || cni::collected(setting::vxlan())),
            ("cni_status_and_gc_of_delegates", || {
                cni::passed_on(setting::vxlan())
            }),
            ("cni_interfaces", || cni::interfaces(setting::vxlan())),
            ("cni_same_container", || {
                cni::same_container(setting::vxlan())
            }),
            ("cni_killed", || cni::killed(setting::vxlan())),
            ("cni_with_agents", || cni::with_agents(setting::vxlan())),
        ],
        ..check(
            16,
            "CNI plugin: life cycles, config, IPAM",
            "flannel-io/cni-plugin flannel_linux_test.go",
        )
    },
    Check {
        tests: &[(
            "subnet_env_is_sourced_by_a_shell",
            config::sourced_by_a_shell,
        )],
        ..check(
            17,
            "`subnet.env` as `mk-docker-opts.sh` sources it; lists in it (see C10)",
            "dist/mk_docker_opts_test.go, main_test.go",
        )
    },
    Check {
        tests: &[
            ("kubernetes_annotations", kubernetes::annotations::vxlan),
            (
                "kubernetes_annotations_host_gw",
                kubernetes::annotations::host_gw,
            ),
            (
                "kubernetes_annotations_dual_stack",
                kubernetes::annotations::dual_stack,
            ),
            ("kubernetes_prefixes", kubernetes::annotations::prefixes),
            (
                "kubernetes_public_ip_overwrite",
                kubernetes::annotations::public_ip_overwrite,
            ),
            (
                "kubernetes_node_public_ip",
                kubernetes::annotations::node_public_ip,
            ),
        ],
        ..check(
            18,
            "Kubernetes: annotations and their prefix, public address",
            "pkg/subnet/kube/annotations_test.go, functional/k8s_test.go",
        )
    },
    Check {
        tests: &[
            ("wire_receiver", wire::receiver),
            ("wire_receiver_ipv6", wire::receiver_ipv6),
            ("wire_sender", wire::sender),
            ("wire_sender_ipv6", wire::sender_ipv6),
            ("wire_options", wire::options),
        ],
        ..check(
            19,
            "VXLAN on the wire: 23 frames received as by the kernel's device, frames sent",
            "the kernel's drivers/net/vxlan",
        )
    },
    Check {
        tests: &[("services", || {
            services::work(setting::vxlan(), Form::IptablesNft, true)
        })],
        ..check(
            20,
            "services and their DNAT between nodes",
            "e2e/dns_test.go",
        )
    },
    Check {
        upstream: "none of it",
        tests: &[("malformed_leases", || repair::bad_leases(setting::vxlan()))],
        ..check(
            21,
            "self-healing: malformed leases; devices, flaps and stale routes are faults 2, 3 and 5",
            "issues",
        )
    },
];

/// Faults that users report upstream and that an agent can be without.
pub(crate) const FAULTS: &[Check] = &[
    Check {
        upstream: "stalls of 63 s and 1 s with some NICs; documentation says how to turn offloads off",
        ours: "content and checksums are right with any offloads",
        tests: &[("offloads_and_checksums", || {
            offloads::any_combination(setting::vxlan())
        })],
        ..fault(1, "checksum offload", "#1279 #1243 #1282 #1859 #2152 #1679")
    },
    Check {
        upstream: "device made again with another MAC, not published; no peer restored",
        ours: "device and peers back within a second, MAC published",
        tests: &[
            (
                "device_deleted",
                || repair::deleted_device(setting::vxlan()),
            ),
            ("parent_recreated", devices::parent_recreated),
        ],
        ..fault(
            2,
            "`flannel.1` gone after a restart of the network, or with its parent",
            "#869 #877 #1348 #2247 #2549",
        )
    },
    Check {
        upstream: "lost until restart",
        ours: "back at once",
        tests: &[
            ("link_flaps_vxlan", routes::link_flaps_vxlan),
            ("link_flaps_host_gw", routes::link_flaps_host_gw),
            (
                "direct_routing_follows_routes",
                routes::direct_routing_follows_routes,
            ),
        ],
        ..fault(3, "routes lost on a link flap", "#1070 #1233 #1434 #1759")
    },
    Check {
        upstream: "lost until restart (vxlan)",
        ours: "routes, FDB entries and neighbours are back at once",
        tests: &[
            ("removed_entries_vxlan", || {
                repair::removed_entries(setting::vxlan())
            }),
            ("removed_entries_host_gw", || {
                repair::removed_entries(setting::host_gw())
            }),
            ("removed_entries_kubernetes", kubernetes::faults::resync),
        ],
        ..fault(
            4,
            "missing routes, no resynchronisation",
            "#958 #1145 #1244 #1788",
        )
    },
    Check {
        upstream: "stay",
        ours: "removed at the start",
        tests: &[("stale_routes", routes::stale_after_downtime)],
        ..fault(5, "stale routes after downtime", "#2554 #996 #1546")
    },
    Check {
        upstream: "node cut off",
        ours: "the device's MAC is published and followed by peers",
        tests: &[("mac_changed", devices::mac_changes)],
        ..fault(
            6,
            "MAC changed by systemd or NetworkManager",
            "#1155 #1330 #1795 #1828 #533",
        )
    },
    Check {
        upstream: "nodes that start together may end; a renewal overwrites",
        ours: "compare-and-swap: each its own, a taken key is left alone",
        tests: &[
            ("no_two_alike", leases::no_two_alike),
            ("stolen_lease", || repair::stolen_lease(setting::vxlan())),
            ("taken_while_away", leases::restart_keeps_others),
        ],
        ..fault(
            7,
            "two nodes with one subnet",
            "#805 #813 #1129 #1182 #1289",
        )
    },
    Check {
        upstream: "ends, with status 0",
        ours: "takes the lease again, same subnet, pods notice nothing",
        tests: &[("lost_lease", || repair::overwritten_lease(setting::vxlan()))],
        ..fault(8, "lost lease", "#621 #904 #1240 #1334")
    },
    Check {
        upstream: "fixed in August 2026",
        ours: "one list, and quiet",
        tests: &[("compaction_is_no_loop", compaction::is_no_loop)],
        ..fault(9, "loop after a compaction of etcd", "#2470 #2471 #2524")
    },
    Check {
        upstream: "become leases of 24 h",
        ours: "stay reservations",
        tests: &[("reservation", leases::reservation)],
        ..fault(10, "reservations", "#1329")
    },
    Check {
        upstream: "IPv6: `subnet.env` says 20 bytes too much",
        ours: "right in the device, in `subnet.env`, and learned by streams",
        tests: &[
            ("large_packets_vxlan", || {
                matrix::large_packets(setting::of(crate::support::Backend::Vxlan))
            }),
            ("large_packets_host_gw", || {
                matrix::large_packets(setting::host_gw())
            }),
        ],
        ..fault(12, "MTU", "#841 #1011 #1781")
    },
    Check {
        upstream: "chains flushed at each start, one process per rule at each look",
        ours: "one transaction per change, none where rules are right",
        tests: &[
            ("no_window_without_rules", masquerade::has_no_window),
            ("right_rules_stay_untouched", masquerade::stays_untouched),
        ],
        ..fault(
            13,
            "iptables: lock, processes, rules that flap",
            "#933 #988 #950 #1415 #2145 #1897",
        )
    },
    Check {
        upstream: "needs a restart",
        ours: "published at once; device, routes and peers follow",
        tests: &[("address_changes", devices::address_changes)],
        ..fault(
            15,
            "the node's address changes",
            "#408 #712 #1978 #2073 #1889",
        )
    },
    Check {
        upstream: "gaps",
        tests: &[
            ("dual_stack_vxlan", daemons::dual_stack),
            (
                "dual_stack_direct_routing",
                daemons::dual_stack_direct_routing,
            ),
            ("dual_stack_host_gw", daemons::dual_stack_host_gw),
        ],
        ..fault(
            16,
            "IPv6 beside IPv4, with stock nodes",
            "#1789 #1968 #2300 #1671 #1762",
        )
    },
    Check {
        upstream: "retries without saying what is wrong, or ends with status 1",
        ours: "names field, value and rule once, and takes the correction",
        tests: &[
            ("wrong_config_is_named", || {
                cluster::config::malformed_network_config(setting::vxlan())
            }),
            ("missing_config_is_named", || {
                cluster::config::no_network_config(setting::vxlan())
            }),
            (
                "missing_pod_cidr_is_named",
                kubernetes::faults::pod_cidr_is_missing,
            ),
        ],
        ..fault(17, "opaque errors, no `subnet.env`", "#2232 #2253 #2063")
    },
    Check {
        upstream: "43 MiB at 1 000 nodes",
        ours: "less than half",
        tests: &[("memory_with_1000_peers", faults::memory)],
        ..fault(20, "memory beyond 50 MiB", "#963 #1415 #719")
    },
    Check {
        upstream: "`/healthz`, `/readyz`; no metrics",
        ours: "both with the same answers, and `/metrics`",
        tests: &[("probes", faults::probes), ("metrics", faults::metrics)],
        ..fault(
            22,
            "no metrics, empty health check",
            "#616 #1445 #722 #2523",
        )
    },
    Check {
        upstream: "nothing removes anything",
        ours: "`flannel-agent cleanup` removes all",
        tests: &[("cleanup_leaves_nothing", || {
            cleanup::end_and_cleanup(setting::vxlan())
        })],
        ..fault(24, "clean-up", "#886 #820 #836 #739 #2063")
    },
    Check {
        upstream: "panics",
        ours: "annotated like any other",
        tests: &[(
            "node_without_annotations",
            kubernetes::faults::no_annotations,
        )],
        ..fault(27, "Kubernetes: a Node without annotations", "#969")
    },
    Check {
        upstream: "dropped while the IPv6 data stay as they are",
        ours: "followed",
        tests: &[(
            "ipv4_data_alone_changes",
            kubernetes::faults::ipv4_data_alone_changes,
        )],
        ..fault(
            28,
            "Kubernetes, dual stack: a peer's IPv4 data change",
            "pkg/subnet/kube/kube.go",
        )
    },
    Check {
        upstream: "ignored until a restart",
        ours: "followed, a peer's and the node's own",
        tests: &[("pod_cidr_changes", kubernetes::faults::pod_cidr_changes)],
        ..fault(
            29,
            "Kubernetes: a podCIDR changes",
            "pkg/subnet/kube/kube.go",
        )
    },
];

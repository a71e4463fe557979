//! The text that `/metrics` answers: Prometheus' exposition format 0.0.4.
//!
//! Written by hand, since nearly every value comes from the board or the kernel at scrape time and none is registered
//! anywhere. Names and labels are documented here and in the README; a test holds both to the same list.

use super::{
    COUNTERS, Changes, Counters, Gauges, Kind, KubeRequest, Request, page::Page, process::Process,
};
use crate::status::Status;

/// The format's media type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Everything that is measured, as text, with the number of current `problems`.
pub fn text(status: &Status, problems: usize, gauges: &Gauges) -> String {
    let mut page = Page::default();
    agent(&mut page, status, problems, gauges);
    leases(&mut page, gauges);
    kernel(&mut page, &COUNTERS, gauges);
    etcd(&mut page, &COUNTERS);
    kube(&mut page, &COUNTERS);
    fast_path(&mut page, gauges);
    process(&mut page, &Process::read());
    page.into_text()
}

fn agent(page: &mut Page, status: &Status, problems: usize, gauges: &Gauges) {
    page.gauge("flannel_build_info", "Always 1; the labels tell what runs.")
        .labelled(
            &[
                ("version", &status.version),
                ("bpf_object", yes_or_no(status.bpf_object)),
                ("backend", backend(status)),
            ],
            1,
        );
    page.gauge(
        "flannel_ready",
        "Whether the node's rules, device and subnet file are in place.",
    )
    .value(u8::from(status.ready));
    page.gauge(
        "flannel_problems",
        "What is wrong at the moment, as `flannel-agent status` lists it.",
    )
    .value(problems);
    let mut lease = page.gauge(
        "flannel_lease_expires_seconds",
        "Time until this node's lease expires unless it is renewed; absent for a reservation.",
    );
    if let Some(seconds) = gauges.lease_expires_s {
        lease.value(seconds);
    }
}

fn backend(status: &Status) -> &str {
    let config = status.config.as_ref();
    config
        .and_then(|config| config.get("Backend")?.get("Type")?.as_str())
        .unwrap_or_default()
}

fn leases(page: &mut Page, gauges: &Gauges) {
    page.gauge("flannel_peers", "Other nodes with a lease.")
        .value(gauges.peers);
    page.gauge(
        "flannel_unreached_peers",
        "Other nodes that this one does not reach as it should.",
    )
    .value(gauges.unreached_peers);
    page.gauge(
        "flannel_skipped_leases",
        "Leases and keys that are not understood.",
    )
    .value(gauges.skipped_leases);
}

fn kernel(page: &mut Page, counters: &Counters, gauges: &Gauges) {
    let mut wanted = page.gauge("flannel_objects", "Kernel objects that there should be.");
    for objects in &gauges.objects {
        wanted.labelled(&[("kind", objects.kind.name())], objects.wanted);
    }
    let mut wrong = page.gauge(
        "flannel_wrong_objects",
        "Kernel objects that are missing or differ.",
    );
    for objects in &gauges.objects {
        wrong.labelled(&[("kind", objects.kind.name())], objects.wrong);
    }
    page.counter(
        "flannel_reconcile_passes_total",
        "Comparisons of what should be with what is.",
    )
    .value(counters.passes.get());
    page.counter(
        "flannel_reconcile_incomplete_passes_total",
        "Comparisons after which something was still not as it should be.",
    )
    .value(counters.incomplete_passes.get());
    let mut done = page.counter(
        "flannel_object_changes_total",
        "Kernel objects set or removed; for rules, how often all were written.",
    );
    for kind in Kind::ALL {
        done.labelled(&[("kind", kind.name())], counters.changes(kind).done.get());
    }
    let mut failed = page.counter(
        "flannel_object_failures_total",
        "Kernel objects that could not be set or removed.",
    );
    for kind in Kind::ALL {
        failed.labelled(
            &[("kind", kind.name())],
            counters.changes(kind).failed.get(),
        );
    }
    page.counter(
        "flannel_netlink_errors_total",
        "Netlink requests that the kernel refused or that did not get through.",
    )
    .value(counters.netlink_errors.get());
}

fn etcd(page: &mut Page, counters: &Counters) {
    requests(
        page,
        ["flannel_etcd_requests_total", "Requests to etcd."],
        [
            "flannel_etcd_errors_total",
            "Requests to etcd that were refused or not answered.",
        ],
        &Request::ALL.map(|request| (request.name(), counters.etcd(request))),
    );
    page.counter(
        "flannel_etcd_connections_total",
        "Connections to etcd; more than one means that one was lost or renewed.",
    )
    .value(counters.etcd_connections.get());
    page.counter(
        "flannel_etcd_watch_events_total",
        "Changes of leases that etcd reported.",
    )
    .value(counters.etcd_watch_events.get());
}

fn kube(page: &mut Page, counters: &Counters) {
    requests(
        page,
        [
            "flannel_kube_requests_total",
            "Requests to the Kubernetes API.",
        ],
        [
            "flannel_kube_errors_total",
            "Requests to the Kubernetes API that were refused, not answered or broken off.",
        ],
        &KubeRequest::ALL.map(|request| (request.name(), counters.kube(request))),
    );
    page.counter(
        "flannel_kube_connections_total",
        "Clients of the Kubernetes API; more than one means that a connection was lost.",
    )
    .value(counters.kube_connections.get());
    page.counter(
        "flannel_kube_watch_events_total",
        "Changes of Nodes that the Kubernetes API reported.",
    )
    .value(counters.kube_watch_events.get());
    page.counter(
        "flannel_kube_unreadable_total",
        "Node objects and lines of watches that were not understood.",
    )
    .value(counters.kube_unreadable.get());
}

/// The requests to a store by name, and those that failed: name and meaning of each family.
fn requests(
    page: &mut Page,
    [all, all_mean]: [&'static str; 2],
    [failed, failed_mean]: [&'static str; 2],
    counts: &[(&str, &Changes)],
) {
    // Labels have no spaces.
    let label = |name: &str| name.replace(' ', "_");
    let mut requests = page.counter(all, all_mean);
    for (name, both) in counts {
        let count = both.done.get() + both.failed.get();
        requests.labelled(&[("request", &label(name))], count);
    }
    let mut errors = page.counter(failed, failed_mean);
    for (name, both) in counts {
        errors.labelled(&[("request", &label(name))], both.failed.get());
    }
}

fn fast_path(page: &mut Page, gauges: &Gauges) {
    let state = &gauges.fast_path;
    let or_none = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".into());
    page.gauge(
        "flannel_fast_path_active",
        "Whether BPF carries packets; the labels tell in which way.",
    )
    .labelled(
        &[
            ("mode", &state.mode),
            ("attach", &or_none(&state.attach)),
            ("egress", &or_none(&state.egress)),
            ("ingress", &or_none(&state.ingress)),
            ("attestation", &or_none(&state.attestation)),
        ],
        u8::from(state.active),
    );
    let served = state.pods.iter().filter(|pod| pod.problem.is_none());
    let mut pods = page.gauge(
        "flannel_fast_path_pods",
        "Pods of this node, by whether the fast path serves them in the usual way.",
    );
    let served = served.count();
    pods.labelled(&[("served", "yes")], served);
    pods.labelled(&[("served", "no")], state.pods.len() - served);
    let mut flows = page.gauge(
        "flannel_fast_path_flows",
        "Flows that are remembered; absent unless the mode is flow.",
    );
    if let Some(count) = state.flows {
        flows.value(count);
    }
    let mut packets = page.counter(
        "flannel_fast_path_packets_total",
        "Packets that BPF carried: sent to another node, or delivered from one.",
    );
    packets.labelled(&[("direction", "egress")], state.counters.fast_egress);
    packets.labelled(&[("direction", "ingress")], state.counters.fast_ingress);
    page.counter(
        "flannel_fast_path_decapsulated_packets_total",
        "Delivered packets that XDP took out of their tunnel.",
    )
    .value(state.counters.decapsulated);
    let mut declined = page.counter(
        "flannel_fast_path_declined_packets_total",
        "Packets that a hook left to the kernel or dropped, by reason.",
    );
    for (name, count) in &state.counters.declined {
        let (hook, reason) = name.split_once('/').unwrap_or(("", name));
        declined.labelled(&[("hook", hook), ("reason", reason)], *count);
    }
    let mut attested = page.counter(
        "flannel_fast_path_attested_packets_total",
        "Packets that the kernel has forwarded, by what was learned from them.",
    );
    for (name, count) in &state.counters.attest {
        let (hook, result) = name.split_once('/').unwrap_or(("", name));
        attested.labelled(&[("hook", hook), ("result", result)], *count);
    }
}

fn process(page: &mut Page, process: &Process) {
    page.counter(
        "process_cpu_seconds_total",
        "User and system time, in seconds.",
    )
    .value(process.cpu.as_secs_f64());
    page.gauge("process_resident_memory_bytes", "Resident memory.")
        .value(process.resident);
    page.gauge("process_open_fds", "Open file descriptors.")
        .value(process.open_files);
    page.gauge(
        "process_start_time_seconds",
        "When the process began, in seconds since the epoch.",
    )
    .value(process.start);
}

fn yes_or_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lab::exposition::{self, Kind as Type};

    use super::*;
    use crate::{
        metrics::Objects,
        status::{self, Pod},
    };

    fn full() -> (Status, Gauges) {
        let status = Status {
            version: "1.2\"3\\\n".into(),
            config: Some(serde_json::json!({"Backend": {"Type": "vxlan"}})),
            ready: true,
            ..Status::default()
        };
        let gauges = Gauges {
            peers: 5,
            unreached_peers: 1,
            skipped_leases: 2,
            lease_expires_s: Some(86_000),
            objects: vec![Objects {
                kind: Kind::Route,
                wanted: 5,
                wrong: 1,
            }],
            fast_path: status::FastPath {
                mode: "flow".into(),
                active: true,
                flows: Some(9),
                attach: Some("tcx".into()),
                pods: vec![Pod::default()],
                counters: status::Counters {
                    fast_egress: 7,
                    declined: BTreeMap::from([("pod_egress/no-flow".into(), 3)]),
                    attest: BTreeMap::from([("attest_in/created".into(), 4)]),
                    ..Default::default()
                },
                ..Default::default()
            },
        };
        (status, gauges)
    }

    #[test]
    fn the_page_is_well_formed_and_says_what_is_so() {
        let (status, gauges) = full();
        let families = exposition::parse(&text(&status, 1, &gauges)).unwrap();
        for (name, family) in &families {
            assert_eq!(
                family.kind == Type::Counter,
                name.ends_with("_total"),
                "{name}"
            );
            assert!(!family.samples.is_empty(), "{name} has no sample");
        }
        let sample = |name: &str, labels: &[(&str, &str)]| {
            let value = families[name].get(labels);
            value.unwrap_or_else(|| panic!("{name} {labels:?}: {:?}", families[name]))
        };
        let build = [
            ("version", "1.2\"3\\\n"),
            ("bpf_object", "no"),
            ("backend", "vxlan"),
        ];
        assert_eq!(sample("flannel_build_info", &build), 1.0);
        assert_eq!(sample("flannel_ready", &[]), 1.0);
        assert_eq!(sample("flannel_problems", &[]), 1.0);
        assert_eq!(sample("flannel_peers", &[]), 5.0);
        assert_eq!(sample("flannel_wrong_objects", &[("kind", "route")]), 1.0);
        assert_eq!(
            sample(
                "flannel_fast_path_packets_total",
                &[("direction", "egress")]
            ),
            7.0
        );
        let declined = [("hook", "pod_egress"), ("reason", "no-flow")];
        assert_eq!(
            sample("flannel_fast_path_declined_packets_total", &declined),
            3.0
        );
        assert_eq!(sample("flannel_fast_path_pods", &[("served", "yes")]), 1.0);
    }

    #[test]
    fn an_agent_that_knows_nothing_yet_says_so() {
        let families = exposition::parse(&text(&Status::default(), 0, &Gauges::default())).unwrap();
        assert_eq!(families["flannel_ready"].get(&[]), Some(0.0));
        assert!(families["flannel_lease_expires_seconds"].samples.is_empty());
        // The same families, whatever is known.
        let (status, gauges) = full();
        let all = exposition::parse(&text(&status, 1, &gauges)).unwrap();
        assert!(families.keys().eq(all.keys()));
    }
}

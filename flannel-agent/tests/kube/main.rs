//! The agent with a real kube-apiserver: nodes made by kubectl, agents with a token of a service account and exactly the
//! permissions that our manifest gives, pods attached by our CNI plugin.
//!
//! What an API server is asked and how it answers is the server's own word here: its validation, its RBAC, its audit log.
//! `cargo xtask test --kube` builds it. Each test has a server and a cluster of its own.

mod access;
mod away;
mod kubelets;
mod manifests;
mod nodes;
mod pods;
mod world;

// Rendered as for the checks without a server.
#[path = "../manifests/documents.rs"]
#[expect(dead_code, reason = "most of it checks documents without a server")]
mod documents;
#[path = "../manifests/render.rs"]
mod render;

use std::process::ExitCode;

use lab::{kube::apiserver::Programs, signals};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use render::Lacks;
use world::{MANIFEST, Outcome};

/// What a test needs besides the server.
type Needs = fn() -> Result<(), Lacks>;
/// A test: name, needs, what is done.
type Test = (&'static str, Needs, fn(&Programs) -> Outcome);

const TESTS: [Test; 11] = [
    (
        "pods_reach_pods_fast_and_nodes_say_what_upstreams_say",
        nothing,
        pods::reach_each_other,
    ),
    (
        "dual_stack_nodes_have_both_families",
        nothing,
        pods::dual_stack,
    ),
    ("a_deleted_node_is_withdrawn", nothing, nodes::deleted),
    (
        "a_node_without_a_pod_cidr_is_waited_for",
        nothing,
        nodes::without_pod_cidr,
    ),
    (
        "annotations_that_others_change_are_restored",
        nothing,
        nodes::restored,
    ),
    (
        "pods_do_not_notice_that_the_server_is_away",
        nothing,
        away::pods_do_not_notice,
    ),
    ("a_verb_that_is_missing_is_named", nothing, access::verbs),
    (
        "the_server_accepts_our_manifests",
        nothing,
        manifests::accepted,
    ),
    (
        "the_server_accepts_our_overlays",
        render::kubectl,
        manifests::overlays,
    ),
    (
        "the_server_accepts_our_chart",
        render::helm,
        manifests::chart,
    ),
    (
        "kubelets_run_our_daemon_set",
        kubelets::runtime,
        kubelets::daemon_set,
    ),
];

fn main() -> ExitCode {
    signals::tear_down_on_signals(signals::exit_code).expect("signal handlers can be installed");
    let trials = TESTS
        .into_iter()
        .map(|test| Trial::ignorable_test(test.0, move || run(test)))
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn nothing() -> Result<(), Lacks> {
    Ok(())
}

fn run((_, needs, test): Test) -> Result<Completion, Failed> {
    if !rustix::process::geteuid().is_root() {
        return Ok(Completion::ignored_with("network namespaces need root"));
    }
    let Some(programs) = Programs::from_environment() else {
        let reason = "there is no kube-apiserver: `cargo xtask test --kube` builds it";
        return Ok(Completion::ignored_with(reason));
    };
    if let Err(Lacks(reason)) = needs() {
        return Ok(Completion::ignored_with(reason));
    }
    test(&programs)
        .map(|()| Completion::Completed)
        .map_err(|error| Failed::from(format!("{error:#}")))
}

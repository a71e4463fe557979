//! What is in `deploy/` for Kubernetes: that each document is one that Kubernetes takes, that manifest, overlays and chart
//! agree, and that they are about this agent. A real API server is asked elsewhere.
//!
//! The manifest `kube-flannel.yml` is checked by itself; overlays are rendered by `kubectl kustomize`, the chart by Helm's
//! own library. Where one of those cannot be had, its tests are skipped.

mod agent;
mod chart;
mod documents;
mod overlays;
mod render;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use documents::Documents;
use render::Lacks;

/// What a test returns.
type Outcome = anyhow::Result<()>;

/// The manifest as it is applied.
const MANIFEST: &str = include_str!("../../deploy/kube-flannel.yml");
/// The comparison of kernel path and fast path.
const BENCH: &str = include_str!("../../deploy/bench.yml");

/// What takes the fast path from a node that goes back to flanneld.
const CLEANUP: &str = include_str!("../../deploy/cleanup.yml");

/// What the tests need to run.
type Needs = fn() -> Result<(), Lacks>;

/// A test: name, needs, what is done.
type Test = (&'static str, Needs, fn() -> Outcome);

const TESTS: &[Test] = &[
    ("manifest::kubernetes_takes_it", nothing, || {
        Documents::parse(MANIFEST)?.are_typed()
    }),
    ("manifest::it_is_about_this_agent", nothing, || {
        agent::runs_from(&Documents::parse(MANIFEST)?)
    }),
    ("bench::kubernetes_takes_it", nothing, || {
        Documents::parse(BENCH)?.are_typed()
    }),
    ("cleanup::kubernetes_takes_it", nothing, || {
        Documents::parse(CLEANUP)?.are_typed()
    }),
    ("cleanup::it_is_about_this_agent", nothing, || {
        agent::cleans_up_after(&Documents::parse(MANIFEST)?, &Documents::parse(CLEANUP)?)
    }),
    (
        "documents::mistakes_are_found",
        nothing,
        documents::mistakes_are_found,
    ),
    (
        "overlays::base_is_the_manifest",
        render::kubectl,
        overlays::base_is_the_manifest,
    ),
    (
        "overlays::each_changes_what_it_says_and_no_more",
        render::kubectl,
        overlays::differences,
    ),
    (
        "chart::default_is_the_manifest",
        render::helm,
        chart::default_is_the_manifest,
    ),
    (
        "chart::values_come_through",
        render::helm,
        chart::values_come_through,
    ),
    (
        "chart::upstreams_values_are_taken",
        render::helm,
        chart::upstreams_values_are_taken,
    ),
    (
        "chart::wrong_values_are_refused_by_name",
        render::helm,
        chart::wrong_values_are_refused,
    ),
];

fn nothing() -> Result<(), Lacks> {
    Ok(())
}

fn main() -> ExitCode {
    let trials = TESTS.iter().map(|(name, needs, test)| {
        Trial::ignorable_test(*name, move || match needs() {
            Err(lacks) => Ok(Completion::ignored_with(lacks.0)),
            Ok(()) => test()
                .map(|()| Completion::Completed)
                .map_err(|error| Failed::from(format!("{error:#}"))),
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

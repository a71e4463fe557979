//! `cargo xtask test`: all tests, and one summary of what passed, what failed and what did not run.
//!
//! A privileged suite that has executed nothing fails: green must mean executed. The last line is
//! `N passed, N failed, N skipped`.
//!
//! Tests of clusters wait for real packets on a machine that may be busy with something else. Where up to five of a suite
//! fail, these run once more, alone; what passes then is listed as such, with what it said at first.

mod benchmark;
mod checks;
mod image;
mod kube;
mod manifests;
mod runner;
pub mod tally;
mod verdict;

use std::{
    fmt,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;

use self::{runner::Runners, tally::Tally};
use crate::{
    build,
    setup::{self, Scope},
    vm,
    workspace::Workspace,
};

/// Options of `cargo xtask test`.
#[derive(Debug, Default, Args)]
pub struct Options {
    /// Only what the build makes: the object in the agent, the fallback toolchain.
    #[arg(long)]
    build: bool,
    /// Only unit, property and documentation tests; no root needed.
    #[arg(long)]
    unit: bool,
    /// Only the BPF programs, run in the kernel on single packets.
    #[arg(long)]
    bpf: bool,
    /// Only clusters of network namespaces.
    #[arg(long)]
    cluster: bool,
    /// Only what upstream's tests and users ask of flannel.
    #[arg(long)]
    conformance: bool,
    /// Only what is there for Kubernetes: manifest, overlays, Helm chart.
    #[arg(long)]
    manifests: bool,
    /// Only the benchmark, quick.
    #[arg(long)]
    benchmark: bool,
    /// Only the container image, as containerd runs it.
    #[arg(long)]
    image: bool,
    /// Only an old and a new kernel in virtual machines; `cargo xtask vm` boots others.
    #[arg(long)]
    vm: bool,
    /// Only clusters whose leases a real Kubernetes API server keeps; builds it once, which takes minutes.
    #[arg(long)]
    kube: bool,
    /// Test what is shipped, optimised; slower to build.
    #[arg(long)]
    release: bool,
    /// How many tests of clusters run at a time [default: one per core]
    #[arg(long, value_name = "N")]
    test_threads: Option<usize>,
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// Whether the filter is a whole name.
    #[arg(skip)]
    exact: bool,
}

impl Options {
    /// The suites that are asked for; all of them if none is named.
    fn suites(&self) -> Vec<Suite> {
        let chosen = [
            (self.build, Suite::Build),
            (self.unit, Suite::Unit),
            (self.manifests, Suite::Manifests),
            (self.bpf, Suite::Bpf),
            (self.cluster, Suite::Cluster),
            (self.conformance, Suite::Conformance),
            (self.benchmark, Suite::Benchmark),
            (self.image, Suite::Image),
            (self.vm, Suite::Vm),
            (self.kube, Suite::Kube),
        ];
        let any = chosen.iter().any(|(chosen, _)| *chosen);
        chosen
            .into_iter()
            .filter(|(chosen, suite)| *chosen || !any && (*suite != Suite::Kube || kube::ALWAYS))
            .map(|(_, suite)| suite)
            .collect()
    }
}

/// Tests that run together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// What the build makes.
    Build,
    /// Unit, property and documentation tests.
    Unit,
    /// Manifest, overlays and chart for Kubernetes.
    Manifests,
    /// BPF programs by `BPF_PROG_TEST_RUN`.
    Bpf,
    /// Clusters of network namespaces.
    Cluster,
    /// Upstream's own checks and its users' faults, one test each, in such clusters.
    Conformance,
    /// The benchmark.
    Benchmark,
    /// The container image.
    Image,
    /// Other kernels in virtual machines.
    Vm,
    /// Clusters with a real Kubernetes API server.
    Kube,
}

impl Suite {
    /// Whether its tests build clusters, and take their time.
    fn has_clusters(self) -> bool {
        matches!(self, Self::Cluster | Self::Conformance | Self::Kube)
    }

    /// Whether its tests are programs that cargo builds.
    fn has_programs(self) -> bool {
        !matches!(self, Self::Benchmark | Self::Image)
    }

    /// Whether its tests need root.
    fn is_privileged(self) -> bool {
        self == Self::Bpf || self.has_clusters()
    }

    /// Whether it fails if it has executed nothing: whatever such a suite needs can be had on any machine.
    fn must_execute(self) -> bool {
        self.is_privileged() && self != Self::Kube
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Build => "build",
            Self::Unit => "unit",
            Self::Manifests => "manifests",
            Self::Bpf => "bpf",
            Self::Cluster => "cluster",
            Self::Conformance => "conformance",
            Self::Benchmark => "benchmark",
            Self::Image => "image",
            Self::Vm => "vm",
            Self::Kube => "kube",
        })
    }
}

/// What a suite has done.
#[derive(Debug, Clone)]
struct Report {
    suite: Suite,
    tally: Tally,
    time: Duration,
}

/// Runs the tests; says whether all is well.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let scope = match options.suites()[..] {
        [Suite::Unit] => Scope::Build,
        _ => Scope::Lab,
    };
    let tools = timed("set-up", || setup::ensure(workspace, scope))?;
    // The wrong ones first, since all are written to the same place.
    let broken = timed("wrong BPF objects", || {
        if options.suites().into_iter().any(Suite::has_clusters) {
            build::broken_objects(workspace, &tools)
        } else {
            Ok(build::broken_folder(workspace))
        }
    })?;
    let objects = timed("BPF object", || build::objects(workspace, &tools))?;
    let mut runners = timed("agent and tests", || {
        Runners::build(workspace, objects.hooks()?, &broken, options)
    })?;
    let mut reports = Vec::new();
    for suite in options.suites() {
        println!("\n{suite}");
        let start = Instant::now();
        let tally = match suite {
            Suite::Build => checks::run(workspace, &runners, options)?,
            Suite::Manifests => manifests::run(workspace, &runners, options)?,
            // All of them or none.
            Suite::Benchmark | Suite::Vm if options.filter.is_some() => Tally::default(),
            Suite::Benchmark => benchmark::run(workspace, &objects)?,
            Suite::Image => image::run(workspace, &objects, options)?,
            Suite::Vm => vm::suite(workspace, &runners.machine_programs()?)?,
            Suite::Kube => kube::run(workspace, &objects, &mut runners, options)?,
            _ => runners.run(suite, options)?,
        };
        reports.push(Report {
            suite,
            tally,
            time: start.elapsed(),
        });
    }
    let complaint = complaint(&reports, options.filter.is_some());
    print!("{}", summary(&reports, complaint.as_deref()));
    Ok(match complaint {
        None => ExitCode::SUCCESS,
        Some(_) => ExitCode::FAILURE,
    })
}

/// Does a step and says how long it took.
fn timed<T>(step: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = work()?;
    println!("{step}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(result)
}

/// Why the run as a whole has failed, if it has.
fn complaint(reports: &[Report], filtered: bool) -> Option<String> {
    let failed: usize = reports.iter().map(|report| report.tally.failed.len()).sum();
    if failed > 0 {
        return Some(format!("the test run: {failed} failed"));
    }
    if filtered {
        let executed: u64 = reports.iter().map(|report| report.tally.executed()).sum();
        return (executed == 0).then(|| "the test run: no test of that name was executed".into());
    }
    reports
        .iter()
        .find(|report| report.suite.must_execute() && report.tally.executed() == 0)
        .map(|report| format!("{}: no test was executed", report.suite))
}

/// The table of suites, the names of what failed and what was skipped, and the closing line.
fn summary(reports: &[Report], complaint: Option<&str>) -> String {
    let mut text = format!(
        "\n{:12}{:>8}{:>8}{:>8}{:>10}\n",
        "SUITE", "PASSED", "FAILED", "SKIPPED", "TIME"
    );
    let mut total = Tally::default();
    for report in reports {
        text += &format!(
            "{:12}{:>8}{:>8}{:>8}{:>8.1} s\n",
            report.suite,
            report.tally.passed,
            report.tally.failed.len(),
            report.tally.skipped.len(),
            report.time.as_secs_f64()
        );
    }
    for report in reports {
        for skip in &report.tally.skipped {
            text += &format!(
                "skipped: {}: {}: {}\n",
                report.suite, skip.test, skip.reason
            );
        }
    }
    for report in reports {
        for failure in &report.tally.passed_later {
            text += &format!(
                "failed at first, passed alone: {}: {failure}\n",
                report.suite
            );
        }
    }
    for report in reports {
        for failure in &report.tally.failed {
            text += &format!("failed: {}: {failure}\n", report.suite);
        }
        total.add(report.tally.clone());
    }
    if let Some(complaint) = complaint {
        text += &format!("failed: {complaint}\n");
    }
    text += &format!(
        "{} passed, {} failed, {} skipped\n",
        total.passed,
        total.failed.len(),
        total.skipped.len()
    );
    text
}

#[cfg(test)]
mod tests {
    use super::{
        tally::{Failure, Skip},
        *,
    };

    fn failure(test: &str) -> Failure {
        Failure {
            test: test.to_owned(),
            reason: "no answer\nwithin 2 s".to_owned(),
        }
    }

    fn report(suite: Suite, passed: u64, failed: &[&str], skipped: &[&str]) -> Report {
        Report {
            suite,
            tally: Tally {
                passed,
                failed: failed.iter().copied().map(failure).collect(),
                passed_later: Vec::new(),
                skipped: skipped
                    .iter()
                    .map(|test| Skip {
                        test: (*test).to_owned(),
                        reason: "not root".into(),
                    })
                    .collect(),
            },
            time: Duration::from_millis(1250),
        }
    }

    #[test]
    fn the_summary_names_failures_and_skips_and_closes_with_the_counts() {
        let mut reports = [
            report(Suite::Unit, 120, &[], &[]),
            report(Suite::Cluster, 3, &["vxlan_ping"], &["wireguard"]),
        ];
        reports[1].tally.passed_later.push(failure("udp_echo"));
        let text = summary(&reports, Some("the test run: 1 failed"));
        assert_eq!(
            text,
            "\nSUITE         PASSED  FAILED SKIPPED      TIME\n\
             unit             120       0       0     1.2 s\n\
             cluster            3       1       1     1.2 s\n\
             skipped: cluster: wireguard: not root\n\
             failed at first, passed alone: cluster: udp_echo: no answer; within 2 s\n\
             failed: cluster: vxlan_ping: no answer; within 2 s\n\
             failed: the test run: 1 failed\n\
             123 passed, 1 failed, 1 skipped\n"
        );
    }

    #[test]
    fn a_privileged_suite_that_executed_nothing_is_a_failure() {
        let unit = report(Suite::Unit, 1, &[], &[]);
        let skipped = report(Suite::Bpf, 0, &[], &["all of it"]);
        assert_eq!(complaint(std::slice::from_ref(&unit), false), None);
        assert!(complaint(&[unit.clone(), skipped.clone()], false).is_some());
        // A filter may leave a suite empty, but not all of them.
        assert_eq!(complaint(&[unit, skipped.clone()], true), None);
        assert!(complaint(&[skipped], true).is_some());
        // An API server cannot be had everywhere.
        let skipped = report(Suite::Kube, 0, &[], &["all of it"]);
        assert_eq!(complaint(&[skipped], false), None);
        assert!(complaint(&[report(Suite::Bpf, 9, &["x"], &[])], false).is_some());
    }
}

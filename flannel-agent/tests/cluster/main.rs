//! The agent in clusters: real etcd, real CNI plugins, real packets between pods on different nodes.
//!
//! One theme per file. A test's name says what is claimed, after the backend and the path that it is claimed for:
//! `vxlan::subnet::…` runs with `--fast-path=subnet`, `vxlan::off::…` on the kernel path alone. Each test has a cluster
//! of its own, so any number of them run side by side.

mod matrix;
mod support;

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
];

fn main() -> ExitCode {
    signals::tear_down_on_signals(signals::exit_code).expect("signal handlers can be installed");
    let mut trials = Vec::new();
    for backend in [Backend::Vxlan, Backend::HostGw] {
        for path in [Path::Kernel, Path::Fast] {
            let setting = Setting { backend, path };
            trials.extend(
                EVERYWHERE
                    .iter()
                    .map(|(name, test)| trial(setting, name, *test)),
            );
        }
    }
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

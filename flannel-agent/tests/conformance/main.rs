//! Conformance: what upstream's own tests check, and the faults that its users report, each as one named test.
//!
//! Names begin with the number of a check (`c01_…`) or of a fault (`f02_…`), in the order of [`catalogue`], which says
//! of each where it comes from, what flanneld does and what this agent does. `--table` prints that as the README has it.
//! Scenarios that the cluster suite has too are its functions: none is written twice.
//!
//! Agents run here as operators run them, with the default fast path, where the build has the programs in it.

mod catalogue;
mod compaction;
mod config;
mod daemons;
mod devices;
mod faults;
mod frames;
mod interfaces;
mod keys;
mod kubernetes;
mod leases;
mod masquerade;
mod peers;
mod routes;
mod setting;
mod table;
mod wire;

/// The cluster suite's scenarios, and what they are made of.
#[path = "../cluster"]
#[expect(
    dead_code,
    reason = "some of their functions have callers only in that suite"
)]
mod cluster {
    pub(crate) mod cleanup;
    pub(crate) mod cni;
    pub(crate) mod config;
    pub(crate) mod dialog;
    pub(crate) mod legs;
    pub(crate) mod matrix;
    pub(crate) mod meter;
    pub(crate) mod mixed;
    pub(crate) mod offloads;
    pub(crate) mod pair;
    pub(crate) mod repair;
    pub(crate) mod restart;
    pub(crate) mod rules;
    pub(crate) mod scenarios;
    pub(crate) mod services;
    pub(crate) mod support;
}

use std::process::ExitCode;

use catalogue::{CHECKS, Check, FAULTS};
// As the scenarios name each other.
use cluster::{
    cleanup, cni, dialog, legs, matrix, meter, mixed, offloads, pair, repair, restart, scenarios,
    services, support,
};
use lab::signals;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use support::{Path, Skipped};

/// Prints the README's tables instead of running anything.
const TABLE: &str = "--table";

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == TABLE) {
        print!("{}", table::text());
        return ExitCode::SUCCESS;
    }
    signals::tear_down_on_signals(signals::exit_code).expect("signal handlers can be installed");
    let tests = CHECKS.iter().chain(FAULTS).flat_map(trials);
    let table = Trial::ignorable_test("readme_has_the_table_that_is_asserted", || {
        complete(table::readme_has_it())
    });
    libtest_mimic::run(&Arguments::from_args(), tests.chain([table]).collect()).exit_code()
}

fn trials(check: &'static Check) -> impl Iterator<Item = Trial> {
    check.tests.iter().map(|(name, test)| {
        Trial::ignorable_test(
            format!("{}_{name}", check.prefix()),
            move || match support::missing(Path::Kernel) {
                Some(reason) => Ok(Completion::ignored_with(reason)),
                None => complete(test()),
            },
        )
    })
}

fn complete(outcome: support::Outcome) -> Result<Completion, Failed> {
    match outcome {
        Ok(()) => Ok(Completion::Completed),
        Err(error) => match error.downcast::<Skipped>() {
            Ok(Skipped(reason)) => Ok(Completion::ignored_with(reason)),
            Err(error) => Err(Failed::from(format!("{error:#}"))),
        },
    }
}

//! Tests that are functions of xtask itself: run one after the other, timed, counted.

use std::time::Instant;

use anyhow::Result;

use super::{
    Options,
    tally::{Failure, Skip, Tally},
};
use crate::command;

/// How a test ends that does not fail.
pub enum Verdict {
    /// As it should.
    Passed,
    /// Not run, and why.
    Skipped(String),
}

/// A test, and its name.
pub type Check<S> = (&'static str, fn(&S) -> Result<Verdict>);

/// Whether a test of that name is asked for.
pub fn is_wanted(name: &str, options: &Options) -> bool {
    options
        .filter
        .as_ref()
        .is_none_or(|filter| name.contains(filter))
}

/// Runs the tests that are asked for.
pub fn run<S>(subject: &S, checks: &[Check<S>], options: &Options) -> Result<Tally> {
    let mut tally = Tally::default();
    for (name, check) in checks {
        if !is_wanted(name, options) {
            continue;
        }
        let start = Instant::now();
        let result = check(subject);
        command::check_interrupt()?;
        let outcome = match result {
            Ok(Verdict::Passed) => {
                tally.passed += 1;
                "ok".to_owned()
            }
            Ok(Verdict::Skipped(reason)) => {
                let outcome = format!("skipped: {reason}");
                tally.skipped.push(Skip {
                    test: (*name).to_owned(),
                    reason,
                });
                outcome
            }
            Err(error) => {
                let reason = format!("{error:#}");
                let outcome = format!("FAILED: {reason}");
                tally.failed.push(Failure {
                    test: (*name).to_owned(),
                    reason,
                });
                outcome
            }
        };
        println!(
            "  {name}: {outcome} ({:.1} s)",
            start.elapsed().as_secs_f64()
        );
    }
    Ok(tally)
}

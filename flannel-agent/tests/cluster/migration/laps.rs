//! What has happened in each step of a migration, as a table.

use std::fmt;
use std::time::Duration;

use anyhow::ensure;

use crate::support::Outcome;

/// Segments of one step that may be sent again without a word of whether they had arrived already: ends of connections
/// whose other end has gone, more of them the busier the machine is, also in steps in which nothing changes.
const UNTOLD: i64 = 10;

/// What has been counted up to a moment.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    /// Datagrams, answers and connections; not the streams' bytes.
    pub(crate) messages: u64,
    pub(crate) lost: u64,
    /// TCP segments that were sent again.
    pub(crate) again: i64,
    /// Those of them that had arrived already (RFC 2883): the machine was slow, nothing was lost.
    pub(crate) in_vain: i64,
}

/// What has happened in each step.
#[derive(Default)]
pub(crate) struct Laps(pub(crate) Vec<Row>);

/// What has happened in one step.
#[derive(Default)]
pub(crate) struct Row {
    pub(crate) step: String,
    pub(crate) time: Duration,
    pub(crate) counted: Counts,
    pub(crate) silence: Duration,
    /// The flow that was silent for so long.
    pub(crate) silent: String,
}

impl Laps {
    /// Asserts that nothing was lost in any step, and that no flow was silent for as long as `silence`.
    pub(crate) fn assert_whole(&self, silence: Duration) -> Outcome {
        for row in &self.0 {
            ensure!(row.counted.lost == 0, "lost: {}\n{self}", row.step);
            ensure!(row.silence < silence, "silent: {}\n{self}", row.step);
            let untold = row.counted.again - row.counted.in_vain;
            ensure!(
                untold <= UNTOLD,
                "TCP has lost segments: {}\n{self}",
                row.step
            );
        }
        Ok(())
    }
}

impl fmt::Display for Laps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<66} {:>5} {:>8} {:>4}  {:>12}  longest",
            "step", "time", "messages", "lost", "TCP again,"
        )?;
        writeln!(
            f,
            "{:<66} {:>5} {:>8} {:>4}  {:>12}  silence",
            "", "", "", "", "in vain"
        )?;
        for row in &self.0 {
            let counted = &row.counted;
            writeln!(
                f,
                "{:<66} {:>3.1} s {:>8} {:>4}  {:>5}, {:>5}  {} ms, {}",
                row.step,
                row.time.as_secs_f64(),
                counted.messages,
                counted.lost,
                counted.again,
                counted.in_vain,
                row.silence.as_millis(),
                row.silent
            )?;
        }
        Ok(())
    }
}

//! Whether bounded figures have stayed where they were: by their ratios to the kernel, which the machine's speed of the
//! day falls out of.

use std::fmt::Write;

use crate::{
    bounds::Base,
    measure::Unit,
    report::{Comparison, Report, Row, slower::place},
};

use super::change::{rows, same};

/// What became of the bounded figures.
#[derive(Debug, Default)]
pub struct Gated {
    /// How many there are in A.
    pub judged: usize,
    /// What is said of those that fail.
    pub failed: Vec<String>,
}

/// Judges each bounded figure of report `a`. Counts are left out: they have differences to the kernel, not ratios.
pub fn judge(a: &Report, b: &Report, limit: f64) -> Gated {
    let mut gated = Gated::default();
    for (table, row) in rows(a) {
        let Some(before) = bounded(row) else { continue };
        gated.judged += 1;
        let place = place(table, row);
        let after = same(b, table, row).and_then(bounded);
        let Some(after) = after else {
            gated.failed.push(format!("{place}: not in B"));
            continue;
        };
        let (before, after) = (before.summary.median, after.summary.median);
        let changed = 100.0 * (after / before - 1.0);
        // Not a number is no less than the limit either.
        if changed
            .abs()
            .partial_cmp(&limit)
            .is_none_or(|order| order.is_gt())
        {
            let said =
                format!("{place}: {before:.3} to {after:.3} of the kernel's, {changed:+.1} %");
            gated.failed.push(said);
        }
    }
    gated
}

/// The bounded ratio of a figure to the kernel's.
fn bounded(row: &Row) -> Option<&Comparison> {
    if row.unit == Unit::Count {
        return None;
    }
    let mut comparisons = row.comparisons.iter();
    comparisons.find(|comparison| comparison.base == Base::Kernel && comparison.verdict.is_some())
}

impl Gated {
    /// For the terminal.
    pub fn text(&self, limit: f64) -> String {
        let mut text = format!(
            "\n{} of {} bounded figures changed by more than {limit} %, or are gone\n",
            self.failed.len(),
            self.judged
        );
        for failed in &self.failed {
            let _ = writeln!(text, "  {failed}");
        }
        text
    }
}

//! Where the fast path is slower than the kernel: said before anything else.

use super::{Comparison, Report, Row, Table};
use crate::{bounds::Base, measure::Unit};

/// Equal to the kernel.
pub const EQUAL: f64 = 1.0;

/// A figure of the fast path that the kernel's is below.
#[derive(Clone, Copy, Debug)]
pub struct Slower<'a> {
    /// Where it is from.
    pub table: &'a Table,
    /// The figure.
    pub row: &'a Row,
    /// With the kernel's.
    pub to_kernel: &'a Comparison,
}

impl Report {
    /// All of them, the slowest first: ratios of time and cost whose interval lies above 1, then those of rates whose
    /// interval lies below. Figures that are only kept
    /// in the JSON file count too, so that no late answers hide there.
    pub fn slower(&self) -> Vec<Slower<'_>> {
        let rows = self.tables.iter().flat_map(|table| {
            let rows = table.rows.iter();
            rows.map(move |row| (table, row))
        });
        let mut slower: Vec<_> = rows
            .filter(|(_, row)| row.carrier.is_fast())
            .filter_map(|(table, row)| {
                let to_kernel = row.to_kernel()?;
                let interval = to_kernel.interval;
                let is_slower = match row.unit {
                    Unit::PerSecond => interval.high < EQUAL,
                    unit => unit.is_cost() && interval.low > EQUAL,
                };
                is_slower.then_some(Slower {
                    table,
                    row,
                    to_kernel,
                })
            })
            .collect();
        let ratio = |slower: &Slower<'_>| slower.to_kernel.summary.median;
        slower.sort_by(|a, b| ratio(b).total_cmp(&ratio(a)));
        slower
    }
}

impl Row {
    /// Its comparison with the kernel's path in the same setting.
    pub fn to_kernel(&self) -> Option<&Comparison> {
        let mut comparisons = self.comparisons.iter();
        comparisons.find(|comparison| comparison.base == Base::Kernel)
    }
}

impl Slower<'_> {
    /// Where it was measured, and what.
    pub fn place(&self) -> String {
        format!(
            "{}, {}, {}: {}, {}",
            self.table.measure,
            self.table.setting.backend.name(),
            self.table.setting.label(),
            self.row.figure,
            self.row.carrier.name()
        )
    }

    /// How much slower.
    pub fn ratio(&self) -> String {
        let interval = self.to_kernel.interval;
        format!(
            "{:.3} ({:.3}..{:.3})",
            self.to_kernel.summary.median, interval.low, interval.high
        )
    }
}

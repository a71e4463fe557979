//! Where the fast path is slower than the kernel: said before anything else.

use super::{Comparison, Report, Row, Table};
use crate::bounds::Base;

/// Equal to the kernel.
pub const EQUAL: f64 = 1.0;

/// Rounds without which two paths cannot be told apart.
const FEWEST: usize = 2;

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
    /// All of them, the slowest first: ratios of time and cost whose interval lies above 1. Fewer than [`FEWEST`] rounds
    /// tell nothing. Figures that are only kept
    /// in the JSON file count too, so that no late answers hide there.
    pub fn slower(&self) -> Vec<Slower<'_>> {
        let rows = self.tables.iter().flat_map(|table| {
            let rows = table.rows.iter();
            rows.map(move |row| (table, row))
        });
        let mut slower: Vec<_> = rows
            .filter(|(_, row)| row.carrier.is_fast() && row.unit.is_cost())
            .filter(|(_, row)| row.samples.len() >= FEWEST)
            .filter_map(|(table, row)| {
                let to_kernel = row.to_kernel()?;
                (to_kernel.interval.low > EQUAL).then_some(Slower {
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

/// Where a figure is from, and whose it is.
pub fn place(table: &Table, row: &Row) -> String {
    format!(
        "{}, {}, {}: {}, {}",
        table.measure,
        table.setting.backend.name(),
        table.setting.label(),
        row.figure,
        row.carrier.name()
    )
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
        place(self.table, self.row)
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

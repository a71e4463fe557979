//! What has changed between two reports, figure by figure.

use std::fmt::Write;

use crate::{
    measure::Unit,
    report::{Report, Row, Table, slower::place},
    stats::Interval,
};

/// A figure that both reports have.
#[derive(Debug)]
pub struct Change {
    place: String,
    unit: Unit,
    before: f64,
    after: f64,
    /// B's median by A's, where both are above nothing.
    pub ratio: Option<f64>,
    /// Whether the medians' intervals have values in common.
    overlap: bool,
}

/// What two reports have in common, and what not.
#[derive(Debug, Default)]
pub struct Changes {
    /// The largest first; figures without a ratio at the end.
    pub both: Vec<Change>,
    only_before: Vec<String>,
    only_after: Vec<String>,
}

/// The row of another report that holds the same figure.
pub fn same<'a>(report: &'a Report, table: &Table, row: &Row) -> Option<&'a Row> {
    let tables = report.tables.iter();
    tables
        .filter(|other| other.measure == table.measure && other.setting == table.setting)
        .flat_map(|other| &other.rows)
        .find(|other| {
            other.figure == row.figure && other.carrier == row.carrier && other.unit == row.unit
        })
}

/// All rows of a report.
pub fn rows(report: &Report) -> impl Iterator<Item = (&Table, &Row)> {
    let tables = report.tables.iter();
    tables.flat_map(|table| table.rows.iter().map(move |row| (table, row)))
}

impl Changes {
    /// From report `a` to report `b`.
    pub fn between(a: &Report, b: &Report) -> Self {
        let mut changes = Self::default();
        for (table, row) in rows(a) {
            match same(b, table, row) {
                Some(other) => changes.both.extend(Change::new(table, row, other)),
                None => changes.only_before.push(place(table, row)),
            }
        }
        let missing = rows(b).filter(|(table, row)| same(a, table, row).is_none());
        changes.only_after = missing.map(|(table, row)| place(table, row)).collect();
        changes.both.sort_by(|a, b| b.size().total_cmp(&a.size()));
        changes
    }

    /// As tables for the terminal.
    pub fn write(&self, text: &mut String) {
        let width = self.both.iter().map(|change| change.place.chars().count());
        let width = width.max().unwrap_or(0);
        let _ = writeln!(
            text,
            "\n{:<width$} {:>12} {:>12} {:<6} {:>8}  INTERVALS",
            "FIGURE", "A", "B", "", "B/A"
        );
        for change in &self.both {
            change.write(text, width);
        }
        let _ = writeln!(text, "\n{} figures are in both", self.both.len());
        for (name, only) in [("A", &self.only_before), ("B", &self.only_after)] {
            for place in only {
                let _ = writeln!(text, "only in {name}: {place}");
            }
        }
    }
}

impl Change {
    fn new(table: &Table, before: &Row, after: &Row) -> Option<Self> {
        let intervals = (
            Interval::of(&before.samples)?,
            Interval::of(&after.samples)?,
        );
        let (a, b) = (before.summary.median, after.summary.median);
        // Events and shares are near nothing in most runs: any ratio of theirs would come before what matters.
        let is_amount = !matches!(before.unit, Unit::Count | Unit::Percent);
        let comparable = is_amount && a > 0.0 && b > 0.0;
        Some(Self {
            place: place(table, before),
            unit: before.unit,
            before: a,
            after: b,
            ratio: comparable.then(|| b / a),
            overlap: intervals.0.overlaps(&intervals.1),
        })
    }

    /// Half and double are as large; what has no ratio is smaller than anything that has.
    fn size(&self) -> f64 {
        match self.ratio {
            Some(ratio) => ratio.ln().abs(),
            // Between -1 and 0, larger for larger differences.
            None => -1.0 / (1.0 + (self.after - self.before).abs()),
        }
    }

    fn write(&self, text: &mut String, width: usize) {
        let decimals = self.unit.decimals();
        let ratio = match self.ratio {
            Some(ratio) => format!("{ratio:.3}"),
            None => format!("{:+.decimals$}", self.after - self.before),
        };
        let _ = writeln!(
            text,
            "{:<width$} {:>12.decimals$} {:>12.decimals$} {:<6} {ratio:>8}  {}",
            self.place,
            self.before,
            self.after,
            self.unit.name(),
            if self.overlap {
                "overlap: no difference"
            } else {
                "apart"
            }
        );
    }
}

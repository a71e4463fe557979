//! The numbers of a table, as in the terminal.

use maud::{Markup, html};

use super::{
    Colours,
    chart::{self, number},
};
use crate::{
    bounds::Base,
    measure::Unit,
    report::{Comparison, Row, Table, slower::EQUAL},
};

/// The figures for all to see, and the others on demand.
pub fn numbers(table: &Table, colours: &Colours) -> Markup {
    let (details, shown): (Vec<&Row>, Vec<&Row>) = table.rows.iter().partition(|row| row.detail);
    html! {
        @if !shown.is_empty() { (rows(&shown, colours)) }
        @if !details.is_empty() {
            details {
                summary { "Further figures" }
                (rows(&details, colours))
            }
        }
    }
}

/// The columns that not every table has.
#[derive(Clone, Copy)]
struct Columns {
    comparisons: bool,
    net: bool,
}

fn rows(rows: &[&Row], colours: &Colours) -> Markup {
    let comparisons = || rows.iter().flat_map(|row| &row.comparisons);
    let columns = Columns {
        comparisons: comparisons().next().is_some(),
        net: comparisons().any(|comparison| comparison.net.is_some()),
    };
    html! {
        div.scroll {
            table {
                thead { tr {
                    th { "figure" } th { "path" }
                    th.number { "median" } th.number { "MAD" } th.number { "min" } th.number { "max" } th { "" }
                    @if columns.comparisons {
                        th { "to" } th.number { "ratio" } th.number { "interval" }
                        @if columns.net { th.number { "net" } }
                        th { "" }
                    }
                } }
                tbody {
                    @for (index, row) in rows.iter().enumerate() {
                        @let is_first = index == 0 || rows[index - 1].figure != row.figure;
                        (self::row(row, is_first, columns, colours))
                    }
                }
            }
        }
    }
}

/// A row of the table for each comparison, and one at least.
fn row(row: &Row, is_first: bool, columns: Columns, colours: &Colours) -> Markup {
    let unit = row.unit;
    let lines = row.comparisons.len().max(1);
    html! {
        @for line in 0..lines {
            tr.first[is_first && line == 0] {
                @if line == 0 {
                    td rowspan=(lines) { @if is_first { strong { (row.figure) } } }
                    td rowspan=(lines) { span class={ "swatch " (colours.class(row.carrier)) } {} (row.carrier.name()) }
                    @for value in [row.summary.median, row.summary.deviation, row.summary.min, row.summary.max] {
                        td.number rowspan=(lines) { (number(value, unit)) }
                    }
                    td rowspan=(lines) { (unit.name()) }
                }
                @match row.comparisons.get(line) {
                    Some(comparison) => (cells(row, comparison, columns)),
                    None => { @if columns.comparisons { td colspan=(if columns.net { 5 } else { 4 }) {} } },
                }
            }
        }
    }
}

fn cells(row: &Row, comparison: &Comparison, columns: Columns) -> Markup {
    // Of events there are differences, of the rest ratios.
    let (decimals, none) = if row.unit == Unit::Count {
        (0, 0.0)
    } else {
        (3, EQUAL)
    };
    let interval = comparison.interval;
    // By these classes less is shown as good.
    let class = match chart::class(&interval, none) {
        "less" if row.unit.is_gain() => "more",
        "more" if row.unit.is_gain() => "less",
        class => class,
    };
    // Noise is neither good nor bad, and nobody expects to be as fast as nodes without pods.
    let is_judged = row.carrier.is_fast() && comparison.base == Base::Kernel;
    let said = match comparison.verdict {
        Some(verdict) => {
            let goal = verdict
                .goal
                .map_or(String::new(), |goal| format!(" (goal {goal})"));
            let met = if verdict.met { "met" } else { "MISSED" };
            format!("≤ {}{goal} {met}", verdict.limit)
        }
        None if class == "same" => "no difference".to_owned(),
        None => String::new(),
    };
    let said_class = match comparison.verdict {
        Some(verdict) if verdict.met => "verdict-less",
        Some(_) => "verdict-more",
        None => "verdict-same",
    };
    html! {
        td { (comparison.base.name()) }
        td.number.verdict-less[is_judged && class == "less"].verdict-more[is_judged && class == "more"] { (format!("{:.decimals$}", comparison.summary.median)) }
        td.number { (format!("{:.decimals$} – {:.decimals$}", interval.low, interval.high)) }
        @if columns.net {
            td.number { @if let Some(net) = comparison.net { (format!("{net:.3}")) } }
        }
        td class=(said_class) { (said) }
    }
}

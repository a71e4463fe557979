//! The part of the page for one measure: its settings one after another, then all of them against the number of services.

use maud::{Markup, html};

use super::{
    Colours, anchor, bars, group,
    lines::{self, Series},
    percentiles, ratios, setting, table,
};
use crate::{
    report::{Report, Row, Table},
    variants::{Backend, Carrier},
};

/// The percentile that is drawn against the number of services.
const MEDIAN: f64 = 50.0;

/// The report's measures in their order.
pub fn names(report: &Report) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for table in &report.tables {
        if !names.contains(&table.measure.as_str()) {
            names.push(&table.measure);
        }
    }
    names
}

/// All measures.
pub fn measures(report: &Report, colours: &Colours) -> Markup {
    html! {
        @for name in names(report) {
            @let tables: Vec<&Table> = report.tables.iter().filter(|table| table.measure == name).collect();
            section {
                h2 id=(name) { (name) }
                p { (tables[0].title) "." }
                @for table in &tables {
                    (of_table(table, colours))
                }
                (against_services(&tables, colours))
            }
        }
    }
}

fn of_table(table: &Table, colours: &Colours) -> Markup {
    let shown = group::figures(table, |row| !row.detail);
    let percentiles = group::percentiles(&group::figures(table, |_| true));
    let is_percentile = |figure: &str| {
        let mut groups = percentiles.iter();
        groups.any(|group| group.figures.iter().any(|(_, name)| name == figure))
    };
    let single: Vec<&str> = shown
        .into_iter()
        .filter(|figure| !is_percentile(figure))
        .collect();
    let counted = group::counted(&single);
    html! {
        h3 id=(anchor(table)) { (table.measure) ": " (setting(table)) }
        (colours.legend(carriers(table).into_iter()))
        @for (carrier, error) in &table.errors {
            div.error { strong { (carrier.name()) ": not measured" } pre { (error) } }
        }
        @if let Some(ratios) = ratios::chart(table) { (ratios) }
        div.charts {
            @for group in &percentiles {
                @if let Some(chart) = percentiles::chart(table, group, colours) { (chart) }
            }
            @for figure in &single {
                (bars::chart(&rows(table, figure), colours))
            }
        }
        div.charts {
            @for group in &counted {
                @let points = group.figures.iter().map(|(number, figure)| (*number, rows(table, figure)));
                @let series = Series { name: &group.name, what: group.what, points: points.collect() };
                @if let Some(chart) = lines::chart(&series, colours) { (chart) }
            }
        }
        (table::numbers(table, colours))
    }
}

/// Figures that were measured with several numbers of services; of percentiles, the medians.
fn against_services(tables: &[&Table], colours: &Colours) -> Markup {
    let mut backends: Vec<Backend> = Vec::new();
    for table in tables {
        if !backends.contains(&table.setting.backend) {
            backends.push(table.setting.backend);
        }
    }
    html! {
        @for backend in backends {
            @let charts = charts_against_services(tables, backend, colours);
            @if !charts.is_empty() {
                h4 { (tables[0].measure) ": " (backend.name()) ", against the number of services" }
                div.charts { @for chart in &charts { (chart) } }
            }
        }
    }
}

fn charts_against_services(tables: &[&Table], backend: Backend, colours: &Colours) -> Vec<Markup> {
    let mut tables: Vec<&Table> = tables
        .iter()
        .copied()
        .filter(|table| table.setting.backend == backend && table.setting.is_usual())
        .collect();
    tables.sort_by_key(|table| table.setting.services);
    let Some(first) = tables.first().filter(|_| tables.len() > 1) else {
        return Vec::new();
    };
    let is_drawn = |row: &Row| {
        let percentile = group::percentile(&row.figure);
        !row.detail && percentile.is_none_or(|(_, percent)| percent == MEDIAN)
    };
    let figures = group::figures(first, is_drawn).into_iter();
    figures
        .filter_map(|figure| {
            let points = tables
                .iter()
                .map(|table| (table.setting.services as f64, rows(table, figure)));
            let points: Vec<_> = points.filter(|(_, rows)| !rows.is_empty()).collect();
            let series = Series {
                name: figure,
                what: "services",
                points,
            };
            lines::chart(&series, colours)
        })
        .collect()
}

fn rows<'a>(table: &'a Table, figure: &str) -> Vec<&'a Row> {
    let rows = table.rows.iter();
    rows.filter(|row| row.figure == figure).collect()
}

fn carriers(table: &Table) -> Vec<Carrier> {
    let mut carriers = Vec::new();
    for row in &table.rows {
        if !carriers.contains(&row.carrier) {
            carriers.push(row.carrier);
        }
    }
    carriers
}

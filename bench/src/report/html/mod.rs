//! The report as one page that needs nothing else: no network, no scripts, charts as SVG.

mod bars;
mod chart;
mod group;
mod lines;
mod percentiles;
mod ratios;
mod section;
mod table;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{Report, Table};
use crate::variants::{Carrier, Setting};

const STYLE: &str = include_str!("style.css");

/// Classes of the style sheet for the carriers that have no colour of their own.
const FURTHER: [&str; 6] = ["c1", "c2", "c3", "c4", "c5", "c6"];

impl Report {
    /// The page.
    pub fn html(&self) -> String {
        let colours = Colours::of(self);
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { "flannel fast path: benchmark of " (self.machine.date) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    header {
                        h1 { "flannel fast path: benchmark" }
                        (self.facts_html())
                    }
                    main {
                        (self.slower_html())
                        (self.bounds_html())
                        (self.explanation_html(&colours))
                        (self.contents_html())
                        (section::measures(self, &colours))
                    }
                }
            }
        };
        page.into_string()
    }

    fn facts_html(&self) -> Markup {
        html! {
            dl.facts {
                @for (name, value) in self.facts() {
                    div { dt { (name) } dd { (value) } }
                }
                @if !self.options.is_empty() {
                    div.wide { dt { "options" } dd { code { (self.options.join(" ")) } } }
                }
            }
            @if !self.machine.mitigations.is_empty() {
                details {
                    summary { "What the kernel does about the CPU's weaknesses" }
                    table.mitigations {
                        @for (name, value) in &self.machine.mitigations {
                            tr { th scope="row" { (name) } td { (value) } }
                        }
                    }
                }
            }
        }
    }

    fn slower_html(&self) -> Markup {
        let slower = self.slower();
        html! {
            section.box.bad[!slower.is_empty()].good[slower.is_empty() && self.is_complete()] {
                h2 { "Slower than the kernel: " @if slower.is_empty() { "none" } @else { (slower.len()) } }
                @if slower.is_empty() {
                    p { "No time or cost of the fast path has an interval that lies above the kernel’s." }
                    @if !self.is_complete() {
                        p { strong { "But not everything was measured: the errors are with the measures below." } }
                    }
                } @else {
                    table {
                        thead { tr {
                            th { "measure" } th { "setting" } th { "figure" } th { "path" }
                            th.number { "times the kernel’s" } th.number { "interval" }
                        } }
                        @for slower in &slower {
                            @let interval = slower.to_kernel.interval;
                            tr {
                                td { a href={ "#" (anchor(slower.table)) } { (slower.table.measure) } }
                                td { (setting(slower.table)) }
                                td { (slower.row.figure) }
                                td { (slower.row.carrier.name()) }
                                td.number { strong { (format!("{:.3}", slower.to_kernel.summary.median)) } }
                                td.number { (format!("{:.3} – {:.3}", interval.low, interval.high)) }
                            }
                        }
                    }
                }
            }
        }
    }

    fn bounds_html(&self) -> Markup {
        let rows = || {
            let tables = self.tables.iter();
            let rows = tables.flat_map(|table| table.rows.iter().map(move |row| (table, row)));
            rows.flat_map(|(table, row)| {
                let bounded = row
                    .comparisons
                    .iter()
                    .filter_map(|to| Some((to, to.verdict?)));
                bounded.map(move |(to, verdict)| (table, row, to, verdict))
            })
        };
        let missed: Vec<_> = rows().filter(|(.., verdict)| !verdict.met).collect();
        let unmeasured: Vec<_> = self
            .tables
            .iter()
            .flat_map(|table| table.unmeasured.iter().map(move |figure| (table, figure)))
            .collect();
        html! {
            @if rows().next().is_some() || !unmeasured.is_empty() {
                section.box {
                    h2 { "Bounds: " (rows().count() - missed.len()) " of " (rows().count()) " met" }
                    @if !missed.is_empty() {
                        table {
                            thead { tr {
                                th { "missed by" } th { "setting" } th { "figure" } th { "to" }
                                th.number { "median" } th.number { "bound" }
                            } }
                            @for (table, row, to, verdict) in &missed {
                                tr {
                                    td { a href={ "#" (anchor(table)) } { (table.measure) } }
                                    td { (setting(table)) }
                                    td { (row.figure) }
                                    td { (to.base.name()) }
                                    td.number { strong { (format!("{:.3}", to.summary.median)) } }
                                    td.number { "≤ " (verdict.limit) }
                                }
                            }
                        }
                    }
                    @if !unmeasured.is_empty() {
                        p { "Not measured:" }
                        ul {
                            @for (table, figure) in &unmeasured {
                                li { (table.measure) ", " (setting(table)) ": " (figure) }
                            }
                        }
                    }
                }
            }
        }
    }

    fn explanation_html(&self, colours: &Colours) -> Markup {
        html! {
            section {
                h2 { "How to read it" }
                p {
                    "Every path is measured once in each round, in an order that rotates; what takes long, in the last rounds only. A bar is the median of the rounds; "
                    "its whisker is the interval that holds the true median by 95 % (sign test; with fewer than six rounds, "
                    "smallest to largest). A ratio is the median of the ratios round by round, with its own interval: below 1, "
                    "the path takes less than the kernel’s. "
                    strong { "Grey means no difference" } ": the interval includes 1. “Kernel again” is the same as “kernel” in another "
                    "cluster, and says how far two equal things differ on this machine. Where packets are made by the generator, "
                    "its own cost (“generator alone”) is part of every number; NET is the ratio without it."
                }
                p {
                    "Cost is in cycles where the machine has hardware counters, else in nanoseconds of CPU time. 0 services: "
                    "no bridge netfilter, no conntrack and no rule at all, but for one rule for --fast-path=flow, without which there is no conntrack "
                    "to ask. All nodes share one machine and a veth is their wire: figures say what a path costs, not what a "
                    "network card can do."
                }
                (colours.legend(colours.0.iter().map(|(carrier, _)| *carrier)))
            }
        }
    }

    fn contents_html(&self) -> Markup {
        html! {
            nav aria-label="Contents" {
                @for measure in section::names(self) {
                    div {
                        a href={ "#" (measure) } { strong { (measure) } }
                        span {
                            @for table in self.tables.iter().filter(|table| table.measure == measure) {
                                a href={ "#" (anchor(table)) } { (setting(table)) } " "
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What a table's part of the page is called in links.
fn anchor(table: &Table) -> String {
    let Setting {
        backend,
        services,
        rules,
        bridge_netfilter,
    } = table.setting;
    let (backend, rules) = (backend.name(), rules.name());
    format!(
        "{}-{backend}-{services}-{rules}-{bridge_netfilter}",
        table.measure
    )
}

/// What its measurements have in common.
fn setting(table: &Table) -> String {
    let backend = table.setting.backend.name();
    match table.setting.services {
        0 => format!("{backend}, no rules"),
        _ => format!("{backend}, {}", table.setting.label()),
    }
}

/// The colours of a report's carriers, the same in all charts.
struct Colours(Vec<(Carrier, &'static str)>);

impl Colours {
    fn of(report: &Report) -> Self {
        let mut further = FURTHER.into_iter().cycle();
        let mut colours: Vec<(Carrier, &'static str)> = Vec::new();
        for row in report.tables.iter().flat_map(|table| &table.rows) {
            if colours.iter().any(|(carrier, _)| *carrier == row.carrier) {
                continue;
            }
            let class = match row.carrier {
                Carrier::Kernel => "kernel",
                Carrier::KernelAgain => "again",
                Carrier::Flow => "flow",
                Carrier::Native => "native",
                Carrier::Generator => "generator",
                _ => further.next().unwrap_or("kernel"),
            };
            colours.push((row.carrier, class));
        }
        Self(colours)
    }

    /// The class of a carrier in the style sheet.
    fn class(&self, carrier: Carrier) -> &'static str {
        let found = self.0.iter().find(|(other, _)| *other == carrier);
        found.map_or("kernel", |(_, class)| class)
    }

    fn legend(&self, carriers: impl Iterator<Item = Carrier>) -> Markup {
        html! {
            ul.legend {
                @for carrier in carriers {
                    li { span class={ "swatch " (self.class(carrier)) } {} (carrier.name()) }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;

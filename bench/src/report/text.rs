//! The report for the terminal.

use std::fmt::Write;

use super::{Comparison, Report, Row, Table};
use crate::{bounds::Verdict, measure::Unit};

/// Red, and what was before (ECMA-48, Select Graphic Rendition).
const RED: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";

impl Report {
    /// Where the fast path is slower than the kernel, in red if colours are wanted; then all tables.
    pub fn text(&self, colours: bool) -> String {
        let mut text = self.slower_text(colours);
        let machine = &self.machine;
        let _ = write!(
            text,
            "\n{} rounds on CPU {} ({}), kernel {}\n\
             MAD: median absolute deviation. RATIO: median of the ratios round by round (of counts: the difference), \
             with the interval that holds the true median by 95 % (of fewer than six rounds: smallest to largest). NET: both less the generator.\n\
             0 services: no bridge netfilter, no conntrack and no rule at all, but for one rule for --fast-path=flow, \
             without which there is no conntrack to ask.\n\
             BOUND: what --fast-path=flow is to reach (goal in brackets). No hardware counters: ns of CPU time.\n",
            self.effort.rounds, machine.cpu, machine.cpu_model, machine.kernel
        );
        if self.counts_cycles() {
            text = text.replace(
                "No hardware counters: ns of CPU time.",
                "Cost in hardware cycles.",
            );
        }
        for table in &self.tables {
            table.write(&mut text);
        }
        let (bounded, missed) = (self.bounded(), self.missed().len());
        let _ = writeln!(text, "\n{} of {bounded} bounds met", bounded - missed);
        for figure in self.unmeasured() {
            let _ = writeln!(text, "not measured: {figure}");
        }
        text
    }

    fn slower_text(&self, colours: bool) -> String {
        let slower = self.slower();
        if slower.is_empty() {
            return "slower than the kernel: none\n".to_owned();
        }
        let (red, plain) = if colours { (RED, PLAIN) } else { ("", "") };
        let mut text = format!("{red}slower than the kernel: {}{plain}\n", slower.len());
        for slower in slower {
            let (place, ratio) = (slower.place(), slower.ratio());
            let _ = writeln!(text, "{red}  {place}: {ratio} times the kernel's{plain}");
        }
        text
    }
}

impl Table {
    fn write(&self, text: &mut String) {
        let _ = writeln!(
            text,
            "\n{}: {}, {}. {}",
            self.measure,
            self.setting.backend.name(),
            self.setting.label(),
            self.title
        );
        let _ = writeln!(
            text,
            "{:<34}{:<18}{:>10}{:>7}{:>9}{:>9} {:<6}  {:<17}{:>7} {:<15}{:>6}  BOUND",
            "FIGURE", "PATH", "MEDIAN", "MAD", "MIN", "MAX", "", "TO", "RATIO", "INTERVAL", "NET"
        );
        let mut previous = "";
        for row in self.rows.iter().filter(|row| !row.detail) {
            let figure = if row.figure == previous {
                ""
            } else {
                &row.figure
            };
            previous = &row.figure;
            row.write(text, figure);
        }
        for (carrier, error) in &self.errors {
            // The verifier says more than a line; the JSON file has it all.
            let error = error.lines().next().unwrap_or("not measured");
            let _ = writeln!(text, "{:<34}{:<18}error: {error}", "", carrier.name());
        }
    }
}

impl Row {
    fn write(&self, text: &mut String, figure: &str) {
        let summary = &self.summary;
        // Numbers of a few microseconds or milliseconds need their decimals.
        let digits = if matches!(self.unit, Unit::Microseconds | Unit::Milliseconds) {
            2
        } else {
            0
        };
        let mut start = format!(
            "{figure:<34}{:<18}{:>10.digits$}{:>7.*}{:>9.digits$}{:>9.digits$} {:<6}",
            self.carrier.name(),
            summary.median,
            digits.max(1),
            summary.deviation,
            summary.min,
            summary.max,
            self.unit.name()
        );
        let width = start.chars().count();
        if self.comparisons.is_empty() {
            let _ = writeln!(text, "{}", start.trim_end());
        }
        for comparison in &self.comparisons {
            let line = format!("{start}  {}", comparison.text(self.unit));
            let _ = writeln!(text, "{}", line.trim_end());
            start = " ".repeat(width);
        }
    }
}

impl Comparison {
    fn text(&self, unit: Unit) -> String {
        let digits = if unit == Unit::Count { 0 } else { 3 };
        let interval = format!(
            "{:.digits$}..{:.digits$}",
            self.interval.low, self.interval.high
        );
        let none = if unit == Unit::Count { 0.0 } else { 1.0 };
        let net = self.net.map_or(String::new(), |net| format!("{net:.3}"));
        let verdict = match self.verdict {
            Some(Verdict { limit, goal, met }) => {
                let goal = goal.map_or(String::new(), |goal| format!(" ({goal})"));
                let said = if met { "met" } else { "MISSED" };
                format!("≤ {limit}{goal} {said}")
            }
            None if self.interval.contains(none) => "no difference".to_owned(),
            None => String::new(),
        };
        format!(
            "{:<17}{:>7.digits$} {interval:<15}{net:>6}  {verdict}",
            self.base.name(),
            self.summary.median
        )
    }
}

//! The report for the terminal.

use std::{collections::BTreeSet, fmt::Write};

use super::{Proofs, Report, Row};
use crate::{
    remote::{load::Unit, proof::Verdict, protocol::Node},
    stats::Summary,
};

/// What a row says instead of a ratio, if it may not be of the path that it names.
const UNPROVEN: &str = "NOT PROVEN";

impl Report {
    /// What is going to be measured.
    pub fn heading(&self) -> String {
        let node = |node: &Node| {
            let agent = node.agent.map_or("no agent's socket".to_owned(), |mode| {
                format!("agent in mode {mode}")
            });
            format!("kernel {}, {} CPUs, {agent}", node.kernel, node.cpus)
        };
        let what = match self.fast_path {
            Some(mode) => format!(
                "the kernel's path (off) against the fast path ({mode}); both agents get their modes back at the end"
            ),
            None => "the path as it is, nothing to compare with: that needs --agent-socket here and at the server"
                .to_owned(),
        };
        format!(
            "client: {}\nserver {}: {}\n{what}\n{} rounds of {} s; UDP flood of {} datagrams of {} bytes per second",
            node(&self.client),
            self.address,
            node(&self.server),
            self.rounds,
            self.duration_s,
            self.udp_rate,
            self.udp_size
        )
    }

    /// The table, and what is known of the paths.
    pub fn text(&self) -> String {
        let mut text = String::from(
            "\nMAD: median absolute deviation. RATIO: median of fast path to kernel round by round (of %: the \
             difference), with the interval that holds the true median by 95 % (of fewer than six rounds: smallest to largest).\nCPU: time of the whole node, of \
             everything that runs on it.\n",
        );
        let _ = writeln!(
            text,
            "{:<34}{:<10}{:>13}{:>11}{:>13}{:>13} {:<10}{:>7} INTERVAL",
            "FIGURE", "PATH", "MEDIAN", "MAD", "MIN", "MAX", "", "RATIO"
        );
        let mut previous = "";
        for row in &self.rows {
            let figure = if row.figure == previous {
                ""
            } else {
                row.figure
            };
            previous = row.figure;
            let _ = writeln!(text, "{}", row.text(figure));
        }
        text.push('\n');
        for proofs in &self.proofs {
            let _ = writeln!(text, "{}", proofs.text());
        }
        for failure in &self.errors {
            let (kind, path) = (failure.kind.name(), failure.path.name());
            let _ = writeln!(text, "{kind}, {path}: error: {}", failure.error);
        }
        text
    }
}

impl Row {
    fn text(&self, figure: &str) -> String {
        let Summary {
            median,
            deviation,
            min,
            max,
        } = self.summary;
        // Small numbers need their decimals.
        let digits = match self.unit {
            Unit::Microseconds | Unit::GigabitsPerSecond | Unit::Percent => 2,
            Unit::PerSecond | Unit::NanosecondsPerGigabyte | Unit::NanosecondsPerPacket => 0,
        };
        let none = if self.unproven { UNPROVEN } else { "" };
        let comparison = self.comparison.map_or(none.to_owned(), |comparison| {
            let interval = comparison.interval;
            format!(
                "{:>7.3} {:.3}..{:.3}",
                comparison.summary.median, interval.low, interval.high
            )
        });
        let line = format!(
            "{figure:<34}{:<10}{median:>13.digits$}{deviation:>11.digits$}{min:>13.digits$}{max:>13.digits$} {:<10}{comparison}",
            self.path.name(),
            self.unit.name(),
        );
        line.trim_end().to_owned()
    }
}

impl Proofs {
    fn text(&self) -> String {
        let rounds = self.proofs.len();
        let (kind, path) = (self.kind.name(), self.path.name());
        let lacks: Vec<&str> = self
            .proofs
            .iter()
            .filter_map(|proof| match &proof.verdict {
                Verdict::Lacking(why) => Some(why.as_str()),
                Verdict::Proven | Verdict::Seen(_) => None,
            })
            .collect();
        let seen: BTreeSet<String> = self
            .proofs
            .iter()
            .filter_map(|proof| match proof.verdict {
                Verdict::Seen(seen) => Some(seen.to_string()),
                Verdict::Proven | Verdict::Lacking(_) => None,
            })
            .collect();
        if let Some(first) = lacks.first() {
            let missing = lacks.len();
            format!("{kind}, {path}: NOT PROVEN in {missing} of {rounds} rounds: {first}")
        } else if seen.is_empty() {
            format!(
                "{kind}, {path}: proven by both agents' counters in {rounds} of {rounds} rounds"
            )
        } else {
            let seen = Vec::from_iter(seen).join(", or ");
            format!("{kind}, {path}: {seen}")
        }
    }
}

//! What was measured, put side by side: as a table for the terminal, and with all samples and proofs as JSON.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    time::Duration,
};

use serde::Serialize;

use super::{
    load::{Done, Figure, Kind, Target, Unit},
    proof::{Path, Proof, Verdict},
    protocol::{Mode, Node},
};
use crate::stats::{Interval, Summary, differences, pairwise};

/// Both nodes are switched.
const COMPARED: &[Path] = &[Path::Kernel, Path::Fast];
/// None is.
const ALONE: &[Path] = &[Path::AsIs];

/// What all rounds have yielded.
#[derive(Debug, Default)]
pub struct Rounds {
    measured: BTreeMap<(Kind, Path), Vec<(Vec<Figure>, Proof)>>,
    spoiled: BTreeMap<(Kind, Path), String>,
}

impl Rounds {
    /// Adds a round of one kind by one path.
    pub fn add(&mut self, kind: Kind, path: Path, done: Done, proof: Proof) {
        let rounds = self.measured.entry((kind, path)).or_default();
        rounds.push((done.figures, proof));
    }

    /// Gives up a kind by one path.
    pub fn spoil(&mut self, kind: Kind, path: Path, why: String) {
        self.measured.remove(&(kind, path));
        self.spoiled.insert((kind, path), why);
    }

    /// Whether it has been given up.
    pub fn is_spoiled(&self, kind: Kind, path: Path) -> bool {
        self.spoiled.contains_key(&(kind, path))
    }
}

/// All that a run says.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The client's node.
    pub client: Node,
    /// The server's node.
    pub server: Node,
    /// The server's address.
    pub address: String,
    /// What the kernel's path is compared with; nothing if no path was chosen.
    pub fast_path: Option<Mode>,
    /// How long each measurement took, in seconds.
    pub duration_s: f64,
    /// How often everything was measured.
    pub rounds: usize,
    /// Datagrams per second of the flood.
    pub udp_rate: u32,
    /// Bytes of each.
    pub udp_size: usize,
    /// A figure's rows follow each other.
    pub rows: Vec<Row>,
    /// The paths, by kind, with a proof for each round.
    pub proofs: Vec<Proofs>,
    /// What went wrong.
    pub errors: Vec<Failure>,
}

/// One figure by one path.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The figure.
    pub figure: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// How its packets travelled.
    pub path: Path,
    /// One per round.
    pub samples: Vec<f64>,
    /// Of the samples.
    pub summary: Summary,
    /// To the kernel's path, pair by pair of rounds.
    pub comparison: Option<Comparison>,
}

/// The fast path beside the kernel's.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Comparison {
    /// Of the ratios, or for percentages of the differences.
    pub summary: Summary,
    /// Of their median.
    pub interval: Interval,
}

/// The proofs of one kind by one path.
#[derive(Debug, Serialize)]
pub struct Proofs {
    /// What was measured.
    pub kind: Kind,
    /// By which path.
    pub path: Path,
    /// One per round.
    pub proofs: Vec<Proof>,
}

/// A measurement that failed.
#[derive(Debug, Serialize)]
pub struct Failure {
    /// What was measured.
    pub kind: Kind,
    /// By which path.
    pub path: Path,
    /// Why.
    pub error: String,
}

impl Report {
    /// A report without measurements yet.
    pub fn new(
        [client, server]: [Node; 2],
        target: Target,
        fast_path: Option<Mode>,
        duration: Duration,
        rounds: usize,
    ) -> Self {
        Self {
            client,
            server,
            address: target.address.to_string(),
            fast_path,
            duration_s: duration.as_secs_f64(),
            rounds,
            udp_rate: target.rate,
            udp_size: target.size,
            rows: Vec::new(),
            proofs: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// Which paths are measured.
    pub fn paths(&self) -> &'static [Path] {
        if self.fast_path.is_some() {
            COMPARED
        } else {
            ALONE
        }
    }

    /// Adds what was measured, and compares it.
    pub fn add(&mut self, rounds: Rounds) {
        let mut rows = BTreeMap::new();
        for (place, kind) in Kind::ALL.into_iter().enumerate() {
            for path in self.paths() {
                let Some(measured) = rounds.measured.get(&(kind, *path)) else {
                    continue;
                };
                let figures = measured.first().map_or(0, |(figures, _)| figures.len());
                for number in 0..figures {
                    let samples: Vec<f64> = measured
                        .iter()
                        .map(|(figures, _)| figures[number].value)
                        .collect();
                    let figure = measured[0].0[number];
                    let Some(summary) = Summary::of(&samples) else {
                        continue;
                    };
                    let row = Row {
                        figure: figure.name,
                        unit: figure.unit,
                        path: *path,
                        samples,
                        summary,
                        comparison: None,
                    };
                    rows.insert((place, number, *path), row);
                }
            }
        }
        self.rows = rows.into_values().collect();
        self.compare();
        let proofs = rounds.measured.into_iter();
        self.proofs = proofs
            .map(|((kind, path), measured)| Proofs {
                kind,
                path,
                proofs: measured.into_iter().map(|(_, proof)| proof).collect(),
            })
            .collect();
        let spoiled = rounds.spoiled.into_iter();
        self.errors = spoiled
            .map(|((kind, path), error)| Failure { kind, path, error })
            .collect();
    }

    fn compare(&mut self) {
        let before = self.rows.clone();
        let fast = self.rows.iter_mut().filter(|row| row.path == Path::Fast);
        for row in fast {
            let mut others = before.iter();
            let kernel =
                others.find(|other| other.path == Path::Kernel && other.figure == row.figure);
            row.comparison = kernel.and_then(|kernel| row.compared_with(kernel));
        }
    }

    /// Whether everything has its number, and every path that was chosen its proof.
    pub fn is_complete(&self) -> bool {
        let mut verdicts = self.proofs.iter().flat_map(|row| &row.proofs);
        self.errors.is_empty()
            && !self.rows.is_empty()
            && verdicts.all(|proof| !matches!(proof.verdict, Verdict::Lacking(_)))
    }

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
             difference), with the interval that holds the true median by 95 %.\nCPU: time of the whole node, of \
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
    fn compared_with(&self, kernel: &Self) -> Option<Comparison> {
        let compared = if self.unit == Unit::Percent {
            differences(&self.samples, &kernel.samples)
        } else {
            pairwise(&self.samples, &kernel.samples)
        };
        // Ticks may be too coarse for a short measurement to have taken any time.
        if !compared.iter().all(|ratio| ratio.is_finite()) {
            return None;
        }
        Some(Comparison {
            summary: Summary::of(&compared)?,
            interval: Interval::of(&compared)?,
        })
    }

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
        let comparison = self.comparison.map_or(String::new(), |comparison| {
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

#[cfg(test)]
#[path = "tests/report.rs"]
mod tests;

//! What was measured, put side by side: as a table for the terminal, and with all samples and proofs as JSON.

mod text;

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{
    load::{Done, Figure, Kind, Target, Unit},
    proof::{Path, Proof},
    protocol::{Mode, Node},
};
use crate::stats::{Interval, Summary, differences, pairwise};

/// Both nodes are switched.
const COMPARED: &[Path] = &[Path::Kernel, Path::Fast];
/// None is.
const ALONE: &[Path] = &[Path::AsIs];

/// What one round has yielded of one kind by one path.
type Round = (Vec<Figure>, Proof);

/// What all rounds have yielded.
#[derive(Debug, Default)]
pub struct Rounds {
    measured: BTreeMap<(Kind, Path), Vec<Round>>,
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
    /// Whether a round lacks the proof that its packets travelled so.
    pub unproven: bool,
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
                let unproven = measured.iter().any(|(_, proof)| proof.is_lacking());
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
                        unproven,
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
        self.errors.is_empty() && !self.rows.is_empty() && !verdicts.any(Proof::is_lacking)
    }
}

impl Row {
    fn compared_with(&self, kernel: &Self) -> Option<Comparison> {
        // Nobody knows which paths such a ratio would compare.
        if self.unproven || kernel.unproven {
            return None;
        }
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
}

#[cfg(test)]
#[path = "../tests/report.rs"]
mod tests;

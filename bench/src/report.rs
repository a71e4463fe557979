//! What was measured, put side by side: as tables for the terminal, as a page, and with all samples as JSON and CSV.

mod csv;
mod html;
pub mod slower;
mod text;

use serde::{Deserialize, Serialize};

use crate::{
    bounds::{Base, Bounds, Verdict},
    machine::Machine,
    measure::{Effort, Measure, Unit},
    rounds::{Outcome, Series},
    stats::{Interval, Summary, differences, pairwise},
    variants::{Carrier, Setting},
};

/// All that a run says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What it was made on.
    pub machine: Machine,
    /// The command line, without the program's name.
    pub options: Vec<String>,
    /// How much was measured.
    pub effort: Effort,
    /// What was measured.
    pub tables: Vec<Table>,
}

/// The figures of one measure in one setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// What they have in common.
    pub setting: Setting,
    /// The measure.
    pub measure: String,
    /// What it says about itself.
    pub title: String,
    /// A figure's rows follow each other.
    pub rows: Vec<Row>,
    /// What went wrong, by carrier.
    pub errors: Vec<(Carrier, String)>,
    /// Bounded figures that are not among the rows.
    pub unmeasured: Vec<String>,
}

/// One figure by one carrier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The figure.
    pub figure: String,
    /// Whether it is only for the JSON file.
    pub detail: bool,
    /// What it counts.
    pub unit: Unit,
    /// How its packets travelled.
    pub carrier: Carrier,
    /// One per round.
    pub samples: Vec<f64>,
    /// Of the samples.
    pub summary: Summary,
    /// To others.
    pub comparisons: Vec<Comparison>,
}

/// A figure beside another carrier's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// With whom.
    pub base: Base,
    /// Pair by pair of rounds: the ratios, or for events the differences.
    pub summary: Summary,
    /// Of their median.
    pub interval: Interval,
    /// The median of the ratios, each side less the generator's cost.
    pub net: Option<f64>,
    /// What it is to be.
    pub verdict: Option<Verdict>,
}

/// An option whose value, if it is a path, is the file's name alone: reports are shown to others.
fn without_folders(option: &str) -> String {
    match option.rsplit_once('/') {
        Some((folders, file)) => match folders.split_once('=') {
            Some((name, _)) => format!("{name}={file}"),
            None => file.to_owned(),
        },
        None => option.to_owned(),
    }
}

impl Report {
    /// A report without measurements yet, about this machine.
    pub fn new(cpu: usize, effort: Effort) -> Self {
        let options = std::env::args_os().skip(1);
        Self {
            machine: Machine::here(cpu),
            options: options
                .map(|option| without_folders(&option.to_string_lossy()))
                .collect(),
            effort,
            tables: Vec::new(),
        }
    }

    /// What to say of the run, by name: the machine and the effort.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = self.machine.facts();
        let effort = &self.effort;
        facts.extend([
            ("rounds", effort.rounds.to_string()),
            ("packets per run", effort.packets.to_string()),
            ("flows", effort.flows.to_string()),
            ("quick", if effort.quick { "yes" } else { "no" }.to_owned()),
            ("full", if effort.full { "yes" } else { "no" }.to_owned()),
        ]);
        facts
    }

    /// Adds what the carriers of a measure achieved in a setting.
    pub fn add(
        &mut self,
        setting: Setting,
        measure: &dyn Measure,
        outcomes: Vec<(Carrier, Outcome)>,
    ) {
        let mut table = Table {
            setting,
            measure: measure.name().to_owned(),
            title: measure.title(&self.effort),
            rows: Vec::new(),
            errors: Vec::new(),
            unmeasured: Vec::new(),
        };
        for (carrier, outcome) in outcomes {
            match outcome.and_then(numbers) {
                Ok(series) => {
                    table
                        .rows
                        .extend(series.into_iter().filter_map(|(figure, series)| {
                            Some(Row {
                                figure,
                                detail: series.detail,
                                unit: series.unit,
                                carrier,
                                summary: Summary::of(&series.samples)?,
                                samples: series.samples,
                                comparisons: Vec::new(),
                            })
                        }))
                }
                Err(error) => table.errors.push((carrier, error)),
            }
        }
        let mut figures: Vec<String> = Vec::new();
        for row in &table.rows {
            if !figures.contains(&row.figure) {
                figures.push(row.figure.clone());
            }
        }
        // Stable: carriers keep their order.
        table
            .rows
            .sort_by_key(|row| figures.iter().position(|figure| *figure == row.figure));
        if !table.rows.is_empty() || !table.errors.is_empty() {
            self.tables.push(table);
        }
    }

    /// Compares all figures, once all are there.
    pub fn compare(&mut self, bounds: &Bounds) {
        let before = self.tables.clone();
        for table in &mut self.tables {
            let (setting, measure) = (table.setting, table.measure.clone());
            let bounded = table.is_bounded();
            let without_rules = before.iter().find(|other| {
                other.measure == measure
                    && other.setting.backend == setting.backend
                    && other.setting.services == 0
                    && setting.is_usual()
                    && setting.services > 0
            });
            let own = before
                .iter()
                .find(|other| other.measure == measure && other.setting == setting);
            for row in &mut table.rows {
                let bases = [
                    (Base::Kernel, own, Carrier::Kernel),
                    (Base::KernelWithoutRules, without_rules, Carrier::Kernel),
                    (Base::Native, own, Carrier::Native),
                    (Base::Batch, own, Carrier::Batch),
                ];
                let compared = bases.into_iter().filter_map(|(base, table, carrier)| {
                    let wanted = match row.carrier {
                        Carrier::Flow => true,
                        Carrier::Kernel | Carrier::Generator | Carrier::Batch => false,
                        _ => base == Base::Kernel,
                    };
                    let other = table.filter(|_| wanted)?.row(&row.figure, carrier)?;
                    let floor = own?.row(&row.figure, Carrier::Generator);
                    row.compare(base, other, floor)
                });
                row.comparisons = compared.collect();
                let alone = own.is_some_and(Table::is_alone);
                let is_judged = row.carrier == Carrier::Flow || (alone && row.carrier.is_fast());
                if bounded && is_judged {
                    row.judge(bounds, &measure, setting);
                }
                // Of interest where it is asked for only.
                row.comparisons.retain(|comparison| {
                    comparison.base != Base::KernelWithoutRules || comparison.verdict.is_some()
                });
            }
        }
        self.note_unmeasured(bounds);
    }

    /// Notes which bounds nobody has asked about: what is not measured must not pass for met.
    fn note_unmeasured(&mut self, bounds: &Bounds) {
        for table in self.tables.iter_mut().filter(|table| table.is_bounded()) {
            let judged = |figure: &str, base| {
                table.rows.iter().any(|row| {
                    let mut comparisons = row.comparisons.iter();
                    row.figure == figure
                        && comparisons.any(|other| other.base == base && other.verdict.is_some())
                })
            };
            let unmeasured: Vec<_> = bounds
                .of(&table.measure)
                .filter(|(figure, base)| !judged(figure, *base))
                .map(|(figure, base)| format!("{figure} to {}", base.name()))
                .collect();
            table.unmeasured = unmeasured;
        }
    }

    /// The bounded figures that miss their bound, in words.
    pub fn missed(&self) -> Vec<String> {
        let judged = self.judged();
        judged
            .filter(|(_, _, comparison)| comparison.verdict.is_some_and(|verdict| !verdict.met))
            .map(|(table, row, comparison)| {
                let (backend, label) = (table.setting.backend.name(), table.setting.label());
                let base = comparison.base.name();
                let value = comparison.summary.median;
                let limit = comparison.verdict.map_or(0.0, |verdict| verdict.limit);
                let Row { figure, .. } = row;
                format!(
                    "{}, {backend}, {label}: {figure} to {base}: {value:.3}, not {limit}",
                    table.measure
                )
            })
            .collect()
    }

    /// The bounded figures of measures that ran, and that nobody has asked about.
    pub fn unmeasured(&self) -> impl Iterator<Item = String> {
        self.tables.iter().flat_map(|table| {
            let figures = table.unmeasured.iter();
            figures.map(move |figure| {
                let (backend, label) = (table.setting.backend.name(), table.setting.label());
                format!("{}, {backend}, {label}: {figure}", table.measure)
            })
        })
    }

    /// How many figures are bounded.
    pub fn bounded(&self) -> usize {
        self.judged().count()
    }

    fn judged(&self) -> impl Iterator<Item = (&Table, &Row, &Comparison)> {
        let rows = self
            .tables
            .iter()
            .flat_map(|table| table.rows.iter().map(move |row| (table, row)));
        rows.flat_map(|(table, row)| {
            let comparisons = row.comparisons.iter();
            comparisons.map(move |comparison| (table, row, comparison))
        })
        .filter(|(_, _, comparison)| comparison.verdict.is_some())
    }

    /// Whether cost is counted in cycles, which repeat, and not in time.
    pub fn counts_cycles(&self) -> bool {
        self.machine.cost_unit == Some(Unit::Cycles)
    }

    /// Whether every measure has its numbers.
    pub fn is_complete(&self) -> bool {
        !self.tables.is_empty() && self.tables.iter().all(|table| table.errors.is_empty())
    }
}

/// The same series, if all of their samples are numbers: nothing can be said of others, and JSON cannot hold them.
fn numbers(series: Vec<(String, Series)>) -> Outcome {
    let is_odd = |series: &Series| !series.samples.iter().all(|sample| sample.is_finite());
    match series.iter().find(|(_, series)| is_odd(series)) {
        Some((figure, _)) => Err(format!("{figure}: a sample is no number")),
        None => Ok(series),
    }
}

impl Table {
    /// Whether bounds are for this setting: for nodes as they are, with rules. Nodes are not counted by rules.
    fn is_bounded(&self) -> bool {
        (self.setting.services > 0 && self.setting.is_usual()) || self.measure == "scale-nodes"
    }

    /// Whether there is one carrier only.
    fn is_alone(&self) -> bool {
        self.rows
            .windows(2)
            .all(|rows| rows[0].carrier == rows[1].carrier)
    }

    fn row(&self, figure: &str, carrier: Carrier) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.figure == figure && row.carrier == carrier)
    }
}

impl Row {
    fn compare(&self, base: Base, other: &Self, floor: Option<&Self>) -> Option<Comparison> {
        let compared = if self.unit == Unit::Count {
            differences(&self.samples, &other.samples)
        } else {
            pairwise(&self.samples, &other.samples)
        };
        // Parts of nothing are no numbers, and JSON has no others.
        if !compared.iter().all(|value| value.is_finite()) {
            return None;
        }
        let net = floor.and_then(|floor| {
            let less = |row: &Self| differences(&row.samples, &floor.samples);
            Summary::of(&pairwise(&less(self), &less(other)))
        });
        Some(Comparison {
            base,
            summary: Summary::of(&compared)?,
            interval: Interval::of(&compared)?,
            net: net
                .map(|summary| summary.median)
                .filter(|net| net.is_finite()),
            verdict: None,
        })
    }

    fn judge(&mut self, bounds: &Bounds, measure: &str, setting: Setting) {
        let judge = |base, value| bounds.judge(measure, &self.figure, base, setting.backend, value);
        if let Some(verdict) = judge(Base::None, self.summary.median) {
            self.comparisons.push(Comparison {
                base: Base::None,
                summary: self.summary,
                interval: Interval {
                    low: self.summary.min,
                    high: self.summary.max,
                },
                net: None,
                verdict: Some(verdict),
            });
        }
        let verdicts: Vec<_> = self
            .comparisons
            .iter()
            .map(|comparison| {
                comparison
                    .verdict
                    .or_else(|| judge(comparison.base, comparison.summary.median))
            })
            .collect();
        for (comparison, verdict) in self.comparisons.iter_mut().zip(verdicts) {
            comparison.verdict = verdict;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;

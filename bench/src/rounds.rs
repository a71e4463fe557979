//! Rounds: each measures everything once, in an order that rotates, so that no carrier always follows the same other one
//! and whatever changes on the machine meanwhile meets all alike.

use std::collections::BTreeMap;

use crate::{
    measure::{Context, Effort, Figure, Measure, Unit},
    progress::Progress,
    testbed::{Error, Means, Result, Testbed},
    variants::{Carrier, Setting},
};

/// The clusters of a setting, each built when it is first asked for.
pub struct Beds<'a> {
    means: Means<'a>,
    setting: Setting,
    built: BTreeMap<Carrier, std::result::Result<Testbed, String>>,
}

impl<'a> Beds<'a> {
    /// No clusters yet.
    pub fn new(means: Means<'a>, setting: Setting) -> Self {
        Self {
            means,
            setting,
            built: BTreeMap::new(),
        }
    }

    /// The cluster of a carrier.
    ///
    /// # Errors
    /// If it could not be built, now or earlier.
    pub fn get(&mut self, carrier: Carrier) -> Result<&mut Testbed> {
        let (means, setting) = (&self.means, self.setting);
        let bed = self.built.entry(carrier.bed()).or_insert_with(|| {
            Testbed::start(means, setting, carrier.bed()).map_err(|error| error.to_string())
        });
        bed.as_mut().map_err(|error| Error::NoBed(error.clone()))
    }
}

/// All samples of a figure by one carrier, or why there are none.
#[derive(Clone, Debug)]
pub struct Series {
    /// What it counts.
    pub unit: Unit,
    /// Whether it is only for the JSON file.
    pub detail: bool,
    /// One per round.
    pub samples: Vec<f64>,
}

/// What one carrier has achieved in a measure: its figures in their order.
pub type Outcome = std::result::Result<Vec<(String, Series)>, String>;

/// Measures all rounds of a setting; for each measure, what each of its carriers achieved.
pub fn run(
    means: Means<'_>,
    setting: Setting,
    effort: Effort,
    measures: &mut [Box<dyn Measure>],
    progress: &mut Progress,
) -> Vec<Vec<(Carrier, Outcome)>> {
    let mut outcomes: Vec<Vec<(Carrier, Outcome)>> = measures
        .iter()
        .map(|measure| {
            let carriers = measure.carriers().iter();
            let carriers = carriers
                .filter(|carrier| carrier.applies(setting) && !(effort.quick && carrier.is_tier()));
            carriers.map(|carrier| (*carrier, Ok(Vec::new()))).collect()
        })
        .collect();
    let mut beds = Beds::new(means, setting);
    let mut context = Context {
        means,
        effort,
        setting,
        beds: &mut beds,
    };
    for round in 0..effort.rounds {
        for (measure, outcomes) in measures.iter_mut().zip(&mut outcomes) {
            // Last, so that what it leaves behind (conntrack's entries of many flows) meets no other.
            if round + measure.rounds(&effort) < effort.rounds {
                continue;
            }
            progress.begin(measure.name(), || {
                format!(
                    "{}, {}: round {} of {}, {}",
                    setting.backend.name(),
                    setting.label(),
                    round + 1,
                    effort.rounds,
                    measure.name()
                )
            });
            let carriers = outcomes.len();
            for turn in 0..carriers {
                let (carrier, outcome) = &mut outcomes[(turn + round) % carriers];
                let Ok(series) = outcome else { continue };
                match measure.run(&mut context, *carrier) {
                    Ok(figures) => add(series, figures),
                    // One bad round spoils it: a number must not hide that packets went astray.
                    Err(error) => *outcome = Err(format!("round {}: {error}", round + 1)),
                }
            }
        }
    }
    outcomes
}

fn add(series: &mut Vec<(String, Series)>, figures: Vec<Figure>) {
    for figure in figures {
        match series.iter_mut().find(|(name, _)| *name == figure.name) {
            Some((_, series)) => series.samples.push(figure.value),
            None => series.push((
                figure.name,
                Series {
                    unit: figure.unit,
                    detail: figure.detail,
                    samples: vec![figure.value],
                },
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_figure_come_together() {
        let mut series = Vec::new();
        for value in [1.0, 2.0] {
            let figures = ["a", "b"].map(|name| Figure::new(name, Unit::Count, value));
            add(&mut series, figures.into());
        }
        let names: Vec<_> = series.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(
            series
                .iter()
                .all(|(_, series)| series.samples == [1.0, 2.0])
        );
    }
}

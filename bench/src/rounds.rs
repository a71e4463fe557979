//! Rounds: each measures every row once, in an order that rotates, so that no row always follows the same other one
//! and whatever changes on the machine meanwhile meets all rows alike.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    generator::Run,
    meter::Unit,
    stats::{Summary, pairwise},
    testbed::{self, Means, Testbed},
    variants::{Carrier, Setting},
};

/// Cost per packet, as one round measured it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// Cycles or nanoseconds.
    pub cost: f64,
    /// The part of it that the kernel put off to `ksoftirqd`.
    pub deferred: f64,
    /// Instructions, where the machine counts them.
    pub instructions: Option<f64>,
}

impl Sample {
    fn new(run: &Run, packets: u32) -> Self {
        let per_packet = |count: u64| count as f64 / f64::from(packets);
        Self {
            cost: per_packet(run.spent.cost),
            deferred: per_packet(run.spent.deferred),
            instructions: run.spent.instructions.map(per_packet),
        }
    }
}

/// All that was measured of one carrier in one setting.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What it has in common with the rows that it is compared with.
    pub setting: Setting,
    /// How its packets travelled.
    pub carrier: Carrier,
    /// One sample per round; none if there is an error.
    pub samples: Vec<Sample>,
    /// Cost per packet.
    pub cost: Option<Summary>,
    /// Instructions per packet.
    pub instructions: Option<Summary>,
    /// Cost to that of the kernel in the same round.
    pub ratio: Option<Summary>,
    /// The same, each less the generator's cost in the same round.
    pub net_ratio: Option<Summary>,
    /// Why there are no numbers.
    pub error: Option<String>,
}

/// The rows of one setting, and the unit of their costs.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// None if nothing could be measured.
    pub unit: Option<Unit>,
    /// In the order of [`Carrier::ALL`].
    pub rows: Vec<Row>,
}

/// How much is measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Effort {
    /// Rounds.
    pub rounds: usize,
    /// Packets of each row in each round.
    pub packets: u32,
}

/// Builds the clusters of a setting and measures them.
pub fn run(means: &Means<'_>, setting: Setting, effort: Effort, progress: impl Fn(&str)) -> Table {
    let mut beds = Beds::start(means, setting, &progress);
    let mut results: BTreeMap<Carrier, Result<Vec<Run>, String>> =
        Carrier::ALL.map(|carrier| (carrier, Ok(Vec::new()))).into();
    for round in 0..effort.rounds {
        progress(&format!("round {} of {}", round + 1, effort.rounds));
        let mut order = Carrier::ALL;
        order.rotate_left(round % Carrier::ALL.len());
        for carrier in order {
            let Some(Ok(runs)) = results.get_mut(&carrier) else {
                continue;
            };
            match beds.measure(carrier, effort.packets) {
                Ok(run) => runs.push(run),
                // One bad round spoils the row: a number must not hide that packets went astray.
                Err(error) => {
                    results.insert(carrier, Err(format!("round {}: {error}", round + 1)));
                }
            }
        }
    }
    table(setting, effort, &results)
}

/// The clusters of a setting, each with why it could not be built.
struct Beds(BTreeMap<Carrier, Result<Testbed, String>>);

impl Beds {
    fn start(means: &Means<'_>, setting: Setting, progress: impl Fn(&str)) -> Self {
        let clusters = [Carrier::Kernel, Carrier::KernelAgain, Carrier::Subnet];
        Self(
            clusters
                .map(|carrier| {
                    progress(&format!("cluster for {}", carrier.name()));
                    let bed = Testbed::start(means, setting, carrier);
                    (carrier, bed.map_err(|error| error.to_string()))
                })
                .into(),
        )
    }

    fn measure(&mut self, carrier: Carrier, packets: u32) -> Result<Run, String> {
        let (bed, measure): (_, fn(&mut Testbed, u32) -> testbed::Result<Run>) = match carrier {
            Carrier::Generator => (Carrier::Kernel, Testbed::measure_generator),
            _ => (carrier, Testbed::measure),
        };
        match self.0.get_mut(&bed) {
            Some(Ok(bed)) => measure(bed, packets).map_err(|error| error.to_string()),
            Some(Err(error)) => Err(error.clone()),
            None => Err("has no cluster".to_owned()),
        }
    }
}

fn table(
    setting: Setting,
    effort: Effort,
    results: &BTreeMap<Carrier, Result<Vec<Run>, String>>,
) -> Table {
    let costs = |carrier| -> Vec<f64> {
        let runs = results.get(&carrier).and_then(|runs| runs.as_ref().ok());
        let samples = runs.into_iter().flatten();
        samples
            .map(|run| Sample::new(run, effort.packets).cost)
            .collect()
    };
    let kernel = costs(Carrier::Kernel);
    let floor = costs(Carrier::Generator);
    let net = |costs: &[f64]| -> Vec<f64> {
        costs
            .iter()
            .zip(&floor)
            .map(|(cost, floor)| cost - floor)
            .collect()
    };
    let row = |(carrier, result): (&Carrier, &Result<Vec<Run>, String>)| {
        let runs = result.as_deref().unwrap_or_default();
        let samples: Vec<_> = runs
            .iter()
            .map(|run| Sample::new(run, effort.packets))
            .collect();
        let costs = costs(*carrier);
        let instructions: Vec<_> = samples
            .iter()
            .filter_map(|sample| sample.instructions)
            .collect();
        let compared = matches!(carrier, Carrier::KernelAgain | Carrier::Subnet);
        Row {
            setting,
            carrier: *carrier,
            cost: Summary::of(&costs),
            instructions: Summary::of(&instructions),
            ratio: Summary::of(&pairwise(&costs, &kernel)).filter(|_| compared),
            net_ratio: Summary::of(&pairwise(&net(&costs), &net(&kernel))).filter(|_| compared),
            samples,
            error: result.as_ref().err().cloned(),
        }
    };
    Table {
        unit: results
            .values()
            .flatten()
            .flatten()
            .map(|run| run.unit)
            .next(),
        rows: results.iter().map(row).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{meter::Spent, variants::Backend};

    const EFFORT: Effort = Effort {
        rounds: 2,
        packets: 10,
    };

    fn runs(costs: [u64; 2]) -> Result<Vec<Run>, String> {
        let run = |cost| Run {
            arrived: 10,
            spent: Spent {
                cost,
                ..Spent::default()
            },
            unit: Unit::Nanoseconds,
        };
        Ok(costs.map(run).into())
    }

    fn rows(results: [Result<Vec<Run>, String>; 4]) -> Vec<Row> {
        let setting = Setting {
            backend: Backend::Vxlan,
            services: 0,
        };
        let results = Carrier::ALL.into_iter().zip(results).collect();
        table(setting, EFFORT, &results).rows
    }

    #[test]
    fn ratios_are_to_the_kernel_with_and_without_the_generator() {
        let rows = rows([
            runs([1100, 2100]),
            runs([1100, 2100]),
            runs([200, 300]),
            runs([100, 100]),
        ]);
        let names: Vec<_> = rows.iter().map(|row| row.carrier).collect();
        assert_eq!(names, Carrier::ALL);
        assert_eq!(rows[0].cost.unwrap().median, 160.0);
        assert_eq!(rows[0].ratio, None);
        assert_eq!(rows[1].ratio.unwrap().median, 1.0);
        let net = rows[2].net_ratio.unwrap();
        assert_eq!((net.min, net.max), (0.1, 0.1));
        assert!((rows[2].ratio.unwrap().max - 200.0 / 1100.0).abs() < 1e-9);
        assert_eq!(rows[3].ratio, None);
    }

    #[test]
    fn an_error_is_no_number() {
        let rows = rows([
            runs([1100, 2100]),
            runs([1100, 2100]),
            Err("round 2: lost".to_owned()),
            runs([100, 100]),
        ]);
        assert_eq!(rows[2].cost, None);
        assert_eq!(rows[2].ratio, None);
        assert_eq!(rows[2].error.as_deref(), Some("round 2: lost"));
    }
}

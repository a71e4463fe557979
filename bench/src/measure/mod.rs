//! What is measured: one module each. A measure runs once per round and carrier, and yields figures.

mod control;
mod crr;
mod forward;
mod programs;
mod rr;
mod scale_flows;
mod scale_nodes;
mod slow;
mod stream;
mod udp;

use serde::{Deserialize, Serialize};

use crate::{
    generator::Run,
    meter,
    rounds::Beds,
    testbed::{Means, Result},
    variants::{Carrier, Setting},
};

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Hardware cycles.
    Cycles,
    /// Time on the CPU.
    #[serde(rename = "ns")]
    Nanoseconds,
    /// Time on the clock.
    #[serde(rename = "µs")]
    Microseconds,
    /// Time on the clock or on the CPU, of what takes long.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Memory.
    #[serde(rename = "KiB")]
    Kibibytes,
    /// Instructions.
    Instructions,
    /// Events: compared by difference, since there may be none.
    Count,
    /// Hundredths.
    Percent,
    /// Events in a second: the more the better.
    #[serde(rename = "1/s")]
    PerSecond,
}

impl Unit {
    /// What the report calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cycles => "cycles",
            Self::Nanoseconds => "ns",
            Self::Microseconds => "µs",
            Self::Milliseconds => "ms",
            Self::Kibibytes => "KiB",
            Self::Instructions => "instr",
            Self::Count => "count",
            Self::Percent => "%",
            Self::PerSecond => "1/s",
        }
    }

    /// Whether more of it is slower: true of time and cycles, but not of events, shares and instructions.
    pub fn is_cost(self) -> bool {
        match self {
            Self::Cycles | Self::Nanoseconds | Self::Microseconds | Self::Milliseconds => true,
            Self::Kibibytes
            | Self::Instructions
            | Self::Count
            | Self::Percent
            | Self::PerSecond => false,
        }
    }

    /// Whether more of it is better: true of rates.
    pub fn is_gain(self) -> bool {
        self == Self::PerSecond
    }

    /// Decimals that are worth reading.
    pub fn decimals(self) -> usize {
        match self {
            Self::Microseconds | Self::Milliseconds => 2,
            Self::Count | Self::PerSecond | Self::Kibibytes => 0,
            Self::Cycles | Self::Nanoseconds | Self::Instructions | Self::Percent => 1,
        }
    }
}

impl From<meter::Unit> for Unit {
    fn from(unit: meter::Unit) -> Self {
        match unit {
            meter::Unit::Cycles => Self::Cycles,
            meter::Unit::Nanoseconds => Self::Nanoseconds,
        }
    }
}

/// One number of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What it is of, the same in each round and for each carrier.
    pub name: String,
    /// What it counts.
    pub unit: Unit,
    /// How much.
    pub value: f64,
    /// Whether it is only for the JSON file.
    pub detail: bool,
}

impl Figure {
    /// A figure for the report.
    pub fn new(name: impl Into<String>, unit: Unit, value: f64) -> Self {
        Self {
            name: name.into(),
            unit,
            value,
            detail: false,
        }
    }

    /// A figure for the JSON file.
    pub fn detail(name: impl Into<String>, unit: Unit, value: f64) -> Self {
        Self {
            detail: true,
            ..Self::new(name, unit, value)
        }
    }

    /// The figures of a generator's run: cost and instructions per packet, and what the kernel has put off.
    pub fn per_packet(name: &str, run: &Run) -> Vec<Self> {
        let each = |count: u64| count as f64 / run.arrived as f64;
        let deferred = 100.0 * run.spent.deferred as f64 / run.spent.cost as f64;
        let instructions = run.spent.instructions.map(|count| {
            let name = format!("{name}, instructions");
            Self::new(name, Unit::Instructions, each(count))
        });
        [
            Self::new(name, run.unit.into(), each(run.spent.cost)),
            Self::detail(format!("{name}, by ksoftirqd"), Unit::Percent, deferred),
        ]
        .into_iter()
        .chain(instructions)
        .collect()
    }
}

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Effort {
    /// Rounds.
    pub rounds: usize,
    /// Packets of each run of the generator.
    pub packets: u32,
    /// Flows that take turns in them.
    pub flows: u32,
    /// Less of everything.
    pub quick: bool,
    /// More kinds of everything.
    pub full: bool,
}

/// What a measure works with.
pub struct Context<'a, 'b> {
    /// How things are measured.
    pub means: Means<'a>,
    /// How much is.
    pub effort: Effort,
    /// What the clusters have in common.
    pub setting: Setting,
    /// The clusters.
    pub beds: &'b mut Beds<'a>,
}

/// Something to measure.
pub trait Measure {
    /// What the option calls it.
    fn name(&self) -> &'static str;
    /// What the report says about it.
    fn title(&self, effort: &Effort) -> String;
    /// Who carries.
    fn carriers(&self) -> &'static [Carrier];
    /// Whether it says anything in this setting that is worth its time.
    fn applies(&self, setting: Setting, effort: &Effort) -> bool {
        setting.services > 0 || !effort.quick
    }
    /// Whether it is part of a quick run that does not ask for it.
    fn is_quick(&self) -> bool {
        true
    }
    /// Whether it is measured under rules of other kinds and numbers too.
    fn depends_on_rules(&self) -> bool {
        false
    }
    /// In how many of the rounds, the last ones.
    fn rounds(&self, effort: &Effort) -> usize {
        effort.rounds
    }
    /// Measures once.
    ///
    /// # Errors
    /// If anything makes the figures doubtful.
    fn run(&mut self, context: &mut Context<'_, '_>, carrier: Carrier) -> Result<Vec<Figure>>;
}

/// A measure by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Name {
    /// Cost of a forwarded packet
    Forward,
    /// Round trips
    Rr,
    /// Connections for one request, and datagrams for one question
    Crr,
    /// TCP streams
    Stream,
    /// Datagrams in one direction
    Udp,
    /// Traffic that never is fast
    Slow,
    /// Many flows
    ScaleFlows,
    /// Many nodes
    ScaleNodes,
    /// Single runs of the BPF programs
    Programs,
    /// The control plane: starts and changes with many leases
    Control,
}

impl Name {
    /// All, in the order of the report.
    pub const ALL: [Self; 10] = [
        Self::Forward,
        Self::Rr,
        Self::Crr,
        Self::Stream,
        Self::Udp,
        Self::Slow,
        Self::ScaleFlows,
        Self::ScaleNodes,
        Self::Programs,
        Self::Control,
    ];

    /// The measure, with nothing measured yet.
    pub fn measure(self) -> Box<dyn Measure> {
        match self {
            Self::Forward => Box::new(forward::Forward),
            Self::Rr => Box::<rr::Rr>::default(),
            Self::Crr => Box::new(crr::Crr),
            Self::Stream => Box::new(stream::Stream),
            Self::Udp => Box::<udp::Udp>::default(),
            Self::Slow => Box::new(slow::Slow),
            Self::ScaleFlows => Box::<scale_flows::ScaleFlows>::default(),
            Self::ScaleNodes => Box::<scale_nodes::ScaleNodes>::default(),
            Self::Programs => Box::<programs::Programs>::default(),
            Self::Control => Box::<control::Control>::default(),
        }
    }
}

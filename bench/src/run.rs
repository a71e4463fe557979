//! `bench`: builds the clusters, measures, reports.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    bounds::Bounds,
    measure::{Effort, Measure, Name},
    output::{self, Outputs},
    progress::Progress,
    report::Report,
    rounds,
    testbed::{Means, WARM_UP},
    variants::{Backend, Rules, Setting},
};

/// Packets of each run of the generator, and with `--quick`.
const PACKETS: u32 = 100_000;
const QUICK_PACKETS: u32 = 30_000;
/// Services of a large cluster, for `--full`.
const MANY_SERVICES: usize = 5_000;
/// Rounds of `--quick`.
const QUICK_ROUNDS: usize = 3;

/// What is measured, and how often.
#[derive(Debug, Args)]
pub struct Options {
    // Both are required without being so by their type: a command needs neither, whatever the environment says.
    /// The agent, with the BPF programs in it.
    #[arg(long, env = "FLANNEL_AGENT", value_name = "FILE", required = true)]
    agent: Option<PathBuf>,
    /// The packet generator's BPF object.
    #[arg(
        long,
        env = "FLANNEL_GENERATOR_OBJECT",
        value_name = "FILE",
        required = true
    )]
    generator_object: Option<PathBuf>,
    /// How often everything is measured.
    #[arg(long, default_value_t = 7, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Three rounds only, and less in each.
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// More kinds of packets, flows and rules; takes hours.
    #[arg(long, conflicts_with = "quick")]
    full: bool,
    /// Packets of each run of the generator [default: 100000; with --quick 30000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(i64::from(WARM_UP)..))]
    packets: Option<u32>,
    /// Flows that take turns.
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(WARM_UP)))]
    flows: u16,
    /// Services whose rules the nodes hold in the measurements with rules.
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    services: u16,
    /// The CPU that carries the packets [default: the last]
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,
    /// Only these measures.
    #[arg(long = "measure", value_name = "NAME", value_delimiter = ',')]
    measures: Vec<Name>,
    /// Only this backend.
    #[arg(long, value_name = "NAME")]
    backend: Option<Backend>,
    /// Fail if a bound of this file is missed; without hardware counters, say so instead. `bench/src/bounds.json` is the
    /// one that the report goes by otherwise.
    #[arg(long, value_name = "FILE")]
    assert: Option<PathBuf>,
}

/// Measures and reports.
///
/// # Errors
/// If nothing can be measured, or the report cannot be written.
pub fn run(options: &Options, outputs: &Outputs) -> Result<Ending> {
    if !rustix::process::geteuid().is_root() {
        bail!("network namespaces and BPF need root");
    }
    lab::signals::tear_down_on_signals(lab::signals::exit_code)
        .context("cannot install signal handlers")?;
    let cpu = choose_cpu(options.cpu)?;
    let (Some(agent), Some(generator)) = (&options.agent, &options.generator_object) else {
        unreachable!("clap asks for what is required");
    };
    let agent = agent
        .canonicalize()
        .with_context(|| format!("no agent {}", agent.display()))?;
    // Before the measurements, which take minutes.
    let files = outputs.create()?;
    let bounds = match &options.assert {
        Some(path) => Bounds::read(path)?,
        None => Bounds::built_in(),
    };
    let means = Means {
        agent: &agent,
        object: generator,
        cpu,
        other_cpu: usable_cpus()?.into_iter().find(|other| *other != cpu),
    };
    let effort = Effort {
        rounds: if options.quick {
            QUICK_ROUNDS
        } else {
            options.rounds.into()
        },
        packets: options.packets.unwrap_or(if options.quick {
            QUICK_PACKETS
        } else {
            PACKETS
        }),
        flows: options.flows.into(),
        quick: options.quick,
        full: options.full,
    };
    let names = Name::ALL.into_iter();
    let names: Vec<_> = names
        .filter(|name| match &options.measures[..] {
            [] => !options.quick || name.measure().is_quick(),
            chosen => chosen.contains(name),
        })
        .collect();
    let mut report = Report::new(cpu, effort);
    let usual = usual_settings(options);
    let more = if options.full {
        more_settings(options)
    } else {
        Vec::new()
    };
    let settings = || usual.iter().chain(&more).copied();
    let chosen = |setting| {
        let measures = names.iter().map(|name| name.measure());
        let all = usual.contains(&setting);
        let chosen = measures.filter(move |measure| {
            measure.applies(setting, &effort) && (all || measure.depends_on_rules())
        });
        chosen.collect::<Vec<Box<dyn Measure>>>()
    };
    let all = settings().flat_map(chosen);
    let mut progress = Progress::new(all.map(|measure| (measure.name(), measure.rounds(&effort))));
    for setting in settings() {
        let mut measures = chosen(setting);
        let outcomes = rounds::run(means, setting, effort, &mut measures, &mut progress);
        for (measure, outcomes) in measures.iter().zip(outcomes) {
            report.add(setting, &**measure, outcomes);
        }
    }
    report.compare(&bounds);
    // First what is kept: a terminal can be gone by now.
    files.write(&report)?;
    output::say(&report.text(output::colours()))?;
    let holds = options.assert.is_none() || holds(&report)?;
    Ok(match (report.is_complete(), holds) {
        (false, _) => Ending::Incomplete,
        (true, false) => Ending::Missed,
        (true, true) => Ending::Complete,
    })
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Every row has its number.
    Complete,
    /// Some have not.
    Incomplete,
    /// They have, and one misses a bound that was to be asserted.
    Missed,
}

impl From<Ending> for ExitCode {
    fn from(ending: Ending) -> Self {
        /// Beside 1 for what went wrong, and 2 for options that are wrong.
        const MISSED: u8 = 3;
        match ending {
            Ending::Complete => Self::SUCCESS,
            Ending::Incomplete => Self::FAILURE,
            Ending::Missed => Self::from(MISSED),
        }
    }
}

/// Whether nothing misses its bound, as far as this machine can tell.
fn holds(report: &Report) -> Result<bool> {
    let (mut missed, bounds) = (report.missed(), report.bounded());
    // What nobody has measured must not pass for met.
    missed.extend(
        report
            .unmeasured()
            .map(|what| format!("{what}: not measured")),
    );
    if !report.counts_cycles() {
        output::say(&format!(
            "skipped: {bounds} bounds are not asserted: this machine shows no hardware counters\n"
        ))?;
        return Ok(true);
    }
    for missed in &missed {
        output::say(&format!("missed: {missed}\n"))?;
    }
    Ok(missed.is_empty())
}

fn backends(options: &Options) -> impl Iterator<Item = Backend> {
    let backends = [Backend::Vxlan, Backend::HostGw].into_iter();
    backends.filter(|backend| options.backend.is_none_or(|only| only == *backend))
}

fn usual_settings(options: &Options) -> Vec<Setting> {
    let services = [usize::from(options.services), 0];
    backends(options)
        .flat_map(|backend| services.map(|services| Setting::usual(backend, services)))
        .collect()
}

/// Rules of another kind, of another number, and such that bridged packets do not meet.
fn more_settings(options: &Options) -> Vec<Setting> {
    let services = usize::from(options.services);
    backends(options)
        .flat_map(|backend| {
            let usual = Setting::usual(backend, services);
            let many = Setting::usual(backend, MANY_SERVICES);
            let nftables = |setting| Setting {
                rules: Rules::Nftables,
                ..setting
            };
            let beside_bridge = Setting {
                bridge_netfilter: false,
                ..usual
            };
            [beside_bridge, nftables(usual), many, nftables(many)]
        })
        .collect()
}

/// The one that was asked for, or the last that this process may use.
fn choose_cpu(asked: Option<usize>) -> Result<usize> {
    let usable = usable_cpus()?;
    match asked {
        Some(cpu) if usable.contains(&cpu) => Ok(cpu),
        Some(cpu) => bail!("--cpu={cpu}: this process may not use that CPU"),
        None => usable
            .last()
            .copied()
            .context("this process may use no CPU"),
    }
}

fn usable_cpus() -> Result<Vec<usize>> {
    let allowed =
        rustix::thread::sched_getaffinity(None).context("cannot read the CPU affinity")?;
    let cpus = 0..rustix::thread::CpuSet::MAX_CPU;
    Ok(cpus.filter(|cpu| allowed.is_set(*cpu)).collect())
}

//! What one run of a program takes, by hook and outcome, measured by the kernel itself (`BPF_PROG_TEST_RUN`) on the named
//! packets of the tests: no wire, no devices, no cache misses but the program's own first ones.
//!
//! Most packets are left as they are: each is given to its program again and again in one call, and the kernel divides
//! the time. After the first run, all that the program touches is in the CPU's nearest cache: the floor of what it costs.
//!
//! A packet that the program changes is another one in the second run (with outer headers, and more of them each time),
//! and a packet from which something was learned is old news. Those are given to it once per call, which adds a reading
//! of the clock and a cold start. That share is measured on a program that is switched off, which can be run both ways,
//! and taken off, but a program that does more is colder still: those figures ("once") are rather too high, and
//! not to be compared with the others.
//!
//! The counters prove each time that every run came to the outcome that the row names. A redirect is only asked for, so
//! what the kernel does for it is not in the figures; a copy that the program makes is.

use std::time::Duration;

use flannel_common::{
    maps::FLAG_FLOWS,
    outcome::{Hook, Outcome, slot},
    testing::fixtures::{self, Fixture, ProgramRun},
};
use lab::programs::{self, Kernel};

use super::{Context, Effort, Figure, Measure, Unit};
use crate::{
    stats::Summary,
    testbed::{Error, Result},
    variants::{Backend, Carrier, Setting},
};

/// Runs in one call, of a packet that stays as it is.
const REPEAT: u32 = 100_000;
/// The same, if there is little time.
const QUICK_REPEAT: u32 = 20_000;
/// Calls of a single run.
const SINGLE: usize = 2_000;
/// Calls of a single run, each with all maps written anew.
const REFILLED: usize = 200;
/// Nothing else runs meanwhile, so rounds differ little.
const ROUNDS: usize = 3;
/// Calls that bring program and maps into the cache.
const WARM_UP: u32 = 1_000;

/// See the module.
#[derive(Default)]
pub struct Programs {
    kernel: Option<Kernel>,
}

impl Measure for Programs {
    fn name(&self) -> &'static str {
        "programs"
    }

    fn title(&self, _: &Effort) -> String {
        "What a run of a program takes in BPF_PROG_TEST_RUN: the median over the tests' packets of that outcome; both \
         backends. Once: packets that the program changes, less the cold start of a program that is switched \
         off"
            .to_owned()
    }

    /// Two tables of contents: with flows to look up, and without.
    fn carriers(&self) -> &'static [Carrier] {
        &[Carrier::Subnet, Carrier::Flow]
    }

    /// The packets are of both backends, and there are no rules.
    fn applies(&self, setting: Setting, effort: &Effort) -> bool {
        setting.backend == Backend::Vxlan && (setting.services == 0) != effort.quick
    }

    fn is_quick(&self) -> bool {
        false
    }

    fn rounds(&self, effort: &Effort) -> usize {
        effort.rounds.min(ROUNDS)
    }

    fn run(&mut self, context: &mut Context<'_, '_>, carrier: Carrier) -> Result<Vec<Figure>> {
        let repeat = if context.effort.quick {
            QUICK_REPEAT
        } else {
            REPEAT
        };
        let kernel = match &mut self.kernel {
            Some(kernel) => kernel,
            none => none.insert(load()?),
        };
        let mut rows = Vec::new();
        for fixture in fixtures::all() {
            let flows = fixture.tables.config.flags & FLAG_FLOWS != 0;
            if flows == (carrier == Carrier::Flow) && runs(kernel, &fixture) {
                add(&mut rows, kernel, &fixture, repeat)?;
            }
        }
        // A program that is switched off never looks for flows: it is the same for both.
        let cold = cold_start(kernel, repeat)?;
        Ok(rows
            .into_iter()
            .filter_map(|row| row.figure(cold))
            .collect())
    }
}

/// The packets of one outcome.
struct Row {
    name: String,
    single: bool,
    samples: Vec<f64>,
}

impl Row {
    fn figure(self, cold: f64) -> Option<Figure> {
        let median = Summary::of(&self.samples)?.median;
        // May be less than nothing: then the difference drowned in what the two calls differ by anyway.
        let value = if self.single { median - cold } else { median };
        Some(Figure::new(self.name, Unit::Nanoseconds, value))
    }
}

fn load() -> Result<Kernel> {
    let bytes = programs::bytes().map_err(failed)?;
    let bytes = bytes.ok_or_else(|| {
        Error::Programs(
            "the benchmark was built without BPF programs: run it by `cargo xtask bench`, or name them by \
             FLANNEL_EBPF_OBJECT=FILE"
                .to_owned(),
        )
    })?;
    Kernel::load(&bytes).map_err(failed)
}

/// Whether a test run can make the packet, and ends as it would on a node.
fn runs(kernel: &Kernel, fixture: &Fixture) -> bool {
    fixture.program == ProgramRun::AsExpected
        && (kernel.encapsulates() || !fixture.encapsulates())
        && (kernel.sets_origin() || !Hook::ATTESTING.contains(&fixture.hook))
}

/// Measures a packet in the first way that proves right.
fn add(rows: &mut Vec<Row>, kernel: &mut Kernel, fixture: &Fixture, repeat: u32) -> Result<()> {
    let (single, sample) = match repeated(kernel, fixture, repeat)? {
        Some(sample) => (false, sample),
        None => (true, single(kernel, fixture)?),
    };
    let name = format!(
        "{}: {}{}{}{}",
        fixture.hook.name(),
        fixture.outcome().name(),
        if fixture.is_ipv6() { ", IPv6" } else { "" },
        if fixture.encapsulates() {
            ", VXLAN"
        } else {
            ""
        },
        if single { ", once" } else { "" }
    );
    match rows.iter_mut().find(|row| row.name == name) {
        Some(row) => row.samples.push(sample),
        None => rows.push(Row {
            name,
            single,
            samples: vec![sample],
        }),
    }
    Ok(())
}

/// Nanoseconds of a run among many; none if not all came to the same outcome.
fn repeated(kernel: &mut Kernel, fixture: &Fixture, repeat: u32) -> Result<Option<f64>> {
    kernel.fill(&fixture.tables).map_err(failed)?;
    // Packets that change do so at once: no need to run them long.
    if counted(kernel, fixture, WARM_UP, 1)?.is_none() {
        return Ok(None);
    }
    Ok(counted(kernel, fixture, repeat, 1)?.and_then(|samples| samples.first().copied()))
}

/// Nanoseconds of a run alone, the median.
fn single(kernel: &mut Kernel, fixture: &Fixture) -> Result<f64> {
    kernel.fill(&fixture.tables).map_err(failed)?;
    let samples = match counted(kernel, fixture, 1, SINGLE)? {
        Some(samples) => samples,
        None => {
            let mut samples = Vec::new();
            for _ in 0..REFILLED {
                kernel.fill(&fixture.tables).map_err(failed)?;
                samples.extend(counted(kernel, fixture, 1, 1)?.ok_or_else(|| {
                    let (hook, name) = (fixture.hook.name(), fixture.name);
                    let outcome = fixture.outcome().name();
                    Error::Programs(format!("{hook}: {name}: the outcome is not {outcome}"))
                })?);
            }
            samples
        }
    };
    Summary::of(&samples)
        .map(|summary| summary.median)
        .ok_or_else(|| Error::Programs("no run".to_owned()))
}

/// Nanoseconds of a run, for each call; none if the counters show another outcome than the fixture's.
fn counted(
    kernel: &Kernel,
    fixture: &Fixture,
    repeat: u32,
    calls: usize,
) -> Result<Option<Vec<f64>>> {
    let wanted = slot(fixture.hook, fixture.outcome()) as usize;
    let before = kernel.counters().map_err(failed)?;
    let ran = kernel.runs(fixture, repeat, calls).map_err(failed)?;
    let after = kernel.counters().map_err(failed)?;
    let grown = after[wanted] - before[wanted];
    let all = u64::from(repeat) * calls as u64;
    let nanoseconds = |duration: Duration| duration.as_nanos() as f64;
    Ok((grown == all).then(|| ran.iter().map(|ran| nanoseconds(ran.duration)).collect()))
}

/// Nanoseconds that a call of a single run adds: the same program on the same packet, run alone and among many.
fn cold_start(kernel: &mut Kernel, repeat: u32) -> Result<f64> {
    let fixture = fixtures::all().into_iter().find(|fixture| {
        fixture.hook == Hook::PodEgress
            && fixture.outcome() == Outcome::Inactive
            && fixture.program == ProgramRun::AsExpected
    });
    let missing = || Error::Programs("no packet for a program that is switched off".to_owned());
    let fixture = fixture.ok_or_else(missing)?;
    let among_many = repeated(kernel, &fixture, repeat)?.ok_or_else(missing)?;
    Ok(single(kernel, &fixture)? - among_many)
}

fn failed(error: anyhow::Error) -> Error {
    Error::Programs(format!("{error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fast_hit_and_every_drop_can_be_run() {
        let fixtures = fixtures::all();
        let has = |hook, outcome| {
            fixtures.iter().any(|fixture| {
                fixture.hook == hook
                    && fixture.outcome() == outcome
                    && fixture.program == ProgramRun::AsExpected
            })
        };
        for hook in Hook::FORWARDING {
            assert!(has(hook, Outcome::Fast), "{}", hook.name());
            assert!(has(hook, Outcome::Inactive), "{}", hook.name());
        }
        assert!(has(Hook::PodEgress, Outcome::DropPodSource));
        assert!(has(Hook::NicIngress, Outcome::DropPeerSource));
    }

    #[test]
    fn the_cold_start_is_taken_off_single_runs_only() {
        let row = |single| Row {
            name: "row".to_owned(),
            single,
            samples: vec![90.0, 100.0, 500.0],
        };
        let value = |single| row(single).figure(30.0).map(|figure| figure.value);
        assert_eq!((value(true), value(false)), (Some(70.0), Some(100.0)));
        let warmer = row(true).figure(200.0).map(|figure| figure.value);
        assert_eq!(warmer, Some(-100.0), "what drowned is not called nothing");
    }
}

//! Random sequences of lease events, faults and restarts always end in the kernel's state being what the leases demand.
//!
//! The agent's own reconcile loop runs on the real kernel, in a namespace and in a process of its own ([`agent`]). The
//! test knows by itself what should be there ([`world`]) and reads by iproute2 what is ([`kernel`]). A sequence is known by
//! its seed; one that fails is shortened before it is shown.

pub(crate) mod agent;
mod kernel;
mod run;
mod steps;
mod world;

use std::{
    env,
    time::{Duration, Instant},
};

use anyhow::bail;
use rand::{SeedableRng as _, rngs::StdRng};

use crate::support::{Outcome, Setting};
use run::Run;
use steps::{Step, sequence};
use world::{SHAPES, Shape};

/// The interface between nodes, and its other end.
const UPLINK: &str = "eth0";
const WIRE: &str = "wire0";
/// Steps of a sequence, looks not counted.
const LENGTH: usize = 25;
/// For how long sequences are begun.
const TIME: Duration = Duration::from_secs(15);
/// Sequences of each set-up at least, however slow the machine is.
const SEQUENCES: u64 = 2;
/// For how long a failing sequence is shortened.
const SHORTENING: Duration = Duration::from_secs(60);
/// Seconds for a long run.
const TIME_VARIABLE: &str = "FLANNEL_MODEL_SECONDS";
/// A seed to begin with, as a failure names it.
const SEED_VARIABLE: &str = "FLANNEL_MODEL_SEED";

/// What has been done.
#[derive(Debug, Default)]
struct Totals {
    sequences: u64,
    steps: usize,
    looks: usize,
    slowest: Duration,
}

pub(crate) fn any_sequence_ends_as_wanted(_: Setting) -> Outcome {
    let number = |name| {
        env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let time = number(TIME_VARIABLE).map_or(TIME, Duration::from_secs);
    let first = number(SEED_VARIABLE).unwrap_or_else(|| rand::random_range(0..1 << 32));
    let start = Instant::now();
    let mut totals = Totals::default();
    let enough = SEQUENCES * SHAPES.len() as u64;
    while totals.sequences < enough || start.elapsed() < time {
        let seed = first + totals.sequences;
        let shape = SHAPES[(seed % SHAPES.len() as u64) as usize];
        let steps = sequence(&mut StdRng::seed_from_u64(seed), shape, LENGTH);
        if let Err(error) = play(shape, &steps, &mut totals) {
            let (steps, error) = shortened(shape, steps, error);
            bail!("{SEED_VARIABLE}={seed}: {shape:?}: {error:#}\nafter {steps:#?}");
        }
        totals.sequences += 1;
    }
    println!(
        "{totals:?} in {:.1} s, first seed {first}",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn play(shape: Shape, steps: &[Step], totals: &mut Totals) -> Outcome {
    let mut run = Run::start(shape)?;
    for step in steps {
        run.step(step)?;
        totals.steps += 1;
        if *step == Step::Settle {
            totals.looks += 1;
        }
    }
    totals.slowest = totals.slowest.max(run.slowest());
    Ok(())
}

/// The same failure with fewer steps.
fn shortened(
    shape: Shape,
    mut steps: Vec<Step>,
    mut error: anyhow::Error,
) -> (Vec<Step>, anyhow::Error) {
    let start = Instant::now();
    let mut size = steps.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < steps.len() && start.elapsed() < SHORTENING {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + size).min(steps.len()));
            match play(shape, &fewer, &mut Totals::default()) {
                Err(same) => (steps, error) = (fewer, same),
                Ok(()) => at += size,
            }
        }
        size /= 2;
    }
    (steps, error)
}

/// An agent that is started anew on a node that is as it should be leaves it alone.
pub(crate) fn a_restart_changes_nothing(_: Setting) -> Outcome {
    for shape in SHAPES {
        Run::start(shape)?.restart_changes_nothing()?;
    }
    Ok(())
}

//! `--bench`: how long a program takes per packet. Printed, not judged: a test run has no cache misses and no devices.
//!
//! The figure of a packet that the program changes holds one reading of the clock and a cold start, which that of a
//! packet left as it is does not.

use std::time::Duration;

use flannel_common::outcome::{Hook, Outcome};
use flannel_common::testing::fixtures;
use flannel_common::testing::fixtures::{Fixture, ProgramRun};
use libtest_mimic::{Measurement, Trial};

use crate::kernel::Kernel;
use crate::{NotRun, Shared};

/// Runs per sample of a packet that the program leaves as it is.
const REPEAT: u32 = 100_000;

/// Samples of a packet that the program changes, each of a single run: a second one would get another packet.
const SINGLE_RUNS: usize = 20_000;

/// Samples of a packet that the program leaves as it is.
const SAMPLES: usize = 5;

pub fn trials(kernel: &Shared) -> Vec<Trial> {
    rows()
        .into_iter()
        .map(|fixture| {
            let kernel = kernel.clone();
            let name = format!("{}: {}", fixture.hook.name(), fixture.name);
            Trial::bench(name, move |_| match kernel {
                Ok(kernel) => {
                    let mut kernel = kernel.lock().map_err(|error| error.to_string())?;
                    let samples =
                        measure(&mut kernel, &fixture).map_err(|error| format!("{error:#}"))?;
                    Ok(Some(summary(&samples)))
                }
                Err(NotRun::Skipped(reason)) => Err(reason.into()),
                Err(NotRun::Failed(reason)) => Err(reason.into()),
            })
        })
        .collect()
}

/// The packets to time: what each hook takes, and how it declines early, late and when it is switched off.
fn rows() -> Vec<Fixture> {
    let names = |hook| match hook {
        Hook::PodEgress | Hook::BridgeEgress => [
            "encap udp",
            "assist udp",
            "direct udp",
            "switched off",
            "to the outside",
        ]
        .as_slice(),
        Hook::NicIngress => [
            "decap udp",
            "direct udp",
            "switched off",
            "to nobody here",
            "udp to this node",
        ]
        .as_slice(),
        Hook::VtepIngress => ["udp", "switched off", "from the outside"].as_slice(),
        Hook::AttestIn | Hook::AttestOut | Hook::NicXdp => &[],
    };
    let rows: Vec<_> = fixtures::all()
        .into_iter()
        .filter(|fixture| names(fixture.hook).contains(&fixture.name))
        .collect();
    let expected: usize = Hook::FORWARDING
        .into_iter()
        .map(|hook| names(hook).len())
        .sum();
    assert_eq!(rows.len(), expected, "a name is that of a fixture");
    rows
}

fn measure(kernel: &mut Kernel, fixture: &Fixture) -> anyhow::Result<Vec<Duration>> {
    assert_eq!(fixture.program, ProgramRun::AsExpected);
    kernel.fill(&fixture.tables)?;
    let (samples, repeat) = match fixture.outcome() {
        Outcome::Fast => (SINGLE_RUNS, 1),
        _ => (SAMPLES, REPEAT),
    };
    (0..samples)
        .map(|_| Ok(kernel.run(fixture, repeat)?.duration))
        .collect()
}

/// Median, and the distance between the quartiles.
fn summary(samples: &[Duration]) -> Measurement {
    let mut samples: Vec<_> = samples
        .iter()
        .map(|sample| sample.as_nanos() as u64)
        .collect();
    samples.sort_unstable();
    let quarter = |quarters: usize| samples[(samples.len() - 1) * quarters / 4];
    Measurement {
        avg: quarter(2),
        variance: quarter(3) - quarter(1),
    }
}

//! The benchmark as a test: that it still measures, each row on the path that it names, and that nothing has become much
//! worse (`bench/src/ci-bounds.json`; what is to be reached is in `bounds.json`).
//!
//! Ratios of CPU time on a machine without hardware counters move too much to fail by. There only the measuring is tested.

use std::{path::Path, time::Duration};

use anyhow::Result;

use super::tally::{Failure, Skip, Tally};
use crate::{bench, build::Objects, command, setup::distro::is_root, workspace::Workspace};

/// What must not become worse.
const BOUNDS: &str = "bench/src/ci-bounds.json";
/// Where the kernel shows what counts events.
const COUNTERS: &str = "/sys/bus/event_source/devices";
/// How the names of processors' counters begin: on x86, of which hybrid ones have several, and on Arm.
const PROCESSORS: [&str; 2] = ["cpu", "armv"];
/// Measures without counters: one of packets, one of sockets.
const FEW: &str = "forward,crr";
/// How the benchmark ends if all is measured and a bound is missed.
const MISSED: i32 = 3;
/// What it says where it cannot assert any.
const NOT_ASSERTED: &str = "skipped: ";
/// A benchmark that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// The tests' names.
const MEASURES: &str = "benchmark_measures_what_its_rows_say";
const HOLDS: &str = "benchmark_finds_nothing_worse";

/// Runs the benchmark, quick.
pub fn run(workspace: &Workspace, objects: &Objects) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut skip = |test: &str, reason: &str| {
        let (test, reason) = (test.to_owned(), reason.to_owned());
        println!("test {test} ... skipped: {reason}");
        tally.skipped.push(Skip { test, reason });
    };
    if !is_root() {
        skip(MEASURES, "needs root");
        skip(HOLDS, "needs root");
        return Ok(tally);
    }
    let has_counters = has_counters(Path::new(COUNTERS));
    if !has_counters {
        skip(HOLDS, "this machine shows no hardware counters");
    }
    let mut benchmark = bench::command(workspace, objects)?;
    benchmark.arg("--quick");
    if has_counters {
        benchmark.arg("--assert").arg(workspace.root.join(BOUNDS));
    } else {
        benchmark.arg("--measure").arg(FEW);
    }
    let mut asserted = has_counters;
    let status = command::lines(&mut benchmark, LIMIT, |line| {
        asserted &= !line.starts_with(NOT_ASSERTED);
        println!("  {line}");
    })?;
    if has_counters && !asserted {
        skip(HOLDS, "the kernel permits no hardware counters here");
    }
    let mut ends = |test: &str, passed: bool| {
        let outcome = if passed { "ok" } else { "FAILED" };
        println!("test {test} ... {outcome}");
        if passed {
            tally.passed += 1;
        } else {
            tally.failed.push(Failure::of(test));
        }
    };
    let missed = status.code() == Some(MISSED);
    ends(MEASURES, status.success() || missed);
    if asserted {
        ends(HOLDS, !missed);
    }
    Ok(tally)
}

fn has_counters(devices: &Path) -> bool {
    let devices = std::fs::read_dir(devices).into_iter().flatten().flatten();
    let mut names = devices.map(|device| device.file_name());
    names.any(|name| {
        let name = name.to_string_lossy();
        PROCESSORS.iter().any(|start| name.starts_with(start))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_counters_are_those_of_processors() {
        let devices = std::env::temp_dir().join(format!("devices-{}", std::process::id()));
        let make = |name: &str| std::fs::create_dir_all(devices.join(name)).expect("a folder");
        make("software");
        let without = has_counters(&devices);
        make("cpu_core");
        let with = has_counters(&devices);
        std::fs::remove_dir_all(&devices).expect("the folder");
        assert!(!without && with && !has_counters(&devices));
    }
}

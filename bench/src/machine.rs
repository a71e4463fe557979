//! What a report says of the machine that it was made on: figures of two machines are not alike without it.

use std::{collections::BTreeMap, fs, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::{measure::Unit, meter::Meter};

/// One file for each weakness of the CPU, with what the kernel does about it.
const VULNERABILITIES: &str = "/sys/devices/system/cpu/vulnerabilities";

/// The machine, and the program that measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Commit that the benchmark was built from; "unknown" outside of a git repository.
    pub commit: String,
    /// When the run began, UTC, as in RFC 3339.
    pub date: String,
    /// Kernel release.
    pub kernel: String,
    /// Model name of the CPU.
    pub cpu_model: String,
    /// CPUs that this process may run on.
    pub cpus: usize,
    /// The CPU that carried the packets.
    pub cpu: usize,
    /// What cost is counted in: cycles where there are hardware counters, else ns; none where nothing may be counted.
    pub cost_unit: Option<Unit>,
    /// What the kernel does about each weakness of the CPU.
    pub mitigations: BTreeMap<String, String>,
}

impl Machine {
    /// This one, now.
    pub fn here(cpu: usize) -> Self {
        let uname = rustix::system::uname();
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim_end() == "model name").then(|| value.trim().to_owned())
        });
        Self {
            commit: env!("BENCH_COMMIT").to_owned(),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            kernel: uname.release().to_string_lossy().into_owned(),
            cpu_model: model.unwrap_or_else(|| "unknown CPU".to_owned()),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            cpu,
            cost_unit: Meter::open(cpu).ok().map(|meter| meter.unit().into()),
            mitigations: mitigations(),
        }
    }

    /// What to say of it, by name; without the mitigations.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let counters = match self.cost_unit {
            Some(Unit::Cycles) => "yes: cost in cycles",
            Some(_) => "none: cost in ns of CPU time",
            None => "cost cannot be counted",
        };
        vec![
            ("date", self.date.clone()),
            ("commit", self.commit.clone()),
            ("kernel", self.kernel.clone()),
            ("CPU", self.cpu_model.clone()),
            ("CPUs", self.cpus.to_string()),
            ("measured on CPU", self.cpu.to_string()),
            ("hardware counters", counters.to_owned()),
        ]
    }
}

fn mitigations() -> BTreeMap<String, String> {
    let entries = fs::read_dir(VULNERABILITIES).into_iter().flatten();
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let text = fs::read_to_string(entry.path()).ok()?;
            let name = entry.file_name().into_string().ok()?;
            Some((name, text.trim().to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_read_back_as_it_was_written() {
        let machine = Machine::here(0);
        let text = serde_json::to_string(&machine).unwrap();
        assert_eq!(serde_json::from_str::<Machine>(&text).unwrap(), machine);
        assert!(machine.date.ends_with('Z') && !machine.commit.is_empty());
    }
}

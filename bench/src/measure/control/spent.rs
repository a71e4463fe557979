//! What the agent's process needs: time on the CPU, system calls, memory.

use std::{fs, time::Duration};

use crate::{
    meter::Counter,
    testbed::{Error, Result},
};

/// What it took until all was in place.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    /// Milliseconds on the clock.
    pub time: f64,
    /// Milliseconds on the CPU.
    pub cpu: f64,
    /// The most memory that the process had, in KiB.
    pub memory: Option<f64>,
    /// System calls, where the kernel counts them.
    pub system_calls: Option<u64>,
}

/// What a thread's children spend, and itself.
pub struct Counters {
    cpu: Counter,
    system_calls: Option<Counter>,
}

impl Counters {
    /// Counts from now on.
    ///
    /// # Errors
    /// If the kernel does not count.
    pub fn open(thread: i32) -> Result<Self> {
        Ok(Self {
            cpu: Counter::cpu_time(thread)?,
            system_calls: Counter::system_calls(thread),
        })
    }

    /// What has been spent, and `time` on the clock.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn read(&self, time: Duration) -> Result<Spent> {
        /// Nanoseconds in a millisecond.
        const MILLISECOND: f64 = 1e6;
        let system_calls = self.system_calls.as_ref();
        Ok(Spent {
            time: time.as_nanos() as f64 / MILLISECOND,
            cpu: self.cpu.read()? as f64 / MILLISECOND,
            memory: None,
            system_calls: system_calls.map(Counter::read).transpose()?,
        })
    }
}

/// CPU time of a process and its threads so far, in nanoseconds (`/proc/PID/task/*/schedstat`, first field).
///
/// # Errors
/// If there is no such process.
pub fn cpu_time(pid: u32) -> Result<u64> {
    let failed = |error| Error::Control(format!("CPU time of {pid}: {error}"));
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).map_err(failed)? {
        let path = thread.map_err(failed)?.path().join("schedstat");
        // A thread may have ended meanwhile.
        let text = fs::read_to_string(path).unwrap_or_default();
        let first = text.split_whitespace().next();
        sum += first.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}

/// The most memory that a process has had since its start or [`forget_peak`], in KiB.
///
/// # Errors
/// If there is no such process.
pub fn peak_memory(pid: u32) -> Result<f64> {
    memory(pid, "VmHWM:")
}

/// The memory that it has now, in KiB.
///
/// # Errors
/// If there is no such process.
pub fn resting_memory(pid: u32) -> Result<f64> {
    memory(pid, "VmRSS:")
}

/// Makes what it has now the most that it has had.
///
/// # Errors
/// If there is no such process.
pub fn forget_peak(pid: u32) -> Result<()> {
    /// Documentation/filesystems/proc.rst, `clear_refs`.
    const PEAK: &str = "5";
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, PEAK).map_err(|error| Error::Control(format!("{path}: {error}")))
}

fn memory(pid: u32, name: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    kibibytes.ok_or_else(|| Error::Control(format!("{path} has no {name} in kB")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_spent_time() {
        assert!(cpu_time(std::process::id()).unwrap() > 0);
    }

    #[test]
    fn a_process_has_had_memory() {
        let pid = std::process::id();
        let resting = resting_memory(pid).unwrap();
        assert!(resting > 100.0 && peak_memory(pid).unwrap() >= resting);
        assert!(peak_memory(u32::MAX).is_err());
    }
}

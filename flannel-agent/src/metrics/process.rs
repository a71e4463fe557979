//! The process as the kernel sees it, under the names that all Prometheus clients give it.

use std::{
    fs,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// When the process began to work.
static STARTED: OnceLock<SystemTime> = OnceLock::new();

/// Takes note that the process begins now.
pub fn started() {
    STARTED.get_or_init(SystemTime::now);
}

/// What a scrape shows of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// User and system time.
    pub cpu: Duration,
    /// Resident memory in bytes.
    pub resident: u64,
    /// Open file descriptors.
    pub open_files: u64,
    /// Seconds since the epoch at which it began.
    pub start: f64,
}

impl Process {
    /// Reads `/proc/self`; what cannot be read is zero.
    pub fn read() -> Self {
        let usage = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let ticks = cpu_ticks(&usage).unwrap_or_default();
        let memory = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages = resident_pages(&memory).unwrap_or_default();
        let since_epoch = STARTED
            .get()
            .and_then(|start| start.duration_since(UNIX_EPOCH).ok());
        Self {
            cpu: Duration::from_secs_f64(
                ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
            ),
            resident: pages * rustix::param::page_size() as u64,
            open_files: fs::read_dir("/proc/self/fd").map_or(0, |list| list.count() as u64),
            start: since_epoch.map_or(0.0, |time| time.as_secs_f64()),
        }
    }
}

/// Fields 14 and 15 of `/proc/PID/stat` (proc_pid_stat(5)); the second field, a name in brackets, may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// The second field of `/proc/PID/statm`.
fn resident_pages(statm: &str) -> Option<u64> {
    statm.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 900 1000 200";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("7 (a) S 1"), None);
        assert_eq!(resident_pages("1000 200 30 4 0 5 0\n"), Some(200));
    }

    #[test]
    fn this_process_has_memory_and_files() {
        started();
        let process = Process::read();
        assert!(process.resident > 0 && process.open_files > 0 && process.start > 0.0);
    }
}

//! Process identity: a pid alone may be reused, pid and start time together are not.

use std::{fmt, fs, os::fd::OwnedFd, str::FromStr, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::error::{Error, IoContext, Result};

/// How long a killed process may take to go.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// A process, by pid and start time in clock ticks after boot (`proc_pid_stat(5)`, field 22).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessId {
    pid: Pid,
    start_time: u64,
}

impl ProcessId {
    /// The calling process.
    pub(crate) fn own() -> Result<Self> {
        Self::of(rustix::process::getpid())
    }

    /// The process that has this pid now.
    pub(crate) fn of(pid: Pid) -> Result<Self> {
        let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
        let stat = fs::read_to_string(&path).context("read", &path)?;
        let start_time = start_time(&stat).ok_or_else(|| Error::Parse {
            what: path,
            reason: "field 22 is missing".to_owned(),
            text: stat,
        })?;
        Ok(Self { pid, start_time })
    }

    /// Whether the process still exists; a zombie does not count.
    pub(crate) fn is_alive(&self) -> bool {
        self.handle()
            .is_some_and(|handle| !has_ended(&handle, Duration::ZERO))
    }

    /// Sends SIGKILL, if the process is still the one that was recorded.
    pub(crate) fn kill(&self) {
        if let Some(handle) = self.handle() {
            pidfd_send_signal(&handle, Signal::KILL).ok();
        }
    }

    /// Waits until the process has ended.
    pub(crate) fn wait_gone(&self) -> Result<()> {
        match self.handle() {
            Some(handle) if !has_ended(&handle, KILL_LIMIT) => Err(Error::Timeout {
                what: format!("the end of killed process {}", self.pid.as_raw_nonzero()),
                waited: KILL_LIMIT,
                last: "still running".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// A handle that cannot come to mean another process: opened first, checked afterwards.
    fn handle(&self) -> Option<OwnedFd> {
        let handle = pidfd_open(self.pid, PidfdFlags::empty()).ok()?;
        (Self::of(self.pid).ok()? == *self).then_some(handle)
    }
}

/// Waits at most `limit` for a process to end; a zombie has ended.
pub(crate) fn has_ended(handle: &OwnedFd, limit: Duration) -> bool {
    let timeout = Timespec::try_from(limit).expect("limits are seconds, not centuries");
    let mut fds = [PollFd::new(handle, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&timeout)), Ok(ready) if ready > 0)
}

/// Field 22 of `/proc/<pid>/stat`. The second field, the program's name, may hold spaces and parentheses.
fn start_time(stat: &str) -> Option<u64> {
    /// The start time is the 20th field after the name.
    const AFTER_NAME: usize = 19;
    stat.rsplit_once(')')?
        .1
        .split_ascii_whitespace()
        .nth(AFTER_NAME)?
        .parse()
        .ok()
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid.as_raw_nonzero(), self.start_time)
    }
}

impl FromStr for ProcessId {
    type Err = ();

    /// Reads what `Display` wrote; further words are ignored.
    fn from_str(line: &str) -> Result<Self, ()> {
        let mut words = line.split_ascii_whitespace();
        let mut number = || words.next()?.parse::<u64>().ok();
        let pid = number()
            .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
            .ok_or(())?;
        Ok(Self {
            pid,
            start_time: number().ok_or(())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_survives_odd_program_names() {
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        let stat = format!("7 (a) b (c)) {}", fields.join(" "));
        assert_eq!(start_time(&stat), Some(22));
        assert_eq!(start_time("7 (a"), None);
    }

    #[test]
    fn own_process_round_trips_and_lives() {
        let own = ProcessId::own().unwrap();
        assert!(own.is_alive());
        assert_eq!(format!("{own} etcd").parse(), Ok(own));
        let reused = ProcessId {
            start_time: own.start_time + 1,
            ..own
        };
        assert!(!reused.is_alive(), "another start time is another process");
    }
}

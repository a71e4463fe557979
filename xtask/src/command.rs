//! Child processes: how xtask starts them, and that none outlives it.
//!
//! Every child leads a process group of its own. SIGINT, SIGTERM and SIGHUP are passed on to all of them, with all that
//! they started, and what is still there after [`GRACE`] is killed. A child is never signalled after it was reaped:
//! its process id may belong to somebody else by then.

use std::{
    fmt,
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicI32, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid},
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

/// Runs a command as root for a user who may.
pub const SUDO: &str = "sudo";

/// How long children have to clean up after a signal before they are killed.
const GRACE: Duration = Duration::from_secs(20);

/// The signal that asked xtask to end; 0 for none.
static INTERRUPT: AtomicI32 = AtomicI32::new(0);

/// Process groups that are running.
static GROUPS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// The user or the system asked xtask to end.
#[derive(Debug, Clone, Copy)]
pub struct Interrupted {
    /// Number of the signal.
    pub signal: i32,
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ended by signal {}", self.signal)
    }
}

impl std::error::Error for Interrupted {}

/// Starts to pass signals on to children. Call once, before the first child.
pub fn pass_signals_on() -> Result<()> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot install signal handlers")?;
    thread::spawn(move || {
        for signal in signals.forever() {
            INTERRUPT.store(signal, Ordering::SeqCst);
            signal_groups(Signal::from_named_raw(signal).unwrap_or(Signal::TERM));
            thread::spawn(|| {
                thread::sleep(GRACE);
                signal_groups(Signal::KILL);
            });
        }
    });
    Ok(())
}

/// Fails if a signal has asked xtask to end.
pub fn check_interrupt() -> Result<()> {
    match INTERRUPT.load(Ordering::SeqCst) {
        0 => Ok(()),
        signal => Err(Interrupted { signal }.into()),
    }
}

fn groups() -> std::sync::MutexGuard<'static, Vec<Pid>> {
    GROUPS
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn signal_groups(signal: Signal) {
    for group in groups().iter() {
        // It may have ended just now; it is not reaped while it is listed.
        let _ = kill_process_group(*group, signal);
    }
}

fn is_listed(group: Pid) -> bool {
    groups().contains(&group)
}

/// A child with its process group.
struct Running {
    child: Child,
    pid: Pid,
}

impl Running {
    fn spawn(command: &mut Command) -> Result<Self> {
        check_interrupt()?;
        // sudo's child is not ours to signal, and its password prompt needs the foreground: both are the terminal's.
        if command.get_program() != SUDO {
            command.process_group(0);
        }
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", show(command)))?;
        let pid = Pid::from_child(&child);
        groups().push(pid);
        // A signal that came between the check and the registration has not reached the child.
        if check_interrupt().is_err() {
            let _ = kill_process_group(pid, Signal::TERM);
        }
        Ok(Self { child, pid })
    }

    /// Waits for the end, takes the group off the list, and only then reaps.
    fn wait(mut self) -> Result<ExitStatus> {
        let ended = loop {
            match waitid(
                WaitId::Pid(self.pid),
                WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
            ) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        groups().retain(|pid| *pid != self.pid);
        ended.with_context(|| format!("cannot wait for process {}", self.child.id()))?;
        let status = self.child.wait().context("cannot reap a child")?;
        check_interrupt()?;
        Ok(status)
    }
}

/// Runs a command and collects its output.
pub fn output(command: &mut Command) -> Result<Output> {
    let mut running = Running::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let (out, err) = (running.child.stdout.take(), running.child.stderr.take());
    // Both at once: a child blocks on the pipe that nobody reads.
    let err = thread::spawn(move || read_all(err));
    let stdout = read_all(out);
    let stderr = err.join().unwrap_or_default();
    Ok(Output {
        status: running.wait()?,
        stdout,
        stderr,
    })
}

fn read_all(pipe: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What came before a read error is still worth showing.
        let _ = pipe.read_to_end(&mut bytes);
    }
    bytes
}

/// Runs a command and hands over its standard output line by line as it comes. Standard error is xtask's own. After
/// `limit` the command is killed with all that it started.
pub fn lines(command: &mut Command, limit: Duration, line: impl FnMut(&str)) -> Result<ExitStatus> {
    lines_within(command, limit, limit, line)
}

/// As [`lines`], and the first line has to come within `first`.
pub fn lines_within(
    command: &mut Command,
    first: Duration,
    limit: Duration,
    mut line: impl FnMut(&str),
) -> Result<ExitStatus> {
    let mut running = Running::spawn(command.stdout(Stdio::piped()))?;
    let pid = running.pid;
    let (spoken, watch) = mpsc::channel::<()>();
    let start = Instant::now();
    thread::spawn(move || {
        let mut late = watch.recv_timeout(first);
        if late.is_ok() {
            late = watch.recv_timeout(limit.saturating_sub(start.elapsed()));
        }
        if late == Err(RecvTimeoutError::Timeout) && is_listed(pid) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    });
    let mut first = Some(spoken.clone());
    if let Some(stdout) = running.child.stdout.take() {
        let mut reader = BufReader::new(stdout);
        let mut buffer = Vec::new();
        while reader.read_until(b'\n', &mut buffer).unwrap_or(0) > 0 {
            if let Some(first) = first.take() {
                // Nobody listens any more if the command was too late.
                let _ = first.send(());
            }
            line(String::from_utf8_lossy(&buffer).trim_end_matches(['\n', '\r']));
            buffer.clear();
        }
    }
    let status = running.wait();
    drop((first, spoken));
    status
}

/// Runs a command that must succeed. Its output is shown only if it fails.
pub fn quiet(command: &mut Command) -> Result<()> {
    let output = output(command)?;
    if !output.status.success() {
        bail!(
            "{} failed ({}):\n{}{}",
            show(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Runs a command that must succeed and returns its standard output.
pub fn stdout(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!(
            "{} failed ({}): {}",
            show(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as one would type it.
pub fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_command_has_its_time_from_the_first_line_on() {
        let mut seen = Vec::new();
        let script = "echo one; sleep 0.3; echo two";
        let status = lines(&mut shell(script), LONG, |line| seen.push(line.to_owned())).unwrap();
        assert!(status.success(), "{status}");
        assert_eq!(seen, ["one", "two"]);
    }

    #[test]
    fn a_command_that_says_nothing_is_killed() {
        let start = Instant::now();
        let soon = Duration::from_millis(100);
        let status = lines_within(&mut shell("sleep 60"), soon, LONG, |_| ()).unwrap();
        assert!(!status.success() && start.elapsed() < LONG, "{status}");
        let status =
            lines_within(&mut shell("echo one; sleep 60"), soon, 3 * soon, |_| ()).unwrap();
        assert!(!status.success() && start.elapsed() < LONG, "{status}");
    }
}

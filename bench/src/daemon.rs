//! Programs that run until they are stopped: etcd and the agents.
//!
//! A daemon is recorded in the lab's directory, and the kernel kills it when the thread that started it ends. That
//! thread therefore lives as long as the process and does nothing else.

use std::{
    fs::{self, File},
    os::{
        fd::OwnedFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{LazyLock, Mutex, mpsc},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, pidfd_send_signal};

use crate::{
    error::{Error, IoContext, Result},
    netns::Netns,
    proc::{self, ProcessId},
    process::{self, Lifetime},
    signals,
    state::{self, LabId},
};

/// How long a daemon may take to follow SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How much of a daemon's log an error shows, in lines.
const LOG_LINES: usize = 20;

/// A long-running program of a lab; killed when the handle goes, unless it is to outlive this process.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    pid: Pid,
    log: PathBuf,
    lifetime: Lifetime,
    handle: OwnedFd,
    child: Mutex<Child>,
}

impl Daemon {
    /// Starts `command` in `netns`, with its output appended to `log`, and records it in the lab's directory.
    ///
    /// # Errors
    /// If it cannot be started or recorded.
    pub fn spawn(
        lab: LabId,
        name: &str,
        netns: &Netns,
        mut command: Command,
        log: &Path,
        lifetime: Lifetime,
    ) -> Result<Self> {
        let output = File::options()
            .append(true)
            .create(true)
            .open(log)
            .context("open", log.display())?;
        let errors = output.try_clone().context("duplicate", log.display())?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        // A group of its own: Ctrl-C in the terminal is for the lab's owner alone.
        command.process_group(0);
        process::prepare(&mut command, Some(netns), lifetime == Lifetime::Bound);
        let description = process::describe(&command);

        let _permit = signals::permit();
        let child = spawn_on_lasting_thread(command).context("start", &description)?;
        let handle = process::handle_of(&child)?;
        let pid = Pid::from_child(&child);
        let daemon = Self {
            name: name.to_owned(),
            pid,
            log: log.to_owned(),
            lifetime,
            handle,
            child: Mutex::new(child),
        };
        state::record_process(lab, ProcessId::of(pid)?, name)?;
        Ok(daemon)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Fails if the program has ended, with the end of its log.
    ///
    /// # Errors
    /// [`Error::Ended`].
    pub fn check_running(&self) -> Result<()> {
        if !proc::has_ended(&self.handle, Duration::ZERO) {
            return Ok(());
        }
        let status = self
            .child()
            .wait()
            .map_or_else(|error| error.to_string(), |status| status.to_string());
        Err(Error::Ended {
            name: self.name.clone(),
            status,
            output: last_lines(&self.log),
        })
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If the program has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        pidfd_send_signal(&self.handle, signal).context("signal", &self.name)
    }

    /// Waits for the program's end and returns how it ended.
    ///
    /// # Errors
    /// [`Error::Timeout`] if it still runs after `limit`.
    pub fn wait(&self, limit: Duration) -> Result<ExitStatus> {
        if !proc::has_ended(&self.handle, limit) {
            return Err(Error::Timeout {
                what: format!("the end of {}", self.name),
                waited: limit,
                last: format!("still running, its last output:\n{}", last_lines(&self.log)),
            });
        }
        self.child().wait().context("wait for", &self.name)
    }

    /// Asks the program to end with SIGTERM and waits for it.
    ///
    /// # Errors
    /// If it had ended already, or does not within 10 s.
    pub fn stop(self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(STOP_LIMIT)
    }

    /// Kills the program with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// If it had ended already.
    pub fn kill(self) -> Result<()> {
        self.signal(Signal::KILL)?;
        let status = self.wait(STOP_LIMIT)?;
        match status.signal() {
            Some(_) => Ok(()),
            None => Err(Error::Ended {
                name: self.name.clone(),
                status: status.to_string(),
                output: last_lines(&self.log),
            }),
        }
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::Bound {
            let mut child = self.child();
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// The last lines of a log file.
pub(crate) fn last_lines(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

/// Name of the thread that starts all daemons. Whoever counts what it and its children do counts what daemons do from
/// their first instruction on.
pub const STARTER: &str = "daemon-starter";

type Job = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Starts a daemon from a thread that ends with the process only.
fn spawn_on_lasting_thread(command: Command) -> std::io::Result<Child> {
    static JOBS: LazyLock<Mutex<mpsc::Sender<Job>>> = LazyLock::new(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        let serve = move || {
            jobs.iter()
                .for_each(|(mut command, reply)| drop(reply.send(command.spawn())))
        };
        thread::Builder::new()
            .name(STARTER.to_owned())
            .spawn(serve)
            .expect("a process can start a thread");
        Mutex::new(sender)
    });
    let (reply, child) = mpsc::channel();
    let starter = JOBS
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .clone();
    starter
        .send((command, reply))
        .expect("the starter never ends");
    child.recv().expect("the starter answers every job")
}

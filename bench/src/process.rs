//! Programs in namespaces: short ones that are waited for, and daemons that run until they are stopped.
//!
//! A child enters its namespace between fork and exec, so it keeps the mount namespace and sees the BPF file system.
//! It is killed by the kernel when the thread that started it ends (PR_SET_PDEATHSIG). Daemons are therefore started
//! by one thread that lives as long as the process, and are recorded in the lab's directory besides.

use std::{
    fs::{self, File},
    io::{Read, Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::{LazyLock, Mutex, mpsc},
    thread,
    time::Duration,
};

use rustix::{
    fs::MemfdFlags,
    process::{Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, pidfd_send_signal},
};

use crate::{
    error::{Error, IoContext, Result},
    netns::{self, Netns},
    proc::{self, ProcessId},
    signals,
    state::{self, LabId},
};

/// How long a helper program may run.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// How long a daemon may take to follow SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How much of a daemon's log an error shows, in lines.
const LOG_LINES: usize = 20;

/// Runs `program` with `arguments` in a namespace, or in that of the caller, and returns its standard output.
///
/// # Errors
/// If it cannot be started, fails, or runs for more than 30 s.
pub fn run(netns: Option<&Netns>, program: &str, arguments: &[&str]) -> Result<String> {
    run_command(netns, Command::new(program).args(arguments), "")
}

/// As [`run`], with text for the program's standard input.
///
/// # Errors
/// As [`run`].
pub fn run_with_input(
    netns: Option<&Netns>,
    program: &str,
    arguments: &[&str],
    input: &str,
) -> Result<String> {
    run_command(netns, Command::new(program).args(arguments), input)
}

/// As [`run_with_input`], for commands that need an environment or the like.
///
/// # Errors
/// As [`run`].
pub fn run_command(netns: Option<&Netns>, command: &mut Command, input: &str) -> Result<String> {
    run_limited(netns, command, input, COMMAND_LIMIT)
}

/// As [`run_command`], with a time limit of its own.
///
/// # Errors
/// As [`run`].
pub fn run_limited(
    netns: Option<&Netns>,
    command: &mut Command,
    input: &str,
    limit: Duration,
) -> Result<String> {
    let description = describe(command);
    // Files in memory instead of pipes: no thread is needed to keep a pipe from filling up.
    let mut stdin = memory_file()?;
    stdin
        .write_all(input.as_bytes())
        .context("write input of", &description)?;
    stdin.rewind().context("rewind input of", &description)?;
    let (mut stdout, mut stderr) = (memory_file()?, memory_file()?);
    let clone = |file: &File| {
        file.try_clone()
            .context("duplicate output of", &description)
    };
    command
        .stdin(stdin)
        .stdout(clone(&stdout)?)
        .stderr(clone(&stderr)?);
    prepare(command, netns, true);

    let mut child = {
        let _permit = signals::permit();
        command.spawn().context("start", &description)?
    };
    let handle = handle_of(&child)?;
    if !proc::has_ended(&handle, limit) {
        child.kill().ok();
        child.wait().ok();
        let last = format!(
            "still running\n{}{}",
            text_of(&mut stderr),
            text_of(&mut stdout)
        );
        return Err(Error::Timeout {
            what: description,
            waited: limit,
            last,
        });
    }
    let status = child.wait().context("wait for", &description)?;
    let output = text_of(&mut stdout);
    if status.success() {
        return Ok(output);
    }
    Err(Error::Command {
        command: description,
        status,
        output: text_of(&mut stderr) + &output,
    })
}

/// A program that helps for the length of a function, such as a server; killed when the handle goes.
#[derive(Debug)]
pub struct Helper(Child);

impl Helper {
    /// Starts `command` in a namespace. The kernel kills it when the calling thread ends.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(netns: &Netns, mut command: Command) -> Result<Self> {
        prepare(&mut command, Some(netns), true);
        let description = describe(&command);
        let _permit = signals::permit();
        command.spawn().map(Self).context("start", description)
    }

    /// Its standard output, if a pipe was asked for and not taken yet.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.0.stdout.take()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Whether what a process makes, daemons and namespaces, goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// It goes with its handle. A daemon is killed by the kernel at the latest when this process ends.
    Bound,
    /// It stays until the lab is removed.
    Outlives,
}

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
        prepare(&mut command, Some(netns), lifetime == Lifetime::Bound);
        let description = describe(&command);

        let _permit = signals::permit();
        let child = spawn_on_lasting_thread(command).context("start", &description)?;
        let handle = handle_of(&child)?;
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

/// Makes the child enter the namespace and, if so wanted, die with the thread that starts it.
fn prepare(command: &mut Command, netns: Option<&Netns>, dies_with_thread: bool) {
    let netns = netns.cloned();
    let parent = getpid();
    let before_exec = move || -> std::io::Result<()> {
        if let Some(netns) = &netns {
            netns::enter(netns.as_fd())?;
        }
        if dies_with_thread {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before that call.
            if getppid() != Some(parent) {
                return Err(rustix::io::Errno::SRCH.into());
            }
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec. It makes system calls only: no allocation, no lock.
    unsafe { command.pre_exec(before_exec) };
}

type Job = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Starts a daemon from a thread that ends with the process only.
fn spawn_on_lasting_thread(command: Command) -> std::io::Result<Child> {
    static STARTER: LazyLock<Mutex<mpsc::Sender<Job>>> = LazyLock::new(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        let serve = move || {
            jobs.iter()
                .for_each(|(mut command, reply)| drop(reply.send(command.spawn())))
        };
        thread::Builder::new()
            .name("daemon-starter".to_owned())
            .spawn(serve)
            .expect("a process can start a thread");
        Mutex::new(sender)
    });
    let (reply, child) = mpsc::channel();
    let starter = STARTER
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .clone();
    starter
        .send((command, reply))
        .expect("the starter never ends");
    child.recv().expect("the starter answers every job")
}

fn handle_of(child: &Child) -> Result<OwnedFd> {
    pidfd_open(Pid::from_child(child), PidfdFlags::empty())
        .context("open handle of process", child.id())
}

fn memory_file() -> Result<File> {
    rustix::fs::memfd_create("lab", MemfdFlags::CLOEXEC)
        .map(File::from)
        .context("make", "memory file")
}

fn text_of(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .ok();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

//! Programs in namespaces that are waited for. Those that go on running are [`crate::daemon`]s.
//!
//! A child enters its namespace between fork and exec, so it keeps the mount namespace and sees the BPF file system.
//! It is killed by the kernel when the thread that started it ends (PR_SET_PDEATHSIG).

use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, ChildStdout, Command},
    time::Duration,
};

use rustix::{
    fs::MemfdFlags,
    process::{Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open},
};

use crate::{
    error::{Error, IoContext, Result},
    netns::{self, Netns},
    proc, signals, wait,
};

/// How long a helper program may run.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);

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
    run_limited(netns, command, input, wait::patient(COMMAND_LIMIT))
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

/// Makes the child enter the namespace and, if so wanted, die with the thread that starts it.
pub(crate) fn prepare(command: &mut Command, netns: Option<&Netns>, dies_with_thread: bool) {
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

pub(crate) fn handle_of(child: &Child) -> Result<OwnedFd> {
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

pub(crate) fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

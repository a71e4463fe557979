//! The agent of a node, by its status socket: its counters, another mode as `flannel-agent fast-path` asks for it, and
//! the mode that was found, given back however this process ends.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use lab::status::Status;

use super::protocol::{FastPath, Mode};

/// The agent answers within milliseconds; one that does not is stuck.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long the agent may take until it has a mode, and BPF carries packets.
const SETTLE: Duration = Duration::from_secs(3);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Why the agent could not be asked, or does not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers.
    #[error(
        "--agent-socket = {}: {source}: give the --status-socket of the agent of this node, and the right to use it (root)",
        socket.display()
    )]
    Socket {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The answer is no status.
    #[error("--agent-socket = {}: the answer is not understood ({reason}): is the agent another version?", socket.display())]
    Answer {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The agent keeps another mode.
    #[error(
        "the agent's fast path is still {found:?} instead of {wanted}: has it finished starting? See `flannel-agent status`"
    )]
    Kept {
        /// What was asked for.
        wanted: Mode,
        /// What it has.
        found: String,
    },
    /// It has the mode, but packets take the kernel's path.
    #[error("the agent's fast path is {mode}, but not active: {reason}")]
    Inactive {
        /// What was asked for.
        mode: Mode,
        /// What the agent says, and what can be done.
        reason: String,
    },
    /// The process is about to end.
    #[error("interrupted")]
    Ending,
}

/// The agent of this node.
#[derive(Debug)]
pub struct Agent {
    socket: PathBuf,
    state: Mutex<State>,
}

/// Locked for as long as a mode is asked for, so that the last request is the restoration.
#[derive(Debug, Default)]
struct State {
    /// What it had before it was first given another one.
    found: Option<Mode>,
    /// Whether no other mode may be asked for any more.
    ending: bool,
}

impl Agent {
    /// The agent that answers on a socket; it is not asked anything yet.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            state: Mutex::default(),
        }
    }

    /// The mode that it has.
    ///
    /// # Errors
    /// If it does not answer, or has a mode of another version.
    pub fn mode(&self) -> Result<Mode, Error> {
        self.mode_of(&self.ask("")?)
    }

    /// What its fast path has counted.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn fast_path(&self) -> Result<FastPath, Error> {
        let status = self.ask("")?.fast_path;
        Ok(FastPath {
            counters: status.counters,
            reason: status.reason,
        })
    }

    /// Gives it another mode and waits until packets take that path. The mode that it had before the first such call is
    /// what [`Agent::restore`] gives back.
    ///
    /// # Errors
    /// If it does not answer, or does not do so within three seconds.
    pub fn set(&self, wanted: Mode) -> Result<(), Error> {
        let mut state = self.state();
        if state.ending {
            return Err(Error::Ending);
        }
        if state.found.is_none() {
            state.found = Some(self.mode()?);
        }
        let deadline = Instant::now() + SETTLE;
        let mut status = self.request(wanted, deadline)?;
        // The rule that marks, if flows are attested by one, takes a moment to be written.
        while wanted != Mode::Off && !status.fast_path.active {
            if Instant::now() > deadline {
                let reason = [status.fast_path.reason, status.fast_path.remedy];
                let reason: Vec<String> = reason.into_iter().flatten().collect();
                return Err(Error::Inactive {
                    mode: wanted,
                    reason: reason.join("; "),
                });
            }
            sleep(PAUSE);
            status = self.ask("")?;
        }
        Ok(())
    }

    /// Gives back the mode that was found, if another one was asked for; which that was.
    ///
    /// # Errors
    /// If it does not answer or keeps another mode. It is then tried again by the next call.
    pub fn restore(&self) -> Result<Option<Mode>, Error> {
        let mut state = self.state();
        let Some(found) = state.found else {
            return Ok(None);
        };
        // Not whether packets take that path: it may not have been active before.
        self.request(found, Instant::now() + SETTLE)?;
        state.found = None;
        Ok(Some(found))
    }

    /// As [`Agent::restore`], for the end of the process: no other mode can be asked for afterwards. A failure is
    /// printed, with what to do about it.
    pub fn restore_and_end(&self) {
        self.state().ending = true;
        self.restore_or_say();
    }

    /// As [`Agent::restore`]; a failure is printed, with what to do about it.
    pub fn restore_or_say(&self) {
        if let Err(error) = self.restore() {
            let found = self.state().found.map_or("flow", Mode::name);
            eprintln!(
                "error: {error}; the agent had the mode {found}: `flannel-agent fast-path {found}` gives it back"
            );
        }
    }

    /// Asks for a mode, again and again: an agent that is busy answers with what it had. The status with that mode.
    fn request(&self, wanted: Mode, deadline: Instant) -> Result<Status, Error> {
        // What `flannel-agent fast-path` sends.
        let request = format!("fast-path {wanted}\n");
        loop {
            let status = self.ask(&request)?;
            if status.fast_path.mode == wanted.name() {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(Error::Kept {
                    wanted,
                    found: status.fast_path.mode,
                });
            }
            sleep(PAUSE);
        }
    }

    fn ask(&self, request: &str) -> Result<Status, Error> {
        let exchange = || -> io::Result<String> {
            let mut stream = UnixStream::connect(&self.socket)?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.write_all(request.as_bytes())?;
            stream.shutdown(Shutdown::Write)?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        let text = exchange().map_err(|source| Error::Socket {
            socket: self.socket.clone(),
            source,
        })?;
        serde_json::from_str(&text).map_err(|error| self.odd(error.to_string()))
    }

    fn mode_of(&self, status: &Status) -> Result<Mode, Error> {
        let name = &status.fast_path.mode;
        Mode::of(name).ok_or_else(|| self.odd(format!("the unknown mode {name:?}")))
    }

    fn odd(&self, reason: String) -> Error {
        Error::Answer {
            socket: self.socket.clone(),
            reason,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives an agent its mode back when it goes, unless that has been done.
#[derive(Debug)]
pub struct Restoring<'a>(pub &'a Agent);

impl Drop for Restoring<'_> {
    fn drop(&mut self) {
        self.0.restore_or_say();
    }
}

#[cfg(test)]
#[path = "tests/agent.rs"]
mod tests;

//! Our agent on a node: started and stopped as an operator or a crash would, observed through its status socket.

use std::{
    fs,
    io::{self, Read},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    cluster::Settings,
    daemon::{self, Daemon},
    error::{Error, IoContext, Result},
    lease_store::AgentFlags,
    netns::Netns,
    process::{self, Lifetime},
    state::LabId,
    status::Status,
    wait,
};

/// How long the agent may take to become ready.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// How long the status socket may take to answer.
const STATUS_LIMIT: Duration = Duration::from_secs(2);

/// How an agent is run.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The `flannel-agent` binary.
    pub program: PathBuf,
    /// `--iface`; empty for none.
    pub interface: String,
    /// `--ip-masq`.
    pub ip_masq: bool,
    /// `--fast-path`: `off`, `subnet` or `flow`.
    pub fast_path: String,
    /// Further arguments, after the lab's own.
    pub arguments: Vec<String>,
    /// Further environment variables.
    pub environment: Vec<(String, String)>,
}

impl AgentConfig {
    /// The given binary with masquerading, as in flannel's manifests, and without fast path.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            interface: "eth0".to_owned(),
            ip_masq: true,
            fast_path: "off".to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// The same with another `--fast-path`.
    pub fn with_fast_path(self, mode: impl Into<String>) -> Self {
        Self {
            fast_path: mode.into(),
            ..self
        }
    }
}

/// The agent of one node, running or not.
#[derive(Debug)]
pub struct Agent {
    lab: LabId,
    name: String,
    netns: Netns,
    directory: PathBuf,
    leases: AgentFlags,
    lifetime: Lifetime,
    config: Mutex<AgentConfig>,
    daemon: Mutex<Option<Daemon>>,
}

impl Agent {
    pub(crate) fn new(
        settings: &Settings,
        node: &str,
        netns: &Netns,
        directory: &Path,
        config: AgentConfig,
    ) -> Result<Self> {
        let leases = settings
            .store
            .agent_flags(node, directory, &settings.network)?;
        Ok(Self {
            lab: settings.lab,
            name: format!("agent {node}"),
            netns: netns.clone(),
            directory: directory.to_owned(),
            leases,
            lifetime: settings.lifetime,
            config: Mutex::new(config),
            daemon: Mutex::new(None),
        })
    }

    /// An agent whose arguments say where leases are kept.
    pub(crate) fn elsewhere(
        lab: LabId,
        node: &str,
        netns: &Netns,
        directory: &Path,
        lifetime: Lifetime,
        config: AgentConfig,
    ) -> Self {
        Self {
            lab,
            name: format!("agent {node}"),
            netns: netns.clone(),
            directory: directory.to_owned(),
            leases: AgentFlags::default(),
            lifetime,
            config: Mutex::new(config),
            daemon: Mutex::new(None),
        }
    }

    /// Changes how the agent is started from the next start on.
    pub fn configure(&self, change: impl FnOnce(&mut AgentConfig)) {
        change(
            &mut self
                .config
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
    }

    /// Starts the agent without waiting for it.
    ///
    /// # Errors
    /// If it runs already or cannot be started.
    pub fn start(&self) -> Result<()> {
        let mut daemon = self.daemon();
        if daemon
            .as_ref()
            .is_some_and(|daemon| daemon.check_running().is_ok())
        {
            return Err(Error::Unsupported(format!("{} runs already", self.name)));
        }
        *daemon = Some(Daemon::spawn(
            self.lab,
            &self.name,
            &self.netns,
            self.command(),
            &self.log_path(),
            self.lifetime,
        )?);
        Ok(())
    }

    fn command(&self) -> Command {
        let config = self
            .config
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut command = Command::new(&config.program);
        command
            .arg("run")
            .args(&self.leases.arguments)
            .args((!config.interface.is_empty()).then(|| format!("--iface={}", config.interface)))
            .arg(format!("--ip-masq={}", config.ip_masq))
            .arg(format!("--subnet-file={}", self.subnet_file().display()))
            .arg(format!("--status-socket={}", self.socket().display()))
            .arg(format!("--pin-dir={}", self.pin_directory().display()))
            .arg(format!("--fast-path={}", config.fast_path))
            .args(&config.arguments)
            .envs(
                self.leases
                    .environment
                    .iter()
                    .map(|(name, value)| (name, value)),
            )
            .envs(config.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs another command of the agent's binary on this node, such as `cleanup`, and returns what it prints.
    ///
    /// # Errors
    /// If the command fails.
    pub fn command_output(&self, arguments: &[&str]) -> Result<String> {
        let program = self
            .config
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .program
            .clone();
        process::run_command(Some(&self.netns), Command::new(program).args(arguments), "")
    }

    /// Waits until `subnet.env` exists and this very process reports itself ready.
    ///
    /// # Errors
    /// If the agent ends, with its last output, or is not ready within 20 s.
    pub fn wait_ready(&self) -> Result<Status> {
        self.wait_status("readiness", |status| status.ready)
    }

    /// Waits until the running process's status fulfils `condition`.
    ///
    /// # Errors
    /// If the agent ends, or the condition is not fulfilled within 20 s.
    pub fn wait_status(
        &self,
        what: &str,
        mut condition: impl FnMut(&Status) -> bool,
    ) -> Result<Status> {
        wait::until(&format!("{what} of {}", self.name), READY_LIMIT, || {
            let pid = {
                let daemon = self.daemon();
                let daemon = daemon.as_ref().ok_or_else(|| self.not_running())?;
                daemon.check_running()?;
                daemon.pid()
            };
            if !self.subnet_file().exists() {
                return Ok(Err("subnet.env is not there yet".to_owned()));
            }
            Ok(match self.status() {
                Ok(status) if status.pid == pid && condition(&status) => Ok(status),
                Ok(status) => Err(format!("{status:?}")),
                Err(error) => Err(error.to_string()),
            })
        })
    }

    /// What the agent says about itself now.
    ///
    /// # Errors
    /// If it does not answer, or with something else than a status.
    pub fn status(&self) -> Result<Status> {
        let text = self
            .read_socket()
            .context("read status from", self.socket().display())?;
        serde_json::from_str(&text).map_err(|error| Error::Parse {
            what: format!("status of {}", self.name),
            reason: error.to_string(),
            text,
        })
    }

    fn read_socket(&self) -> io::Result<String> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.shutdown(std::net::Shutdown::Write)?; // there is no request to wait for
        stream.set_read_timeout(Some(wait::patient(STATUS_LIMIT)))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Ends the agent with SIGTERM.
    ///
    /// # Errors
    /// If it does not run, does not end in time, or does not end with success.
    pub fn stop(&self) -> Result<()> {
        let status = self.take()?.stop()?;
        if status.success() {
            return Ok(());
        }
        Err(Error::Ended {
            name: self.name.clone(),
            status: status.to_string(),
            output: daemon::last_lines(&self.log_path()),
        })
    }

    /// Kills the agent with SIGKILL.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&self) -> Result<()> {
        self.take()?.kill()
    }

    /// Ends the agent with SIGTERM, starts it again and waits until it is ready.
    ///
    /// # Errors
    /// Those of [`Agent::stop`], [`Agent::start`] and [`Agent::wait_ready`].
    pub fn restart(&self) -> Result<Status> {
        self.stop()?;
        self.start()?;
        self.wait_ready()
    }

    /// Sends a signal, such as SIGSTOP to make the agent hang.
    ///
    /// # Errors
    /// If the agent does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.daemon()
            .as_ref()
            .ok_or_else(|| self.not_running())?
            .signal(signal)
    }

    /// Waits for the agent to end by itself and returns its exit status (none if a signal ended it).
    ///
    /// # Errors
    /// If it does not run, or still does after `limit`.
    pub fn wait_end(&self, limit: Duration) -> Result<Option<i32>> {
        let daemon = self.take()?;
        daemon.wait(limit).map(|status| status.code())
    }

    /// Fails if the agent does not run (any more).
    ///
    /// # Errors
    /// With its last output.
    pub fn check_running(&self) -> Result<()> {
        self.daemon()
            .as_ref()
            .ok_or_else(|| self.not_running())?
            .check_running()
    }

    /// The process id of the running agent.
    ///
    /// # Errors
    /// If it was not started.
    pub fn pid(&self) -> Result<u32> {
        let daemon = self.daemon();
        let daemon = daemon.as_ref().ok_or_else(|| self.not_running())?;
        Ok(daemon.pid())
    }

    /// All that the agent has printed, over all its runs.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// The file that holds it.
    pub fn log_path(&self) -> PathBuf {
        self.directory.join("agent.log")
    }

    /// `--subnet-file`.
    pub fn subnet_file(&self) -> PathBuf {
        self.directory.join("subnet.env")
    }

    /// `--status-socket`.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }

    /// `--pin-dir`.
    pub fn pin_directory(&self) -> PathBuf {
        self.lab
            .pin_directory()
            .join(self.directory.file_name().unwrap_or_default())
    }

    fn take(&self) -> Result<Daemon> {
        self.daemon().take().ok_or_else(|| self.not_running())
    }

    fn not_running(&self) -> Error {
        Error::Unsupported(format!("{} does not run", self.name))
    }

    fn daemon(&self) -> std::sync::MutexGuard<'_, Option<Daemon>> {
        self.daemon
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

//! The cluster's etcd: one real server in the switch's namespace, spoken to through `etcdctl` there.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    path::PathBuf,
    process::Command,
    sync::Mutex,
    time::Duration,
};

use crate::{
    daemon::Daemon,
    error::{Error, IoContext, Result},
    lease::Lease,
    netns::Netns,
    process::{self, Lifetime},
    state::LabId,
    wait,
};

/// The port that clients use.
pub const PORT: u16 = 2379;
/// Upstream's default key prefix.
pub const PREFIX: &str = "/coreos.com/network";

/// How long the server may take to serve; it needs a fraction of a second.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// How long one health request may take.
const HEALTH_LIMIT: Duration = Duration::from_millis(500);

/// The server and its clients' command line.
#[derive(Debug)]
pub struct Etcd {
    lab: LabId,
    netns: Netns,
    address: Ipv4Addr,
    directory: PathBuf,
    lifetime: Lifetime,
    daemon: Mutex<Option<Daemon>>,
}

impl Etcd {
    pub(crate) fn new(lab: LabId, netns: Netns, address: Ipv4Addr, lifetime: Lifetime) -> Self {
        let directory = lab.directory().join("etcd");
        Self {
            lab,
            netns,
            address,
            directory,
            lifetime,
            daemon: Mutex::new(None),
        }
    }

    /// The URL for `--etcd-endpoints`.
    pub fn endpoint(&self) -> String {
        format!("http://{}:{PORT}", self.address)
    }

    /// Starts the server with the data that it has, and waits until it serves.
    ///
    /// # Errors
    /// If it runs already, ends, or does not serve within 20 s.
    pub fn start(&self) -> Result<()> {
        self.spawn()?;
        self.wait_ready()
    }

    pub(crate) fn spawn(&self) -> Result<()> {
        let mut daemon = self.daemon();
        if daemon.is_some() {
            return Err(Error::Unsupported("etcd runs already".to_owned()));
        }
        let data = self.directory.join("data");
        fs::create_dir_all(&data).context("create", data.display())?;
        let mut command = Command::new("etcd");
        command
            .arg(format!("--data-dir={}", data.display()))
            .arg(format!("--listen-client-urls={}", self.endpoint()))
            .arg(format!("--advertise-client-urls={}", self.endpoint()))
            // The peer URL is inside a namespace that only this lab uses.
            .arg("--listen-peer-urls=http://127.0.0.1:2380")
            .args(["--logger=zap", "--log-level=warn"]);
        let log = self.directory.join("log");
        *daemon = Some(Daemon::spawn(
            self.lab,
            "etcd",
            &self.netns,
            command,
            &log,
            self.lifetime,
        )?);
        Ok(())
    }

    pub(crate) fn wait_ready(&self) -> Result<()> {
        wait::until("etcd", READY_LIMIT, || {
            if let Some(daemon) = &*self.daemon() {
                daemon.check_running()?;
            }
            self.netns.run(|| self.health())
        })
    }

    fn health(&self) -> Result<(), String> {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(
                &SocketAddrV4::new(self.address, PORT).into(),
                HEALTH_LIMIT,
            )?;
            stream.set_read_timeout(Some(HEALTH_LIMIT))?;
            stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        match ask() {
            Ok(answer) if answer.contains(r#""health":"true""#) => Ok(()),
            Ok(answer) => Err(answer),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Ends the server with SIGTERM; its data stays.
    ///
    /// # Errors
    /// If it does not run or does not end.
    pub fn stop(&self) -> Result<()> {
        self.take()?.stop().map(drop)
    }

    /// Kills the server with SIGKILL; its data stays.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&self) -> Result<()> {
        self.take()?.kill()
    }

    /// Runs `etcdctl` (API 3) with `arguments` and returns what it prints.
    ///
    /// # Errors
    /// If the command fails.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        self.ctl_with_input(arguments, "")
    }

    /// As [`Etcd::ctl`], with text for standard input (`txn`).
    ///
    /// # Errors
    /// If the command fails.
    pub fn ctl_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .arg("--endpoints")
            .arg(self.endpoint())
            .args(arguments);
        process::run_command(Some(&self.netns), &mut command, input)
    }

    /// Writes a key.
    ///
    /// # Errors
    /// If the command fails.
    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        // After `--`, a value may begin with a dash.
        self.ctl(&["put", "--", key, value]).map(drop)
    }

    /// Deletes a key; whether it existed does not matter.
    ///
    /// # Errors
    /// If the command fails.
    pub fn delete(&self, key: &str) -> Result<()> {
        self.ctl(&["del", "--", key]).map(drop)
    }

    /// All keys that begin with `prefix`, with their values. Values must be single lines, as flannel's are.
    ///
    /// # Errors
    /// If the command fails.
    pub fn get_prefix(&self, prefix: &str) -> Result<Vec<(String, String)>> {
        let output = self.ctl(&["get", "--prefix", "--", prefix])?;
        let lines: Vec<_> = output.lines().collect();
        Ok(lines
            .chunks_exact(2)
            .map(|pair| (pair[0].to_owned(), pair[1].to_owned()))
            .collect())
    }

    /// Writes the network config.
    ///
    /// # Errors
    /// If the command fails.
    pub fn put_config(&self, json: &str) -> Result<()> {
        self.put(&format!("{PREFIX}/config"), json)
    }

    /// All leases.
    ///
    /// # Errors
    /// If one cannot be parsed.
    pub fn leases(&self) -> Result<Vec<Lease>> {
        let pairs = self.get_prefix(&format!("{PREFIX}/subnets/"))?;
        pairs
            .iter()
            .map(|(key, value)| Lease::parse(key, value))
            .collect()
    }

    fn take(&self) -> Result<Daemon> {
        self.daemon()
            .take()
            .ok_or_else(|| Error::Unsupported("etcd does not run".to_owned()))
    }

    fn daemon(&self) -> std::sync::MutexGuard<'_, Option<Daemon>> {
        self.daemon
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

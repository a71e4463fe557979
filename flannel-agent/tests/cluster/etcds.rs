//! More servers of etcd beside a cluster's own: with TLS, with users, or as members of one.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use lab::{Cluster, Lifetime, Netns, Segment, daemon::Daemon, etcd::PREFIX, process, state::LabId};

use rustix::process::Signal;

use crate::support::{Outcome, Setting, eventually};

/// Ports of these servers: clients', and one more for peers.
const FIRST_PORT: u16 = 12_379;
/// How long a server may take to serve.
const START_LIMIT: Duration = Duration::from_secs(20);

/// One server, running or not.
pub(crate) struct Server {
    lab: LabId,
    netns: Netns,
    name: String,
    scheme: &'static str,
    number: u16,
    directory: PathBuf,
    arguments: Vec<String>,
    ctl: Vec<String>,
    daemon: Option<Daemon>,
}

impl Server {
    /// A server that is alone unless more arguments say otherwise.
    pub(crate) fn new(
        cluster: &Cluster,
        number: u16,
        scheme: &'static str,
    ) -> anyhow::Result<Self> {
        let directory = cluster.id().directory().join(format!("etcd{number}"));
        fs::create_dir_all(&directory)?;
        Ok(Self {
            lab: cluster.id(),
            netns: cluster.switch().clone(),
            name: format!("m{number}"),
            scheme,
            number,
            directory,
            arguments: Vec::new(),
            ctl: Vec::new(),
            daemon: None,
        })
    }

    /// With more arguments for the server.
    pub(crate) fn with(mut self, arguments: &[String]) -> Self {
        self.arguments.extend_from_slice(arguments);
        self
    }

    /// With more arguments for `etcdctl`.
    pub(crate) fn with_ctl(mut self, arguments: &[String]) -> Self {
        self.ctl.extend_from_slice(arguments);
        self
    }

    fn port(&self) -> u16 {
        FIRST_PORT + 2 * self.number
    }

    /// For `--etcd-endpoints`.
    pub(crate) fn url(&self) -> String {
        let address = Segment::First.gateway();
        format!("{}://{address}:{}", self.scheme, self.port())
    }

    /// Its part of `--initial-cluster`.
    pub(crate) fn peer(&self) -> String {
        format!("{}={}", self.name, self.peer_url())
    }

    fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port() + 1)
    }

    /// Starts it without waiting for it.
    pub(crate) fn spawn(&mut self) -> Outcome {
        let mut command = Command::new("etcd");
        command
            .arg(format!("--name={}", self.name))
            .arg(format!(
                "--data-dir={}",
                self.directory.join("data").display()
            ))
            .arg(format!("--listen-client-urls={}", self.url()))
            .arg(format!("--advertise-client-urls={}", self.url()))
            .arg(format!("--listen-peer-urls={}", self.peer_url()))
            .arg(format!("--initial-advertise-peer-urls={}", self.peer_url()))
            .args(["--logger=zap", "--log-level=warn"])
            .args(&self.arguments);
        if !self
            .arguments
            .iter()
            .any(|text| text.contains("initial-cluster"))
        {
            command.arg(format!("--initial-cluster={}", self.peer()));
        }
        let log = self.directory.join("log");
        self.daemon = Some(Daemon::spawn(
            self.lab,
            &self.name,
            &self.netns,
            command,
            &log,
            Lifetime::Bound,
        )?);
        Ok(())
    }

    /// Waits until it serves.
    pub(crate) fn wait_ready(&self) -> Outcome {
        eventually("etcd", START_LIMIT, || {
            let daemon = self.daemon.as_ref().context("not started")?;
            daemon.check_running()?;
            Ok(self
                .ctl(&["endpoint", "health"])
                .map(drop)
                .map_err(|error| error.to_string()))
        })
    }

    /// Starts it and waits until it serves.
    pub(crate) fn start(&mut self) -> Outcome {
        self.spawn()?;
        self.wait_ready()
    }

    /// Kills it; its data stays.
    pub(crate) fn kill(&mut self) -> Outcome {
        let daemon = self.daemon.take().context("not started")?;
        Ok(daemon.kill()?)
    }

    /// Sends it a signal, such as SIGSTOP to make it hang.
    pub(crate) fn signal(&self, signal: Signal) -> Outcome {
        let daemon = self.daemon.as_ref().context("not started")?;
        Ok(daemon.signal(signal)?)
    }

    /// Runs `etcdctl`.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.ctl_with_input(arguments, "")
    }

    /// Runs `etcdctl` with text on its standard input.
    pub(crate) fn ctl_with_input(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.url()))
            .args(&self.ctl)
            .args(arguments);
        Ok(process::run_command(
            Some(&self.netns),
            &mut command,
            input,
        )?)
    }

    /// Writes the network config.
    pub(crate) fn put_config(&self, setting: Setting) -> Outcome {
        let key = format!("{PREFIX}/config");
        self.ctl(&["put", "--", &key, &setting.network()]).map(drop)
    }

    /// Writes a lease of another node, `10.5.<number>.0/24`.
    pub(crate) fn put_peer(&self, number: u8) -> Outcome {
        self.ctl(&["put", "--", &peer_key(number), &peer_value(number)])
            .map(drop)
    }

    /// Whether the agent of this node has its key here.
    pub(crate) fn has_lease(&self, subnet: &str) -> anyhow::Result<bool> {
        let key = format!("{PREFIX}/subnets/{}", subnet.replace('/', "-"));
        Ok(!self.ctl(&["get", "--", &key])?.is_empty())
    }
}

/// The key of another node's lease.
pub(crate) fn peer_key(number: u8) -> String {
    format!("{PREFIX}/subnets/10.5.{number}.0-24")
}

/// The value of another node's lease.
pub(crate) fn peer_value(number: u8) -> String {
    format!(
        r#"{{"PublicIP":"192.168.100.{number}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0e:de:00:00:00:{number:02x}"}}}}"#
    )
}

/// Waits until the agent knows the lease `10.5.<number>.0/24`.
pub(crate) fn knows_peer(agent: &lab::Agent, number: u8) -> Outcome {
    let subnet = format!("10.5.{number}.0/24");
    let status = agent.wait_status(&subnet, |status| {
        status.peers.iter().any(|peer| peer.subnet == subnet)
    })?;
    ensure!(status.ready, "not ready: {status:?}");
    Ok(())
}

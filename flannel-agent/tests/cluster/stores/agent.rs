//! An agent on the node of the tests, with a store of theirs, and what it makes of peers in the kernel.

use std::{
    collections::BTreeSet, fs, io::Read as _, os::unix::net::UnixStream, path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, ensure};
use lab::{Cluster, ClusterConfig, Lifetime, Node, NodeConfig, daemon::Daemon, status::Status};

use super::{
    session::FOLLOWS,
    store::{Entry, TestStore},
};
use crate::support::{AGENT, Outcome, eventually, shell, with_unready_cluster};

/// Flannel's device of the default network.
pub(crate) const DEVICE: &str = "flannel.1";

/// An agent on the node of the tests, started with the store's options.
pub(crate) struct Agent<'a> {
    cluster: &'a Cluster,
    pub(crate) node: &'a Node,
    options: Vec<String>,
    environment: Vec<(String, String)>,
    daemon: Option<Daemon>,
}

impl<'a> Agent<'a> {
    fn new<S: TestStore>(cluster: &'a Cluster, store: &S) -> Self {
        let (options, environment) = store.options();
        Self {
            cluster,
            node: cluster.node(1),
            options,
            environment,
            daemon: None,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.node.directory().join(name)
    }

    pub(crate) fn start(&mut self) -> Outcome {
        let mut command = Command::new(AGENT);
        command
            .arg("run")
            .arg(format!(
                "--subnet-file={}",
                self.path("subnet.env").display()
            ))
            .arg(format!(
                "--status-socket={}",
                self.path("agent.sock").display()
            ))
            .arg(format!(
                "--pin-dir={}",
                self.cluster.id().pin_directory().display()
            ))
            .arg("--fast-path=off")
            .args(&self.options)
            .envs(self.environment.iter().cloned());
        self.daemon = Some(Daemon::spawn(
            self.cluster.id(),
            "agent",
            self.node.netns(),
            command,
            &self.path("agent.log"),
            Lifetime::Bound,
        )?);
        Ok(())
    }

    pub(crate) fn stop(&mut self) -> Outcome {
        let status = self.daemon.take().context("no agent")?.stop()?;
        ensure!(status.success(), "{status}");
        Ok(())
    }

    pub(crate) fn status(&self) -> anyhow::Result<Status> {
        let mut stream = UnixStream::connect(self.path("agent.sock"))?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(serde_json::from_str(&text)?)
    }

    pub(crate) fn wait_status(&self, what: &str, condition: impl Fn(&Status) -> bool) -> Outcome {
        eventually(what, FOLLOWS, || {
            if let Some(daemon) = &self.daemon {
                daemon.check_running()?;
            }
            Ok(match self.status() {
                Ok(status) if condition(&status) => Ok(()),
                Ok(status) => Err(format!(
                    "ready {}, lease {:?}, problems {:?}",
                    status.ready, status.lease, status.problems
                )),
                Err(error) => Err(format!("{error:#}")),
            })
        })
    }

    pub(crate) fn wait_ready(&self) -> Outcome {
        self.wait_status("readiness", |status| status.ready)
    }

    pub(crate) fn wait_problem(&self, part: &str) -> Outcome {
        self.wait_status(part, |status| {
            status.problems.iter().any(|problem| problem.contains(part))
        })
    }

    /// What the kernel has of peers: a line for each route and for each FDB entry.
    pub(crate) fn traces(&self) -> anyhow::Result<BTreeSet<String>> {
        let routes = format!("ip -4 route show | grep 'via 10.5.*dev {DEVICE}' || true");
        let routes = shell(self.node, &routes)?;
        let entries = shell(
            self.node,
            &format!("bridge fdb show dev {DEVICE} | grep dst || true"),
        )?;
        let first = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        let entry = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let node = words
                .iter()
                .position(|word| *word == "dst")
                .and_then(|at| words.get(at + 1));
            format!("{} at {}", words[0], node.copied().unwrap_or_default())
        };
        Ok(routes
            .lines()
            .map(first)
            .chain(entries.lines().map(entry))
            .collect())
    }

    /// Waits until the kernel has exactly these peers.
    pub(crate) fn wait_kernel(&self, what: &str, peers: &[&Entry]) -> Outcome {
        let wanted = traces_of(peers);
        eventually(what, FOLLOWS, || {
            let now = self.traces()?;
            Ok((now == wanted)
                .then_some(())
                .ok_or_else(|| format!("{now:?}, not {wanted:?}")))
        })
    }
}

pub(crate) fn traces_of(peers: &[&Entry]) -> BTreeSet<String> {
    peers
        .iter()
        .flat_map(|peer| {
            [
                peer.subnet.to_string(),
                format!("{} at {}", peer.mac, peer.address),
            ]
        })
        .collect()
}

/// Runs a test with an empty store and a node for its agent.
pub(crate) fn with_agent<S: TestStore>(
    test: impl FnOnce(&S, &mut Agent<'_>) -> Outcome,
) -> Outcome {
    let config = ClusterConfig {
        nodes: vec![NodeConfig::default()],
        leases: S::IN_CLUSTER,
        ..ClusterConfig::default()
    };
    with_unready_cluster(config, |cluster| {
        let store = S::make(cluster)?;
        let mut agent = Agent::new(cluster, &store);
        // Where nodes choose, the subnet of an earlier run is taken.
        let file = agent.path("subnet.env");
        fs::write(
            &file,
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.134.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
        )?;
        let result = test(&store, &mut agent);
        result.map_err(|error| {
            let log = fs::read_to_string(agent.path("agent.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(25)..].join("\n");
            error.context(format!("the agent's log:\n{tail}"))
        })
    })
}

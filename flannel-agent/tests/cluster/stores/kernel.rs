//! What the agent makes of a store in the kernel, whichever store it is.

use std::{
    collections::BTreeSet, fs, io::Read as _, os::unix::net::UnixStream, path::PathBuf,
    process::Command, thread, time::Duration,
};

use anyhow::{Context as _, ensure};
use lab::{
    Cluster, ClusterConfig, Lifetime, Node, NodeConfig, daemon::Daemon, process, status::Status,
};

use super::{
    Test,
    session::FOLLOWS,
    store::{Entry, OwnEntry, TestStore},
};
use crate::support::{
    AGENT, Backend, Outcome, Path, Setting, eventually, link, shell, udp_arrives, with_cluster,
    with_unready_cluster,
};

/// How long a store is away.
const WHILE: Duration = Duration::from_secs(3);
/// Packets of one check.
const PACKETS: u64 = 200;
/// A network of both families.
const DUAL: &str = r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
/// Flannel's device of the default network.
const DEVICE: &str = "flannel.1";

/// The tests of a store.
pub(crate) fn tests<S: TestStore>() -> Vec<Test> {
    vec![
        ("the_kernel_follows_the_store", follows::<S>),
        ("pods_reach_pods", pods_reach_pods::<S>),
        (
            "dual_stack_pods_reach_pods",
            dual_stack_pods_reach_pods::<S>,
        ),
    ]
}

/// Two agents with a pod each, whose leases are in the store that the lab gives a cluster.
fn pair<S: TestStore>() -> ClusterConfig {
    let setting = Setting {
        backend: Backend::Vxlan,
        path: Path::Kernel,
        mark: false,
        broken: None,
    };
    ClusterConfig {
        leases: S::CLUSTER,
        ..setting.pair()
    }
}

/// Pods of both families reach each other.
fn dual_stack_pods_reach_pods<S: TestStore>() -> Outcome {
    let config = ClusterConfig {
        network: DUAL.into(),
        ..pair::<S>()
    };
    with_cluster(config, |cluster| {
        let [first, second] = [1, 2].map(|number| cluster.node(number).pods()[0].clone());
        udp_arrives(&first, &second, PACKETS, 64)?;
        let address = second.address6().context("an IPv6 address")?.to_string();
        let ping = ["-6", "-c", "3", "-i", "0.2", "-W", "2", &address];
        process::run(Some(first.netns()), "ping", &ping)?;
        Ok(())
    })
}

/// Pods reach each other, and nodes keep their subnets over restarts.
fn pods_reach_pods<S: TestStore>() -> Outcome {
    let config = pair::<S>();
    with_cluster(config, |cluster| {
        let [first, second] = [1, 2].map(|number| cluster.node(number).pods()[0].clone());
        udp_arrives(&first, &second, PACKETS, 64)?;
        udp_arrives(&second, &first, PACKETS, 64)?;
        for node in cluster.nodes() {
            let before = node.subnet_env()?;
            node.agent().restart()?;
            let after = node.subnet_env()?;
            ensure!(before == after, "{before} became {after}");
        }
        udp_arrives(&first, &second, PACKETS, 64).map(drop)
    })
}

/// An agent on the node of the tests, started with the store's options.
struct Agent<'a> {
    cluster: &'a Cluster,
    node: &'a Node,
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

    fn path(&self, name: &str) -> PathBuf {
        self.node.directory().join(name)
    }

    fn start(&mut self) -> Outcome {
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

    fn stop(&mut self) -> Outcome {
        let status = self.daemon.take().context("no agent")?.stop()?;
        ensure!(status.success(), "{status}");
        Ok(())
    }

    fn status(&self) -> anyhow::Result<Status> {
        let mut stream = UnixStream::connect(self.path("agent.sock"))?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(serde_json::from_str(&text)?)
    }

    fn wait_status(&self, what: &str, condition: impl Fn(&Status) -> bool) -> Outcome {
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

    fn wait_ready(&self) -> Outcome {
        self.wait_status("readiness", |status| status.ready)
    }

    fn wait_problem(&self, part: &str) -> Outcome {
        self.wait_status(part, |status| {
            status.problems.iter().any(|problem| problem.contains(part))
        })
    }

    /// What the kernel has of peers: a line for each route and for each FDB entry.
    fn traces(&self) -> anyhow::Result<BTreeSet<String>> {
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
    fn wait_kernel(&self, what: &str, peers: &[&Entry]) -> Outcome {
        let wanted = traces_of(peers);
        eventually(what, FOLLOWS, || {
            let now = self.traces()?;
            Ok((now == wanted)
                .then_some(())
                .ok_or_else(|| format!("{now:?}, not {wanted:?}")))
        })
    }
}

fn traces_of(peers: &[&Entry]) -> BTreeSet<String> {
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
fn with_agent<S: TestStore>(test: impl FnOnce(&S, &mut Agent<'_>) -> Outcome) -> Outcome {
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

/// Peers come into the kernel, change there and go; nothing changes while the store is away, or by a restart.
fn follows<S: TestStore>() -> Outcome {
    with_agent::<S>(|store, agent| {
        let [first, second, third] = [1, 2, 3].map(Entry::peer);
        store.put(&first)?;
        store.put(&second)?;
        agent.start()?;
        agent.wait_ready()?;
        agent.wait_kernel("two peers", &[&first, &second])?;
        let env = fs::read_to_string(agent.path("subnet.env"))?;
        ensure!(env.contains("FLANNEL_SUBNET=10.5.134.1/24"), "{env}");
        let moved = second.clone().with_mac([0x0e, 4, 4, 4, 4, 4]);
        store.put(&moved)?;
        agent.wait_kernel("another MAC", &[&first, &moved])?;

        store.take_away()?;
        store.remove(&first)?;
        store.put(&third)?;
        thread::sleep(WHILE);
        let away = agent.traces()?;
        ensure!(
            away == traces_of(&[&first, &moved]),
            "without the store: {away:?}"
        );
        store.bring_back()?;
        agent.wait_kernel("what has changed meanwhile", &[&moved, &third])?;
        agent.wait_status("no problem", |status| status.problems.is_empty())?;

        let device = link(agent.node, DEVICE)?;
        let revision = store.own_revision()?;
        agent.stop()?;
        store.remove(&moved)?;
        agent.start()?;
        agent.wait_ready()?;
        agent.wait_kernel("what has changed without the agent", &[&third])?;
        ensure!(
            device == link(agent.node, DEVICE)?,
            "the device was made anew"
        );
        let after = fs::read_to_string(agent.path("subnet.env"))?;
        ensure!(env == after, "{env} became {after}");
        let written = store.own_revision()?;
        ensure!(
            revision == written || S::OWN == OwnEntry::Given,
            "own entry written anew: {revision}, {written}"
        );
        agent.stop()
    })
}

/// This node's lease in the file chooses interface and MAC; what is not as the file says is said before anything else.
pub(crate) fn file_rules() -> Outcome {
    with_agent::<super::file::File>(|store, agent| {
        let own = Entry::own();
        let mac = |agent: &Agent<'_>| anyhow::Ok(link(agent.node, DEVICE)?.map(|(_, mac)| mac));
        store.delete_own()?;
        agent.start()?;
        agent.wait_problem("no lease with PublicIP = 192.168.100.1")?;
        ensure!(mac(agent)?.is_none(), "a device without a lease");
        store.put(&own)?;
        agent.wait_ready()?;
        let made = mac(agent)?;
        ensure!(made == Some(own.mac.to_string()), "{made:?}");
        shell(agent.node, &format!("ip link delete {DEVICE}"))?;
        eventually("the device again", FOLLOWS, || {
            let made = mac(agent)?;
            Ok((made == Some(own.mac.to_string()))
                .then_some(())
                .ok_or(format!("{made:?}")))
        })?;

        let other = own.clone().with_mac([0x0e, 5, 5, 5, 5, 5]);
        store.overwrite_own(&other)?;
        let differs = "VtepMAC = 0e:05:05:05:05:05, where it is 0e:de:d4:9c:3c:d8";
        agent.wait_problem(differs)?;
        agent.stop()?;
        agent.start()?;
        agent.wait_problem(differs)?;
        ensure!(
            !agent.status()?.ready,
            "ready with another MAC than the file's"
        );
        agent.stop()?;
        shell(agent.node, &format!("ip link delete {DEVICE}"))?;
        agent.start()?;
        agent.wait_ready()?;
        let made = mac(agent)?;
        ensure!(made == Some(other.mac.to_string()), "{made:?}");
        agent.stop()
    })
}

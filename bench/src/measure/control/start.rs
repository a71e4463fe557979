//! The node: its agent started anew with so many leases.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    time::{Duration, Instant},
};

use lab::{AgentConfig, Cluster, ClusterConfig, LeaseStore, NodeConfig, counters, underlay, wait};

use super::{
    change::{self, Maps, Wait},
    entries,
    etcd::Etcd,
    kube::Nodes,
    load::{self, Relist, Sustained},
    peers::{self, Peer},
    spent::{self, Counters, Spent},
    store::Store,
};
use crate::{
    meter::daemon_starter,
    testbed::{Error, Means, Result},
    variants::{Backend, Carrier},
};

/// The agent's health port, in its own network namespace.
const HEALTH: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8081);
/// How often it is asked: a hundredth of what the shortest start takes.
const INTERVAL: Duration = Duration::from_millis(1);
/// A start may take so long.
const LIMIT: Duration = Duration::from_secs(60);

/// What came of one start.
pub struct Started {
    /// What it took.
    pub spent: Spent,
    /// Requests to the store until then.
    pub requests: u64,
    /// What the node's interface has received until then, in KiB: almost all of it from the store.
    pub received: f64,
    /// How long single changes took.
    pub waits: Vec<Wait>,
    /// The memory that the agent keeps, in KiB.
    pub resting: f64,
    /// What came of many.
    pub loaded: Option<Loaded>,
}

/// What came of many changes in a row, and of a restart.
#[derive(Clone, Copy, Debug)]
pub struct Loaded {
    /// Changes in a second.
    pub rate: u32,
    /// What came of them.
    pub sustained: Sustained,
    /// What it cost to list all Nodes anew; absent where no store makes an agent do so.
    pub relist: Option<Relist>,
    /// Netlink changes that a restart makes.
    pub restart_changes: usize,
}

/// A node alone with a store. Its agent does not run, and nothing of flannel's is in the kernel.
pub struct Node {
    cluster: Cluster,
    backend: Backend,
    leases: LeaseStore,
}

impl Node {
    /// Builds it.
    ///
    /// # Errors
    /// Whatever fails first.
    pub fn build(means: &Means<'_>, backend: Backend, leases: LeaseStore) -> Result<Self> {
        let mode = Carrier::Flow.mode().unwrap_or_default();
        let mut agent = AgentConfig::new(means.agent).with_fast_path(mode);
        agent.arguments.extend([
            format!("--healthz-ip={}", HEALTH.ip()),
            format!("--healthz-port={}", HEALTH.port()),
        ]);
        let cluster = Cluster::start(ClusterConfig {
            nodes: vec![NodeConfig::agent(&agent)],
            network: peers::network(backend),
            leases,
            ..ClusterConfig::default()
        })?;
        let node = Self {
            cluster,
            backend,
            leases,
        };
        // What is on its link, the kernel takes as a next hop.
        let link = format!("route add {} dev eth0\n", peers::ON_LINK);
        underlay::ip_batch(node.netns(), &link)?;
        node.stop()?;
        Ok(node)
    }

    /// Starts the agent with so many leases, then changes some of them; with `under_load` many in a row, and starts it
    /// once more.
    ///
    /// # Errors
    /// If it does not get ready, or something is missing then.
    pub fn start(&self, leases: u32, changes: u32, under_load: bool) -> Result<Started> {
        self.inside(async || self.start_inside(leases, changes, under_load).await)
    }

    /// Starts the agent without fast path, and ends it. Returns what that took and the memory that it kept, in KiB.
    ///
    /// # Errors
    /// If it does not get ready, or something is missing then.
    pub fn start_plain(&self, leases: u32) -> Result<(Spent, f64)> {
        self.set_mode(Carrier::Kernel);
        let started = self.inside(async || {
            let mut store = self.store().await?;
            store.fill(leases).await?;
            let (spent, _) = self.start_agent(leases)?;
            Ok((spent, spent::resting_memory(self.agent().pid()?)?))
        });
        self.set_mode(Carrier::Flow);
        let started = started?;
        self.stop()?;
        Ok(started)
    }

    fn set_mode(&self, carrier: Carrier) {
        let mode = carrier.mode().unwrap_or_default();
        self.agent()
            .configure(|config| config.fast_path = mode.to_owned());
    }

    /// Runs something in the node's network namespace.
    fn inside<T: Send>(&self, action: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
        self.netns().run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| Error::Control(format!("runtime: {error}")))?;
            runtime.block_on(action())
        })?
    }

    async fn store(&self) -> Result<Store<'_>> {
        Ok(match self.leases {
            LeaseStore::ApiServer => {
                Store::Kube(Nodes::new(self.cluster.api_server(), self.backend))
            }
            _ => {
                let endpoint = self.cluster.etcd().endpoint();
                Store::Etcd(Box::new(Etcd::connect(endpoint, self.backend).await?))
            }
        })
    }

    /// Starts the agent and waits until all is in place. Returns what that took, and what was received for it, in KiB.
    fn start_agent(&self, leases: u32) -> Result<(Spent, f64)> {
        let before = self.received()?;
        let counters = Counters::open(daemon_starter()?)?;
        let start = Instant::now();
        self.agent().start()?;
        wait_ready(start)?;
        let time = start.elapsed();
        let spent = Spent {
            memory: Some(spent::peak_memory(self.agent().pid()?)?),
            ..counters.read(time)?
        };
        let received = self.received()? - before;
        entries::check(self.netns(), self.backend, leases)?;
        Ok((spent, received))
    }

    /// What the node's interface has received so far, in KiB.
    fn received(&self) -> Result<f64> {
        const INTERFACE: &str = "eth0";
        const KIBIBYTE: f64 = 1024.0;
        let links = counters::links(self.netns())?;
        let link = links.get(INTERFACE).copied().unwrap_or_default();
        Ok(link.rx_bytes as f64 / KIBIBYTE)
    }

    async fn start_inside(&self, leases: u32, changes: u32, under_load: bool) -> Result<Started> {
        let mut store = self.store().await?;
        store.fill(leases).await?;
        let asked = store.requests()?;
        let (spent, received) = self.start_agent(leases)?;
        let requests = store.requests()? - asked;
        let maps = Maps::open(&self.agent().pin_directory())?;
        let mut held = 0;
        for peer in peers::all(leases) {
            held += u32::from(maps.hold(peer, self.backend)?);
        }
        entries::expect("entries in the maps", held, leases)?;
        let waits = change::run(&mut store, &maps, self.backend, leases, changes).await?;
        let resting = spent::resting_memory(self.agent().pid()?)?;
        let loaded = match under_load {
            true => Some(self.load(&mut store, &maps, leases).await?),
            false => None,
        };
        self.stop()?;
        Ok(Started {
            spent,
            requests,
            received,
            waits,
            resting,
            loaded,
        })
    }

    async fn load(&self, store: &mut Store<'_>, maps: &Maps, leases: u32) -> Result<Loaded> {
        let agent = self.agent();
        let pid = agent.pid()?;
        let in_place = |peer| maps.hold(peer, self.backend);
        let changed = |change| change::nth(self.backend, change);
        let sustained = load::sustain(store, pid, leases, changed, in_place).await?;
        let relist = match store {
            Store::Kube(nodes) => {
                // Its lease has been another one until now, however often it has changed.
                let peer = Peer {
                    number: 0,
                    changed: 0,
                };
                Some(load::list_anew(nodes, pid, peer, in_place).await?)
            }
            Store::Etcd(_) => None,
        };
        let network = peers::NETWORK.parse()?;
        let restart = load::changes_during(&network, async || {
            agent.stop()?;
            agent.start()?;
            wait_ready(Instant::now())
        });
        Ok(Loaded {
            rate: load::rate(store),
            sustained,
            relist,
            restart_changes: restart.await?,
        })
    }

    /// Makes the entries for so many leases by iproute2's batches.
    ///
    /// # Errors
    /// If a command fails, or something is missing then.
    pub fn batch(&self, leases: u32) -> Result<Spent> {
        entries::make(self.netns(), self.backend, leases)
    }

    /// Ends the agent and removes what it leaves behind.
    fn stop(&self) -> Result<()> {
        let agent = self.agent();
        agent.stop()?;
        agent.command_output(&[
            "cleanup",
            &format!("--subnet-file={}", agent.subnet_file().display()),
            &format!("--status-socket={}", agent.socket().display()),
            &format!("--pin-dir={}", agent.pin_directory().display()),
        ])?;
        Ok(())
    }

    fn agent(&self) -> &lab::Agent {
        self.cluster.node(1).agent()
    }

    fn netns(&self) -> &lab::Netns {
        self.cluster.node(1).netns()
    }
}

/// Waits until the agent says that it is ready.
fn wait_ready(start: Instant) -> Result<()> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(HEALTH)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    loop {
        let answer = ask();
        match answer {
            Ok(answer) if answer.contains(" 200 ") => return Ok(()),
            _ if start.elapsed() < wait::patient(LIMIT) => std::thread::sleep(INTERVAL),
            other => return Err(Error::Control(format!("the agent is not ready: {other:?}"))),
        }
    }
}

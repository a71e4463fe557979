//! The node: its agent started anew with so many leases, or the same entries made by iproute2's batches.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    time::{Duration, Instant},
};

use lab::{AgentConfig, Cluster, ClusterConfig, NodeConfig, process, stock, underlay, wait};

use super::{
    change::{self, Maps, Wait},
    load::{self, Sustained},
    peers,
    store::Store,
};
use crate::{
    meter::{Counter, daemon_starter},
    testbed::{Error, Means, Result},
    variants::{Backend, Carrier},
};

/// The agent's health port, in its own network namespace.
const HEALTH: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8081);
/// How often it is asked: a hundredth of what the shortest start takes.
const INTERVAL: Duration = Duration::from_millis(1);
/// A start may take so long.
const LIMIT: Duration = Duration::from_secs(60);
/// The VXLAN device.
const DEVICE: &str = "flannel.1";

/// What it took until all was in place.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    /// Milliseconds on the clock.
    pub time: f64,
    /// Milliseconds on the CPU.
    pub cpu: f64,
    /// The most memory that the process had, in KiB.
    pub memory: Option<f64>,
    /// System calls, where the kernel counts them.
    pub system_calls: Option<u64>,
}

/// What came of one start.
pub struct Started {
    /// What it took.
    pub spent: Spent,
    /// Requests to etcd until then.
    pub requests: u64,
    /// How long single changes took.
    pub waits: Vec<Wait>,
    /// What came of many.
    pub loaded: Option<Loaded>,
}

/// What came of many changes in a row, and of a restart.
#[derive(Clone, Copy, Debug)]
pub struct Loaded {
    /// The changes.
    pub sustained: Sustained,
    /// Netlink changes that a restart makes.
    pub restart_changes: usize,
}

/// A node alone with etcd. Its agent does not run, and nothing of flannel's is in the kernel.
pub struct Node {
    cluster: Cluster,
    backend: Backend,
}

impl Node {
    /// Builds it.
    ///
    /// # Errors
    /// Whatever fails first.
    pub fn build(means: &Means<'_>, backend: Backend) -> Result<Self> {
        let mode = Carrier::Flow.mode().unwrap_or_default();
        let mut agent = AgentConfig::new(means.agent).with_fast_path(mode);
        agent.arguments.extend([
            format!("--healthz-ip={}", HEALTH.ip()),
            format!("--healthz-port={}", HEALTH.port()),
        ]);
        let cluster = Cluster::start(ClusterConfig {
            nodes: vec![NodeConfig::agent(&agent)],
            network: peers::network(backend),
            ..ClusterConfig::default()
        })?;
        let node = Self { cluster, backend };
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
        self.netns().run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| Error::Control(format!("runtime: {error}")))?;
            runtime.block_on(self.start_inside(leases, changes, under_load))
        })?
    }

    async fn start_inside(&self, leases: u32, changes: u32, under_load: bool) -> Result<Started> {
        let endpoint = self.cluster.etcd().endpoint();
        let mut store = Store::connect(&endpoint, self.backend).await?;
        store.fill(leases).await?;
        let agent = self.cluster.node(1).agent();
        let asked = load::requests(&endpoint)?;
        let counters = Counters::open(daemon_starter()?)?;
        let start = Instant::now();
        agent.start()?;
        wait_ready(start)?;
        let time = start.elapsed();
        let spent = Spent {
            memory: Some(peak_memory(agent.pid()?)?),
            ..counters.read(time)?
        };
        drop(counters);
        let requests = load::requests(&endpoint)? - asked;
        let maps = Maps::open(&agent.pin_directory())?;
        self.check(leases)?;
        let mut held = 0;
        for peer in peers::all(leases) {
            held += u32::from(maps.hold(peer, self.backend)?);
        }
        expect("entries in the maps", held, leases)?;
        let waits = change::run(&mut store, &maps, self.backend, leases, changes).await?;
        let loaded = match under_load {
            true => Some(self.load(&mut store, &maps, leases).await?),
            false => None,
        };
        self.stop()?;
        Ok(Started {
            spent,
            requests,
            waits,
            loaded,
        })
    }

    async fn load(&self, store: &mut Store, maps: &Maps, leases: u32) -> Result<Loaded> {
        let agent = self.cluster.node(1).agent();
        let in_place = |peer| maps.hold(peer, self.backend);
        let changed = |change| change::nth(self.backend, change);
        let sustained = load::sustain(store, agent.pid()?, leases, changed, in_place).await?;
        let network = peers::NETWORK.parse()?;
        let restart = load::changes_during(&network, async || {
            agent.stop()?;
            agent.start()?;
            wait_ready(Instant::now())
        });
        Ok(Loaded {
            sustained,
            restart_changes: restart.await?,
        })
    }

    /// Makes the entries for so many leases by iproute2's batches.
    ///
    /// # Errors
    /// If a command fails, or something is missing then.
    pub fn batch(&self, leases: u32) -> Result<Spent> {
        let lines = match self.backend {
            Backend::Vxlan => format!(
                "link add {DEVICE} type vxlan id 1 dev eth0 dstport 8472 nolearning\n\
                 link set {DEVICE} up\n"
            ),
            Backend::HostGw => String::new(),
        };
        underlay::ip_batch(self.netns(), &lines)?;
        let leases_read: Result<Vec<_>> = peers::all(leases)
            .map(|peer| peer.lease(self.backend))
            .collect();
        let entries = stock::Entries::new(&peers::network(self.backend), &leases_read?)?;
        /// The calling thread.
        const SELF: i32 = 0;
        let counters = Counters::open(SELF)?;
        let start = Instant::now();
        entries.make(self.netns())?;
        let spent = counters.read(start.elapsed())?;
        self.check(leases)?;
        match self.backend {
            Backend::Vxlan => underlay::ip_batch(self.netns(), &format!("link delete {DEVICE}\n"))?,
            Backend::HostGw => {
                let flush = format!("route flush root {}\n", peers::NETWORK);
                underlay::ip_batch(self.netns(), &flush)?;
            }
        }
        Ok(spent)
    }

    /// Fails unless the kernel has the entries of so many leases, as iproute2 shows them.
    fn check(&self, leases: u32) -> Result<()> {
        let count = |program, arguments: &[&str], mark: &str| -> Result<u32> {
            let shown = process::run(Some(self.netns()), program, arguments)?;
            Ok(shown.lines().filter(|line| line.contains(mark)).count() as u32)
        };
        let routes = ["route", "show", "root", peers::NETWORK];
        expect("routes", count("ip", &routes, " via ")?, leases)?;
        if self.backend == Backend::Vxlan {
            let neighbours = ["neighbour", "show", "dev", DEVICE, "nud", "permanent"];
            expect("neighbours", count("ip", &neighbours, "lladdr")?, leases)?;
            let fdb = ["fdb", "show", "dev", DEVICE];
            expect("FDB entries", count("bridge", &fdb, " dst ")?, leases)?;
        }
        Ok(())
    }

    /// Ends the agent and removes what it leaves behind.
    fn stop(&self) -> Result<()> {
        let agent = self.cluster.node(1).agent();
        agent.stop()?;
        agent.command_output(&[
            "cleanup",
            &format!("--subnet-file={}", agent.subnet_file().display()),
            &format!("--status-socket={}", agent.socket().display()),
            &format!("--pin-dir={}", agent.pin_directory().display()),
        ])?;
        Ok(())
    }

    fn netns(&self) -> &lab::Netns {
        self.cluster.node(1).netns()
    }
}

/// What a thread's children spend, and itself.
struct Counters {
    cpu: Counter,
    system_calls: Option<Counter>,
}

impl Counters {
    fn open(thread: i32) -> Result<Self> {
        Ok(Self {
            cpu: Counter::cpu_time(thread)?,
            system_calls: Counter::system_calls(thread),
        })
    }

    fn read(&self, time: Duration) -> Result<Spent> {
        /// Nanoseconds in a millisecond.
        const MILLISECOND: f64 = 1e6;
        let system_calls = self.system_calls.as_ref();
        Ok(Spent {
            time: time.as_nanos() as f64 / MILLISECOND,
            cpu: self.cpu.read()? as f64 / MILLISECOND,
            memory: None,
            system_calls: system_calls.map(Counter::read).transpose()?,
        })
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

/// The most memory that a process has had, in KiB.
fn peak_memory(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    kibibytes.ok_or_else(|| Error::Control(format!("{path} has no VmHWM in kB")))
}

fn expect(what: &str, found: u32, expected: u32) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Control(format!(
        "{found} {what} instead of {expected}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_had_memory() {
        assert!(peak_memory(std::process::id()).unwrap() > 100.0);
        assert!(peak_memory(u32::MAX).is_err());
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(expect("routes", 3, 3).is_ok());
        let error = expect("routes", 2, 3).unwrap_err().to_string();
        assert!(error.contains("2 routes instead of 3"), "{error}");
    }
}

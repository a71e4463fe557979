//! A cluster: switch, lease store and nodes, built in parallel where that helps, and removed without a trace.

use std::{
    fmt,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

#[cfg(feature = "api-server")]
use crate::kube::mock::ApiServer;
use crate::{
    agent::AgentConfig,
    cni,
    error::{Error, Result},
    etcd::Etcd,
    lease_store::{self, LeaseStore, Store},
    netns::Netns,
    node::{Node, NodeConfig},
    process::Lifetime,
    services::Form,
    signals,
    state::{self, LabId},
    stock,
    underlay::{self, Segment, Underlay},
};

/// What to build.
pub struct ClusterConfig {
    /// The nodes, numbered from 1 in this order.
    pub nodes: Vec<NodeConfig>,
    /// Pods to make on each node that runs flannel, ours or stock.
    pub pods: usize,
    /// The network config.
    pub network: String,
    /// Where leases are kept.
    pub leases: LeaseStore,
    /// The links between the nodes.
    pub underlay: Underlay,
    /// Whether the links between nodes have IPv6 addresses too. A network with `EnableIPv6` has them anyway.
    pub ipv6: bool,
    /// Whether bridged pod traffic meets iptables (`bridge-nf-call-iptables`), as Kubernetes wants it.
    pub bridge_netfilter: bool,
    /// How many services' rules each node holds, as if kube-proxy ran there.
    pub services: usize,
    /// In which form.
    pub service_rules: Form,
    /// Whether the cluster goes with this process.
    pub lifetime: Lifetime,
    /// Told of each step of the start.
    pub progress: Option<Box<Observer>>,
}

/// Is told of a cluster's start.
pub type Observer = dyn Fn(Step<'_>) + Send + Sync;

impl Default for ClusterConfig {
    /// No nodes; VXLAN on 10.5.0.0/16, leases in etcd, IPv4 alone; an underlay as veth makes it; bridge netfilter on, no service rules.
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            pods: 0,
            network: r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#.to_owned(),
            leases: LeaseStore::default(),
            underlay: Underlay::default(),
            ipv6: false,
            bridge_netfilter: true,
            services: 0,
            service_rules: Form::default(),
            lifetime: Lifetime::Bound,
            progress: None,
        }
    }
}

/// Progress of a cluster's start.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// Work on this has begun.
    Begin(&'a str),
    /// It is done, after this time.
    Done(&'a str, Duration),
}

/// What all parts of one cluster share.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) lab: LabId,
    pub(crate) switch: Netns,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) network: String,
    pub(crate) underlay: Underlay,
    pub(crate) ipv6: bool,
    pub(crate) bridge_netfilter: bool,
    pub(crate) services: usize,
    pub(crate) service_rules: Form,
    pub(crate) lifetime: Lifetime,
}

/// A running cluster; removed when it is dropped.
pub struct Cluster {
    nodes: Vec<Arc<Node>>,
    next_number: u8,
    settings: Settings,
    // Last: the directory goes when everything else is gone.
    lab: Lab,
}

/// Removes what bears the lab's number.
struct Lab {
    id: LabId,
    kept: bool,
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // When a signal has begun the teardown, that is what ends the process, with its status: wait for it here.
        drop(signals::permit());
        for problem in state::remove(self.id) {
            eprintln!("teardown of lab {}: {problem}", self.id);
        }
    }
}

impl Cluster {
    /// Removes leftovers of dead labs, then builds the cluster and waits until every node is ready and knows every
    /// other and all pods are attached.
    ///
    /// # Errors
    /// Whatever fails first; what was built until then is removed.
    pub fn start(config: ClusterConfig) -> Result<Self> {
        cni::plugin_directory()?;
        let progress = Progress(config.progress.as_deref());
        let mut cluster = progress.step("network namespaces, switch and lease store", || {
            Self::build_base(&config)
        })?;
        progress.step("nodes", || {
            let nodes = config.nodes.iter().zip(1..).collect::<Vec<_>>();
            let built = in_parallel(&nodes, |(node, number)| {
                Node::build(&cluster.settings, *number, node)
            })?;
            cluster.next_number = built.last().map_or(1, |node| node.number() + 1);
            cluster.nodes = built.into_iter().map(Arc::new).collect();
            Ok(())
        })?;
        progress.step("network config", || {
            cluster.settings.store.publish_network(&config.network)
        })?;
        progress.step("flannel on every node", || {
            cluster.start_flannel(&cluster.nodes)?;
            cluster.wait_converged()
        })?;
        progress.step("pods", || {
            in_parallel(&cluster.nodes, |node| {
                let has_flannel = node.try_agent().is_some() || node.try_stock().is_some();
                let pods = if has_flannel { config.pods } else { 0 };
                (0..pods).try_for_each(|_| node.add_pod().map(drop))
            })
        })?;
        Ok(cluster)
    }

    fn build_base(config: &ClusterConfig) -> Result<Self> {
        state::reap_stale()?;
        let id = state::create()?;
        let lab = Lab { id, kept: false };
        let switch = Netns::create_with(&id.namespace("sw"), config.lifetime)?;
        let ipv6 = config.ipv6 || stock::is_dual_stack(&config.network);
        underlay::build_switch(&switch, config.underlay, ipv6)?;
        // etcd serves by the time the nodes are built.
        let store = lease_store::start(
            config.leases,
            id,
            &switch,
            Segment::First.gateway(),
            config.lifetime,
        )?;
        let settings = Settings {
            lab: id,
            switch,
            store,
            network: config.network.clone(),
            underlay: config.underlay,
            ipv6,
            bridge_netfilter: config.bridge_netfilter,
            services: config.services,
            service_rules: config.service_rules,
            lifetime: config.lifetime,
        };
        Ok(Self {
            nodes: Vec::new(),
            next_number: 1,
            settings,
            lab,
        })
    }

    /// Starts what the nodes are to run and waits for it.
    fn start_flannel(&self, nodes: &[Arc<Node>]) -> Result<()> {
        in_parallel(nodes, |node| {
            if let Some(agent) = node.try_agent() {
                agent.start()?;
                agent.wait_ready()?;
            }
            node.try_stock().map_or(Ok(()), |stock| stock.start())
        })
        .map(drop)
    }

    /// Waits until every agent knows all other leases, and makes the stock nodes follow them.
    ///
    /// # Errors
    /// If an agent ends, or does not know all peers in time.
    pub fn wait_converged(&self) -> Result<()> {
        let leases = self.settings.store.leases()?;
        // A node of a dual-stack network is two peers, one per family.
        let has_ipv6 = stock::is_dual_stack(&self.settings.network);
        let ipv6 = leases
            .iter()
            .filter(|lease| has_ipv6 && lease.subnet6.is_some());
        let subnets = leases.len() + ipv6.count();
        in_parallel(&self.nodes, |node| {
            if let Some(agent) = node.try_agent() {
                agent.wait_status("knowledge of all peers", |status| {
                    let own = status
                        .lease
                        .as_ref()
                        .map_or(1, |own| own.subnet.split(',').count());
                    status.peers.len() + own == subnets
                })?;
            }
            node.try_stock().map_or(Ok(()), |stock| stock.refresh())
        })
        .map(drop)
    }

    /// Adds a node to the running cluster and waits until all know it. It has no pods yet.
    ///
    /// # Errors
    /// Whatever fails first.
    pub fn add_node(&mut self, config: &NodeConfig) -> Result<Arc<Node>> {
        let node = Arc::new(Node::build(&self.settings, self.next_number, config)?);
        self.next_number += 1;
        self.start_flannel(std::slice::from_ref(&node))?;
        self.nodes.push(node.clone());
        self.wait_converged()?;
        Ok(node)
    }

    /// Takes a node away, as if it were switched off: its agent is killed, its lease stays.
    ///
    /// # Errors
    /// If there is no such node, or something of it cannot be removed.
    pub fn remove_node(&mut self, number: u8) -> Result<()> {
        let index = self.nodes.iter().position(|node| node.number() == number);
        let index =
            index.ok_or_else(|| Error::Unsupported(format!("there is no node n{number}")))?;
        self.nodes.remove(index).power_off()
    }

    /// Puts our agent on a stock node, where it is to take over from what the stock flannel has set up. Starting it, and
    /// [`Stock::restart`] on the way back, are the caller's.
    ///
    /// [`Stock::restart`]: crate::stock::Stock::restart
    ///
    /// # Errors
    /// If there is an agent already.
    pub fn install_agent(&self, number: u8, config: &AgentConfig) -> Result<()> {
        self.node(number).install_agent(&self.settings, config)
    }

    /// The nodes, in the order of their numbers.
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// Node `n<number>`.
    ///
    /// # Panics
    /// If there is none.
    pub fn node(&self, number: u8) -> &Arc<Node> {
        self.nodes
            .iter()
            .find(|node| node.number() == number)
            .unwrap_or_else(|| panic!("there is no node n{number}"))
    }

    /// The cluster's etcd.
    ///
    /// # Panics
    /// If leases are kept elsewhere.
    pub fn etcd(&self) -> &Etcd {
        let etcd = self.settings.store.etcd();
        etcd.unwrap_or_else(|| panic!("this cluster has no etcd"))
    }

    /// The cluster's API server.
    ///
    /// # Panics
    /// If leases are kept elsewhere.
    #[cfg(feature = "api-server")]
    pub fn api_server(&self) -> &ApiServer {
        let server = self.settings.store.api_server();
        server.unwrap_or_else(|| panic!("this cluster has no API server"))
    }

    /// The file with the cluster's leases. The lab writes it anew when a node is added.
    ///
    /// # Panics
    /// If leases are kept elsewhere.
    pub fn lease_file(&self) -> &Path {
        let file = self.settings.store.file();
        file.unwrap_or_else(|| panic!("this cluster has no file of leases"))
    }

    /// The namespace of switch, router and lease store.
    pub fn switch(&self) -> &Netns {
        &self.settings.switch
    }

    /// The lab's number.
    pub fn id(&self) -> LabId {
        self.settings.lab
    }

    /// From now on the cluster stays up when it is dropped or this process ends; [`state::clean`] removes it then.
    ///
    /// # Errors
    /// If it was started with [`Lifetime::Bound`]: its daemons would die with this process.
    pub fn keep(&mut self) -> Result<()> {
        if self.settings.lifetime == Lifetime::Bound {
            let reason = "only a cluster with Lifetime::Outlives can be kept";
            return Err(Error::Unsupported(reason.to_owned()));
        }
        state::keep(self.id())?;
        self.lab.kept = true;
        Ok(())
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("id", &self.id())
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}

struct Progress<'a>(Option<&'a Observer>);

impl Progress<'_> {
    fn step<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let report = |step: Step<'_>| self.0.iter().for_each(|report| report(step));
        let start = Instant::now();
        report(Step::Begin(what));
        let done = work()?;
        report(Step::Done(what, start.elapsed()));
        Ok(done)
    }
}

/// Does `work` for all items at once, each on a thread of its own, and returns the results in order, or the first
/// error in order.
///
/// # Errors
/// Those of `work`.
pub fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = items
            .iter()
            .map(|item| scope.spawn(move || work(item)))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    })
}

//! A node: a namespace with `eth0`, pods on `cni0`, and whatever plays flanneld there.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{
    agent::{Agent, AgentConfig},
    cluster::Settings,
    cni::{self, Attachment, PodConfig, SubnetEnv, Wishes},
    error::{Error, IoContext, Result},
    lease_store::NewNode,
    netns::{self, Netns},
    process::{self, Lifetime},
    services,
    state::LabId,
    stock::{self, Stock},
    underlay::{self, Segment},
};

/// What runs on a node.
#[derive(Clone, Debug, Default)]
pub enum Role {
    /// Our agent.
    Agent(AgentConfig),
    /// A stock flannel node, imitated with iproute2 commands.
    Stock,
    /// Nothing: a machine on the underlay.
    #[default]
    Bare,
}

/// A node to be made.
#[derive(Clone, Debug, Default)]
pub struct NodeConfig {
    /// What runs on it.
    pub role: Role,
    /// Where it is attached.
    pub segment: Segment,
}

impl NodeConfig {
    /// A node that runs our agent.
    pub fn agent(config: &AgentConfig) -> Self {
        Self {
            role: Role::Agent(config.clone()),
            segment: Segment::First,
        }
    }

    /// A stock flannel node.
    pub fn stock() -> Self {
        Self {
            role: Role::Stock,
            segment: Segment::First,
        }
    }

    /// The same node behind the router.
    pub fn routed(self) -> Self {
        Self {
            segment: Segment::Routed,
            ..self
        }
    }
}

/// A node of a cluster.
#[derive(Debug)]
pub struct Node {
    name: String,
    number: u8,
    segment: Segment,
    lab: LabId,
    ipv6: bool,
    lifetime: Lifetime,
    netns: Netns,
    directory: PathBuf,
    next_pod: AtomicU32,
    pods: Mutex<Vec<Pod>>,
    flanneld: Flanneld,
    /// What takes over from the stock flannel.
    successor: OnceLock<Agent>,
}

/// Who does flanneld's work on a node.
#[derive(Debug)]
enum Flanneld {
    Agent(Agent),
    Stock(Stock),
    Nobody,
}

impl Node {
    /// Makes node number `number` and joins it to the switch; starts nothing.
    pub(crate) fn build(settings: &Settings, number: u8, config: &NodeConfig) -> Result<Self> {
        let name = format!("n{number}");
        let lab = settings.lab;
        let directory = lab.directory().join(&name);
        fs::create_dir(&directory).context("create", directory.display())?;
        let netns = Netns::create_with(&lab.namespace(&name), settings.lifetime)?;
        underlay::set_ipv6(&netns, settings.ipv6)?;
        underlay::set_forwarding(&netns, settings.ipv6)?;
        underlay::set_bridge_netfilter(&netns, settings.bridge_netfilter)?;
        underlay::connect(
            &settings.switch,
            &netns,
            &name,
            config.segment,
            number,
            settings.underlay,
            settings.ipv6,
        )?;
        if settings.services > 0 {
            let proxy = services::Proxy {
                form: settings.service_rules,
                ..services::Proxy::default()
            };
            proxy.install(&netns, &services::filler(settings.services))?;
        }
        if !matches!(config.role, Role::Bare) {
            register(settings, &name, number, config.segment)?;
        }
        let flanneld = match &config.role {
            Role::Agent(agent) => Flanneld::Agent(Agent::new(
                settings,
                &name,
                &netns,
                &directory,
                agent.clone(),
            )?),
            Role::Stock => Flanneld::Stock(Stock::new(
                settings,
                number,
                config.segment,
                &netns,
                &directory,
            )),
            Role::Bare => Flanneld::Nobody,
        };
        Ok(Self {
            name,
            number,
            segment: config.segment,
            lab,
            ipv6: settings.ipv6,
            lifetime: settings.lifetime,
            netns,
            directory,
            next_pod: AtomicU32::new(1),
            pods: Mutex::default(),
            flanneld,
            successor: OnceLock::new(),
        })
    }

    /// Puts an agent on a stock node, beside what the stock flannel has set up; it is not started.
    pub(crate) fn install_agent(&self, settings: &Settings, config: &AgentConfig) -> Result<()> {
        let agent = Agent::new(
            settings,
            &self.name,
            &self.netns,
            &self.directory,
            config.clone(),
        )?;
        let refused = self.try_agent().is_some() || self.successor.set(agent).is_err();
        if refused {
            let reason = format!("node {} has an agent already", self.name);
            return Err(Error::Unsupported(reason));
        }
        Ok(())
    }

    /// `n1`, `n2`, …
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number in the name and in the last byte of the address, from 1.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Where it is attached.
    pub fn segment(&self) -> Segment {
        self.segment
    }

    /// The address of its `eth0`.
    pub fn address(&self) -> Ipv4Addr {
        self.segment.address(self.number)
    }

    /// The IPv6 address of its `eth0`, in a dual-stack cluster.
    pub fn address6(&self) -> Option<Ipv6Addr> {
        self.ipv6.then(|| self.segment.address6(self.number))
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its directory, with `subnet.env` and logs; with Kubernetes' leases also `net-conf.json`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The agent.
    ///
    /// # Panics
    /// On a node with another role.
    pub fn agent(&self) -> &Agent {
        self.try_agent()
            .unwrap_or_else(|| panic!("node {} runs no agent", self.name))
    }

    /// The agent, if the node's role is to run one, or one has been put there ([`Cluster::install_agent`]).
    ///
    /// [`Cluster::install_agent`]: crate::Cluster::install_agent
    pub fn try_agent(&self) -> Option<&Agent> {
        match &self.flanneld {
            Flanneld::Agent(agent) => Some(agent),
            Flanneld::Stock(_) | Flanneld::Nobody => self.successor.get(),
        }
    }

    /// An agent for a node that runs none, not started: its arguments say where leases are kept.
    pub fn new_agent(&self, config: AgentConfig) -> Agent {
        Agent::elsewhere(
            self.lab,
            &self.name,
            &self.netns,
            &self.directory,
            self.lifetime,
            config,
        )
    }

    /// The stock flannel.
    ///
    /// # Panics
    /// On a node with another role.
    pub fn stock(&self) -> &Stock {
        self.try_stock()
            .unwrap_or_else(|| panic!("node {} is no stock node", self.name))
    }

    /// The stock flannel, if that is the node's role.
    pub fn try_stock(&self) -> Option<&Stock> {
        match &self.flanneld {
            Flanneld::Stock(stock) => Some(stock),
            Flanneld::Agent(_) | Flanneld::Nobody => None,
        }
    }

    /// The node's `subnet.env`, as the agent or the stock flannel has written it.
    ///
    /// # Errors
    /// If it is not there or malformed.
    pub fn subnet_env(&self) -> Result<SubnetEnv> {
        let path = self.directory.join("subnet.env");
        fs::read_to_string(&path)
            .context("read", path.display())?
            .parse()
    }

    /// Makes a pod and attaches it with the CNI plugins.
    ///
    /// # Errors
    /// Without `subnet.env`, or what the plugins report.
    pub fn add_pod(&self) -> Result<Pod> {
        self.add_pod_with(Wishes::default())
    }

    /// As [`Node::add_pod`], with host ports or limits.
    ///
    /// # Errors
    /// As [`Node::add_pod`].
    pub fn add_pod_with(&self, wishes: Wishes) -> Result<Pod> {
        self.attach(PodConfig {
            plugin: "bridge".into(),
            network: cni::delegate_config(&self.subnet_env()?, &self.address_directory()),
            wishes,
        })
    }

    /// As [`Node::add_pod`], by flannel's own CNI plugin, which `program` is the path of: it reads `subnet.env` itself.
    ///
    /// # Errors
    /// As [`Node::add_pod`].
    pub fn add_pod_by(&self, program: &Path) -> Result<Pod> {
        self.attach(PodConfig {
            plugin: program.to_owned(),
            network: cni::flannel_config(&self.directory, &self.address_directory()),
            wishes: Wishes::default(),
        })
    }

    /// Makes the namespace of a pod, which nothing is attached to yet, and gives it the pod's name.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new_pod_namespace(&self) -> Result<(String, Netns)> {
        let name = format!(
            "{}-p{}",
            self.name,
            self.next_pod.fetch_add(1, Ordering::Relaxed)
        );
        let netns = Netns::create_with(&self.lab.namespace(&name), self.lifetime)?;
        underlay::set_ipv6(&netns, self.ipv6)?;
        process::run(Some(&netns), "ip", &["link", "set", "lo", "up"])?;
        Ok((name, netns))
    }

    /// Where `host-local` remembers addresses.
    fn address_directory(&self) -> PathBuf {
        self.directory.join("cni")
    }

    fn attach(&self, config: PodConfig) -> Result<Pod> {
        let (name, netns) = self.new_pod_namespace()?;
        let attachment = cni::add(&self.netns, &netns, &config)?;
        let pod = Pod {
            name,
            netns,
            attachment,
            config,
        };
        self.lock_pods().push(pod.clone());
        Ok(pod)
    }

    /// Detaches a pod with the CNI plugins and removes its namespace.
    ///
    /// # Errors
    /// What the plugins report.
    pub fn delete_pod(&self, pod: Pod) -> Result<()> {
        cni::delete(&self.netns, &pod.netns, &pod.config)?;
        netns::remove(pod.netns.path())?;
        self.lock_pods().retain(|other| other.name != pod.name);
        Ok(())
    }

    /// The pods that it has now.
    pub fn pods(&self) -> Vec<Pod> {
        self.lock_pods().clone()
    }

    /// Takes the node's power away: its agent is killed, its pods and its own namespace lose their names.
    pub(crate) fn power_off(&self) -> Result<()> {
        if let Some(agent) = self
            .try_agent()
            .filter(|agent| agent.check_running().is_ok())
        {
            agent.kill()?;
        }
        // Handles may keep the namespace alive: without this it would go on forwarding.
        underlay::ip_batch(&self.netns, "link delete eth0\n")?;
        let pods = std::mem::take(&mut *self.lock_pods());
        pods.iter()
            .try_for_each(|pod| netns::remove(pod.netns.path()))?;
        netns::remove(self.netns.path())
    }

    fn lock_pods(&self) -> std::sync::MutexGuard<'_, Vec<Pod>> {
        self.pods
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Makes a node known to the store of leases, if nodes do not do that themselves.
fn register(settings: &Settings, name: &str, number: u8, segment: Segment) -> Result<()> {
    if settings.store.etcd().is_some() {
        return Ok(());
    }
    let address = segment.address(number);
    let address6 = settings.ipv6.then(|| segment.address6(number));
    let addresses = std::iter::once(address.into())
        .chain(address6.map(Into::into))
        .collect::<Vec<_>>();
    let (subnet, subnet6) = stock::subnets_of_number(&settings.network, number)?;
    let value = stock::lease_of_number(&settings.network, number, address, address6);
    settings.store.add_node(&NewNode {
        name,
        addresses: &addresses,
        subnet,
        subnet6,
        value: value.as_deref(),
    })
}

/// A pod: a namespace with an `eth0` on its node's bridge. A cheap handle.
#[derive(Clone, Debug)]
pub struct Pod {
    name: String,
    netns: Netns,
    attachment: Attachment,
    config: PodConfig,
}

impl Pod {
    /// `n1-p1`, …
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.attachment.address
    }

    /// Its IPv6 address, in a dual-stack network.
    pub fn address6(&self) -> Option<Ipv6Addr> {
        self.attachment.address6
    }

    /// What the CNI plugin said about it: MAC address, gateway, host side of the veth.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }
}

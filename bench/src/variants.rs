//! What is compared: backends, with and without rules, and who carries the packets.

use serde::{Deserialize, Serialize};

/// How nodes reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// Encapsulated.
    Vxlan,
    /// Routed.
    HostGw,
}

impl Backend {
    /// As in the network config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
        }
    }

    /// The largest packet of a pod, in bytes, on a wire as Ethernet's.
    pub fn mtu(self) -> u16 {
        match self {
            Self::Vxlan => 1450,
            Self::HostGw => 1500,
        }
    }
}

/// In which form nodes hold the rules of services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rules {
    /// As kube-proxy writes them for iptables.
    #[default]
    Iptables,
    /// As it writes them for nftables.
    Nftables,
}

impl Rules {
    /// What the report calls them.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

/// What all clusters that are compared have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// How nodes reach each other.
    pub backend: Backend,
    /// Services whose rules each node holds; with none there is no bridge netfilter and no rule of flannel's either.
    pub services: usize,
    /// The form of those rules.
    pub rules: Rules,
    /// Whether bridged packets meet iptables, as Kubernetes wants it.
    pub bridge_netfilter: bool,
}

impl Setting {
    /// Nodes as they mostly are: rules for iptables, and bridge netfilter where there are any.
    pub fn usual(backend: Backend, services: usize) -> Self {
        Self {
            backend,
            services,
            rules: Rules::default(),
            bridge_netfilter: services > 0,
        }
    }

    /// Whether nodes are as [`Self::usual`] has them.
    pub fn is_usual(self) -> bool {
        self == Self::usual(self.backend, self.services)
    }

    /// What the report calls it, beside the backend.
    pub fn label(self) -> String {
        let Self {
            services,
            rules,
            bridge_netfilter,
            ..
        } = self;
        if self.is_usual() {
            return format!("{services} services");
        }
        let bridge = if bridge_netfilter { "on" } else { "off" };
        format!(
            "{services} services by {}, bridge netfilter {bridge}",
            rules.name()
        )
    }
}

/// How packets travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Carrier {
    /// By the kernel alone: `--fast-path=off`.
    Kernel,
    /// The same in another cluster: how far two equal things differ here.
    KernelAgain,
    /// By BPF, whatever the topology allows: `--fast-path=subnet`.
    Subnet,
    /// By BPF, what the kernel has permitted: `--fast-path=flow`. As shipped.
    Flow,
    /// As `Flow`, but what arrives is decapsulated by the kernel: `--fast-path-ingress=vtep`.
    Vtep,
    /// As `Flow`, but what leaves is encapsulated by the kernel: `--fast-path-egress=assist`.
    Assist,
    /// As `Flow`, but what pods send is taken up at the bridge: `--fast-path-pods=bridge`.
    Bridge,
    /// As `Flow`, but decapsulated before the kernel makes a packet of it: `--fast-path-ingress=xdp`.
    Xdp,
    /// By the kernel from node to node, without pods and without a rule.
    Native,
    /// No packets: `ip -batch` and `bridge -batch` set up what an agent would.
    Batch,
    /// Nowhere: the sink takes them where they are made. Part of every other number that the generator makes.
    Generator,
}

impl Carrier {
    /// What the report calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::KernelAgain => "kernel again",
            Self::Subnet => "fast path, subnet",
            Self::Flow => "fast path, flow",
            Self::Vtep => "flow, vtep",
            Self::Assist => "flow, assist",
            Self::Bridge => "flow, bridge",
            Self::Xdp => "flow, xdp",
            Self::Native => "native host",
            Self::Batch => "ip -batch",
            Self::Generator => "generator alone",
        }
    }

    /// The carrier whose cluster it uses.
    pub fn bed(self) -> Self {
        match self {
            Self::Generator => Self::Kernel,
            other => other,
        }
    }

    /// `--fast-path`; none without an agent.
    pub fn mode(self) -> Option<&'static str> {
        match self {
            Self::Kernel | Self::KernelAgain | Self::Generator => Some("off"),
            Self::Subnet => Some("subnet"),
            Self::Flow | Self::Vtep | Self::Assist | Self::Bridge | Self::Xdp => Some("flow"),
            Self::Native | Self::Batch => None,
        }
    }

    /// What the agent is told beside that.
    pub fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Vtep => &["--fast-path-ingress=vtep"],
            Self::Assist => &["--fast-path-egress=assist"],
            Self::Bridge => &["--fast-path-pods=bridge"],
            Self::Xdp => &["--fast-path-ingress=xdp"],
            _ => &[],
        }
    }

    /// Whether BPF is to carry what may be fast.
    pub fn is_fast(self) -> bool {
        self == Self::Subnet || self.asks_the_kernel()
    }

    /// Whether flows must be permitted before.
    pub fn asks_the_kernel(self) -> bool {
        self.mode() == Some("flow")
    }

    /// Whether it is one of the hooks that are used on request, or where a kernel lacks the others.
    pub fn is_tier(self) -> bool {
        !self.arguments().is_empty()
    }

    /// Whether it says anything in a setting that is worth its time.
    pub fn applies(self, setting: Setting) -> bool {
        match self {
            Self::Vtep | Self::Assist | Self::Xdp if setting.backend == Backend::HostGw => false,
            _ if self.is_tier() => setting.is_usual() && setting.services > 0,
            Self::Subnet | Self::Native => setting.is_usual(),
            _ => true,
        }
    }
}

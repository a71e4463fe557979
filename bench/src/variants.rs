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
}

/// What all clusters that are compared have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// How nodes reach each other.
    pub backend: Backend,
    /// Services whose rules each node holds; with none there is no bridge netfilter and no rule of flannel's either.
    pub services: usize,
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
    /// By the kernel from node to node, without pods and without a rule.
    Native,
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
            Self::Native => "native host",
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
            Self::Flow => Some("flow"),
            Self::Native => None,
        }
    }

    /// Whether BPF is to carry what may be fast.
    pub fn is_fast(self) -> bool {
        matches!(self, Self::Subnet | Self::Flow)
    }
}

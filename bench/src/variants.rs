//! What is compared: backends, with and without rules, and who carries the packets.

use serde::Serialize;

/// How nodes reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// How nodes reach each other.
    pub backend: Backend,
    /// Services whose rules each node holds; with none there is no bridge netfilter and no rule of flannel's either.
    pub services: usize,
}

/// How packets travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Carrier {
    /// By the kernel alone: `--fast-path=off`.
    Kernel,
    /// The same in another cluster: how far two equal things differ here.
    KernelAgain,
    /// By BPF: `--fast-path=subnet`.
    Subnet,
    /// Nowhere: the sink takes them where they are made. Part of every other number.
    Generator,
}

impl Carrier {
    /// All, in the order of the report.
    pub const ALL: [Self; 4] = [
        Self::Kernel,
        Self::KernelAgain,
        Self::Subnet,
        Self::Generator,
    ];

    /// What the report calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::KernelAgain => "kernel again",
            Self::Subnet => "fast path, subnet",
            Self::Generator => "generator alone",
        }
    }
}

//! The BPF fast path: probing, loading, attaching, pinning, map contents, counters.
//!
//! The only code that touches BPF. It is a cache in front of the kernel path: whatever fails here costs speed, never
//! packets, so no error leaves this module except as a reason in the status.

pub mod btf;
mod bypass;
mod engine;
mod error;
mod ethtool;
pub mod facts;
pub mod flows;
mod hooks;
pub mod indexed;
pub mod object;
mod pin;
pub mod plain;
pub mod probe;
mod routes;
mod slots;
mod sys;
pub mod table;
mod tables;
pub mod tier;
mod topology;
mod xdp;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::Error;
use ipnet::IpNet;
pub use tier::{Attest, Egress, Ingress};
pub use topology::{Device, PeerRoute, Peers, Pod, Topology, Vtep};
use tracing::{info, warn};

use self::engine::Engine;
use crate::status;

/// Which traffic BPF may carry: `--fast-path`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// None: stock flannel.
    #[default]
    Off,
    /// All that the topology allows, for clusters with no NAT and no policy on pod-to-pod traffic.
    Subnet,
    /// Flows that the kernel has attested: established, not translated, passed by every chain.
    Flow,
}

impl Mode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Off, Self::Subnet, Self::Flow];

    /// The name that the option and the status use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Subnet => "subnet",
            Self::Flow => "flow",
        }
    }
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum AttachBy {
    /// By TCX links where the kernel has them, else as clsact filters.
    #[default]
    Auto,
    /// By TCX links.
    Tcx,
    /// As clsact filters.
    Clsact,
}

/// Where packets of pods are taken up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum PodHook {
    /// At each pod's veth; at the bridge for pods whose veth takes no program, if that is cheaper than the kernel.
    #[default]
    Auto,
    /// At the bridge for all pods: for measurements.
    Bridge,
}

/// Settings; only the mode changes while the agent runs.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which traffic BPF may carry.
    pub mode: Mode,
    /// Where maps and links are pinned; one directory per node, on a BPF file system.
    pub pin_dir: PathBuf,
    /// Who encapsulates.
    pub egress: Egress,
    /// Where packets from other nodes are taken up.
    pub ingress: Ingress,
    /// How programs are attached.
    pub attach: AttachBy,
    /// Where packets of pods are taken up.
    pub pod_hook: PodHook,
    /// A BPF object to load instead of the one that is built in.
    pub object: Option<PathBuf>,
    /// Who attests flows.
    pub attest: Attest,
    /// The bit of packets' marks by which netfilter attests, if it does.
    pub mark: u32,
    /// How many flows are remembered at most; zero for as many as the object says.
    pub flows: u32,
    /// Whether IPv6 is served beside IPv4.
    pub ipv6: bool,
    /// Age of an attestation from which a flow is probed.
    pub revalidate: Duration,
    /// How much longer it stays fast without an answer.
    pub grace: Duration,
    /// How long programs act without a sign of life of the agent.
    pub heartbeat: Duration,
    /// Whether packets with a source address that is not their sender's are dropped.
    pub strict: bool,
    /// Where the former value of a host setting is noted that the fast path changes.
    pub state_file: PathBuf,
}

/// The running fast path.
pub struct FastPath {
    options: Options,
    /// The mark, once it was needed.
    mark: Option<u32>,
    state: State,
}

enum State {
    Off,
    Unavailable(Error),
    Loaded(Box<Engine>),
}

impl FastPath {
    /// Loads the programs, or adopts those of an earlier run. Never fails: what could not be done is in the status.
    pub fn start(options: Options) -> Self {
        let state = match options.mode {
            Mode::Off => State::Off,
            Mode::Subnet | Mode::Flow => match Engine::load(options.clone()) {
                Ok(engine) => State::Loaded(Box::new(engine)),
                Err(error) => State::Unavailable(error),
            },
        };
        // Programs of an earlier run would go on with maps that nobody updates.
        if !matches!(state, State::Loaded(_)) {
            match pin::remove(&options.pin_dir) {
                Ok(removed) if removed.is_empty() => {}
                Ok(removed) => info!(
                    pins = removed.len(),
                    "detached the programs of an earlier run"
                ),
                Err(error) => warn!(%error, "programs of an earlier run stay attached"),
            }
        }
        Self {
            options,
            mark: None,
            state,
        }
    }

    /// Carries other traffic from the next [`sync`](Self::sync) on; what the new mode does not allow is the kernel's at
    /// once.
    pub fn change(&mut self, mode: Mode) {
        let options = Options {
            mode,
            ..self.options.clone()
        };
        match &mut self.state {
            State::Loaded(engine) if mode != Mode::Off => {
                engine.change(mode);
                self.options = options;
            }
            _ => {
                *self = Self {
                    mark: self.mark,
                    ..Self::start(options)
                }
            }
        }
    }

    /// Brings maps and hooks in line with `topology`. Idempotent.
    pub fn sync(&mut self, topology: &Topology) {
        if let State::Loaded(engine) = &mut self.state {
            engine.sync(topology);
        }
    }

    /// Brings the maps in line where only these peers have changed since the last call; `topology` is as it is now.
    pub fn change_peers(&mut self, topology: &Topology, subnets: &[IpNet]) {
        if let State::Loaded(engine) = &mut self.state {
            engine.change_peers(topology, subnets);
        }
    }

    /// Whether a pod will be served soon, by another [`sync`](Self::sync).
    pub fn waits(&self) -> bool {
        matches!(&self.state, State::Loaded(engine) if engine.waits())
    }

    /// The bit of packets' marks that netfilter must set on what it attests, if it is netfilter that does; also while
    /// another mode does not need it, so that the rule does not come and go.
    pub fn mark(&mut self) -> Option<u32> {
        if let State::Loaded(engine) = &self.state {
            self.mark = self.mark.or(engine.mark());
        }
        self.mark
    }

    /// What keeps the whole node on the kernel's path, and what can be done about it.
    pub fn problem(&self) -> Option<String> {
        let error = match &self.state {
            State::Off => None,
            State::Unavailable(error) => Some(error),
            State::Loaded(engine) => engine.failure(),
        }?;
        Some(format!("{error}; {}", error.remedy()))
    }

    /// What is attached, why not more, and what the counters say.
    pub fn status(&self) -> status::FastPath {
        let mut status = status::FastPath {
            mode: self.options.mode.name().into(),
            ..Default::default()
        };
        match &self.state {
            State::Off => {}
            State::Unavailable(error) => {
                status.reason = Some(error.to_string());
                status.remedy = Some(error.remedy().into());
            }
            State::Loaded(engine) => engine.report(&mut status),
        }
        status
    }
}

/// Whether this binary carries the BPF programs.
pub fn embedded() -> bool {
    object::bytes().is_some()
}

/// Detaches all programs and removes all pins below `pin_dir`; returns what was removed.
///
/// # Errors
/// When a pin exists and cannot be removed.
pub fn remove(pin_dir: &Path) -> Result<Vec<String>, Error> {
    pin::remove(pin_dir)
}

//! Why the fast path, or a part of it, is not there; and what an operator can do about it.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::pin::PinError;
use aya::programs::ProgramError;
use aya::programs::links::LinkError;
use aya::programs::tc::TcError;

/// A failure of the fast path. The kernel path does not depend on any of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The binary was built without the programs.
    #[error("this binary was built without the BPF programs")]
    NoObject,
    /// The object that was named cannot be read.
    #[error("--bpf-object = {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no BPF file system to pin to.
    #[error("no BPF file system at {}: {source}", path.display())]
    NoBpfFs {
        /// Where it was looked for or should have been mounted.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A pin could not be made or removed.
    #[error("pin {}: {source}", path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The object or one of its maps was refused.
    #[error("BPF object refused: {}", chain(source))]
    Object {
        /// What aya said.
        source: Box<EbpfError>,
    },
    /// A program was refused.
    #[error("BPF program {program} refused: {}", chain(source))]
    Program {
        /// Its name.
        program: &'static str,
        /// What aya said.
        source: Box<ProgramError>,
    },
    /// The object lacks a map or program that this binary expects.
    #[error("the BPF object has no {name}")]
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// A program could not be attached to an interface.
    #[error("cannot attach {program} to {device}: {reason}")]
    Attach {
        /// Its name.
        program: &'static str,
        /// The interface's name.
        device: String,
        /// The whole chain of causes.
        reason: String,
    },
    /// XDP cannot be had on the node's interface.
    #[error("--fast-path-ingress = xdp: not on {device}, so as nic: {reason}")]
    Xdp {
        /// The interface.
        device: String,
        /// Why not.
        reason: String,
    },
    /// Somebody else acts on packets at a place that the fast path would lead them past.
    #[error("{what} on {device} must see the packets")]
    Bypass {
        /// The interface.
        device: String,
        /// What is there.
        what: &'static str,
    },
    /// Conntrack was to attest flows, and cannot.
    #[error(
        "--fast-path-attest = conntrack: this kernel does not let BPF programs read conntrack entries"
    )]
    NoConntrack,
    /// Netfilter is to attest flows, and the rule for it is not there.
    #[error("the rule that marks what the kernel has passed is not installed")]
    NoMark,
    /// TCP must not be fast.
    #[error("TCP is not fast: {source}")]
    Strict {
        /// Why conntrack stays strict.
        source: crate::kernel::conntrack::Error,
    },
    /// A map could not be read or written.
    #[error("map {map}: {}", chain(source))]
    Map {
        /// Its name.
        map: &'static str,
        /// What aya said.
        source: Box<MapError>,
    },
}

impl Error {
    /// What an operator can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::File { .. } => "name a readable object, or leave the option out",
            Self::NoObject => "build with `cargo xtask build`, which embeds them",
            Self::NoBpfFs { .. } | Self::Pin { .. } => {
                "mount it (`mount -t bpf bpf /sys/fs/bpf`), or give the container that host path and a --pin-dir below it"
            }
            Self::Object { .. } | Self::Program { .. } => {
                "give the agent CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (before 5.8: CAP_SYS_ADMIN) on kernel 5.10 or newer, or set --fast-path=off"
            }
            Self::Missing { .. } => {
                "rebuild with `cargo xtask build`: agent and BPF object are of different versions"
            }
            Self::Attach { .. } => {
                "see the reason; the agent tries again at the next change and every few seconds"
            }
            Self::Xdp { .. } => {
                "use an interface whose driver has native XDP beside its offloads and no other XDP program, or --fast-path-ingress=nic"
            }
            Self::Bypass { .. } => {
                "move it to the pods' veths or remove it, and the fast path comes back by itself"
            }
            Self::NoConntrack => {
                "give the agent CAP_PERFMON on a kernel with /sys/kernel/btf, or leave the choice to the agent with --fast-path-attest=auto"
            }
            Self::NoMark => {
                "it is written at the start and looked at every few seconds: see the problem with the rules"
            }
            Self::Strict { .. } => {
                "set net.netfilter.nf_conntrack_tcp_be_liberal = 1 on the host, or let the agent write /proc/sys"
            }
            Self::Map { .. } => "see the reason; the kernel path carries what the map lacks",
        }
    }

    pub(super) fn attach(
        program: &'static str,
        device: &str,
        cause: &dyn std::error::Error,
    ) -> Self {
        Self::Attach {
            program,
            device: device.to_owned(),
            reason: chain(cause),
        }
    }
}

macro_rules! attach_causes {
    ($($cause:ty),*) => { $(impl AttachCause for $cause {})* };
}

/// What can go wrong on the way to an attached program.
pub(super) trait AttachCause: std::error::Error + Sized {
    /// With the program and interface that it happened to.
    fn at(self, program: &'static str, device: &str) -> Error {
        Error::attach(program, device, &self)
    }
}

attach_causes!(ProgramError, LinkError, PinError, TcError, io::Error);

/// An error with all its causes in one line; verifier logs, which have many lines, by their last.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let message = error.to_string();
        let line = message
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .unwrap_or_default()
            .trim();
        let first = message.lines().next().unwrap_or_default().trim();
        if !text.contains(first) || text.is_empty() {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(first);
            if line != first {
                text.push_str(" … ");
                text.push_str(line);
            }
        }
        next = error.source();
    }
    text
}

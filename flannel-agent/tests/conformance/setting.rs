//! With what the suite's agents run, and what is there to be tested.

use anyhow::bail;
use lab::{ClusterConfig, NodeConfig};

use crate::support::{self, Backend, Outcome, Path, Setting, Skipped};

/// Agents with the fast path that operators get, or without where the build has none.
pub(crate) fn of(backend: Backend) -> Setting {
    let path = match support::missing(Path::Flow) {
        None => Path::Flow,
        Some(_) => Path::Kernel,
    };
    Setting {
        backend,
        path,
        mark: false,
        broken: None,
    }
}

/// Of VXLAN, flannel's usual backend.
pub(crate) fn vxlan() -> Setting {
    of(Backend::Vxlan)
}

/// Of host-gw.
pub(crate) fn host_gw() -> Setting {
    of(Backend::HostGw)
}

/// So many agents, each with `pods` pods, in a network of any kind.
pub(crate) fn agents(count: usize, pods: usize, network: &str) -> ClusterConfig {
    let setting = vxlan();
    ClusterConfig {
        pods,
        network: network.to_owned(),
        ..setting.cluster(vec![setting.node(); count])
    }
}

/// An agent and a stock node with a pod each, in a network of any kind.
pub(crate) fn mixed(network: &str) -> ClusterConfig {
    ClusterConfig {
        network: network.to_owned(),
        ..vxlan().cluster(vec![vxlan().node(), NodeConfig::stock()])
    }
}

/// Runs a test of a network, or skips it where this kernel cannot carry it.
pub(crate) fn if_carried(network: &str, test: impl FnOnce() -> Outcome) -> Outcome {
    if let Some(reason) = lab::stock::missing(network)? {
        bail!(Skipped(reason));
    }
    test()
}

//! The lab: flannel clusters on one machine, for tests, the demo and the benchmark.
//!
//! Nodes and pods are network namespaces; etcd (or a Kubernetes API server in this process), the agents and the CNI plugins are the real programs; stock flannel
//! nodes are built from iproute2 commands. Everything in a cluster is its own: any number of them run side by side, in
//! one process or several.
//!
//! ```no_run
//! # fn main() -> lab::Result<()> {
//! use lab::{AgentConfig, Cluster, ClusterConfig, NodeConfig, traffic::udp::UdpPlan};
//! let agent = AgentConfig::new("target/debug/flannel-agent").with_fast_path("subnet");
//! let cluster = Cluster::start(ClusterConfig {
//!     nodes: vec![NodeConfig::agent(&agent), NodeConfig::agent(&agent), NodeConfig::stock()],
//!     pods: 2,
//!     ..ClusterConfig::default()
//! })?;
//! let (from, to) = (&cluster.node(1).pods()[0], &cluster.node(3).pods()[1]);
//! let report = lab::traffic::udp::run(from, to, UdpPlan { packets: 1000, rate: 5000, size: 64 })?;
//! assert_eq!(report.lost, 0);
//! # Ok(())
//! # }
//! ```
//!
//! What must never happen: a packet that leaves the machine, a process killed that is not ours, a leftover after the
//! cluster is dropped, the process is interrupted, or (at the next start) killed. [`state`] says how.

pub mod agent;
pub mod capture;
pub mod cluster;
pub mod cni;
pub mod counters;
pub mod daemon;
pub mod error;
pub mod etcd;
pub mod exposition;
pub mod inject;
pub mod kube;
pub mod lease;
pub mod lease_store;
pub mod mounts;
pub mod netns;
pub mod node;
pub mod proc;
pub mod process;
#[cfg(feature = "programs")]
pub mod programs;
pub mod services;
pub mod signals;
pub mod state;
pub mod status;
pub mod stock;
pub mod traffic;
pub mod underlay;
pub mod wait;

pub use agent::{Agent, AgentConfig};
pub use cluster::{Cluster, ClusterConfig, Step};
pub use error::{Error, Result};
pub use lease_store::LeaseStore;
pub use netns::Netns;
pub use node::{Node, NodeConfig, Pod, Role};
pub use process::Lifetime;
pub use underlay::{Segment, Underlay};

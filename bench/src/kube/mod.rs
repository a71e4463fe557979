//! Kubernetes for the lab: an API server in this process, and the real one.

pub mod apiserver;
pub mod audit;
pub mod kubelet;
pub mod lease;
#[cfg(feature = "api-server")]
pub mod mock;
mod objects;

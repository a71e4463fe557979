//! Kubernetes for the lab.

pub mod lease;
#[cfg(feature = "api-server")]
pub mod mock;

//! Kubernetes for the lab.

#[cfg(feature = "api-server")]
pub mod mock;

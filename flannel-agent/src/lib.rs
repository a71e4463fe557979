//! A drop-in for flanneld.
pub mod fastpath;
pub mod status;

//! What the BPF programs and the agent must agree on.
//!
//! - [`wire`]: header layouts and their fields, one protocol per file
//! - [`checksum`]: Internet checksums, whole and incremental
//! - [`maps`]: keys and values of the BPF maps, and the version of that layout
//! - [`family`]: what IPv4 and IPv6 have in common, so that decisions are written once
//! - [`flow`]: what is remembered of a flow, and the map of flows
//! - [`decide`]: what to do with a packet, as pure functions
//! - [`outcome`]: the numbered results of those decisions, each with a counter
//! - [`generator`]: what the benchmark and its packet generator agree on
//!
//! Nothing here touches a kernel, a file or a clock. BPF programs, host tests, fuzzers and benchmarks compile this very
//! source.
#![cfg_attr(not(any(test, feature = "testing")), no_std)]
#![forbid(unsafe_code)]

pub mod addr;
pub mod checksum;
pub mod decide;
pub mod family;
pub mod flow;
pub mod generator;
pub mod maps;
pub mod outcome;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod wire;

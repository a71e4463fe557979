//! Packets for host tests, program runs and benchmarks: built once here, by name.
//!
//! - [`frame`]: builds frames with right lengths and checksums
//! - [`node`]: one node of a small cluster, with the map contents that its agent would write
//! - [`fixtures`]: named rows of hook, packet and what must become of it
//! - [`model`]: what a hook does with a packet, on the host
//!
//! What a fixture expects is written down with the builder. It must never be computed by the code under test.

pub mod fixtures;
pub mod frame;
pub mod memory;
pub mod model;
pub mod node;
pub mod node6;

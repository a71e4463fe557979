//! What the pure functions cost on the host: `cargo bench -p flannel-common`.
//!
//! - `decisions`: each hook's decision on packets of the fixtures, found in the way that programs find things
//! - `permission`: whether a packet of a remembered flow may be fast, by what is remembered
//! - `headers`: the parts, which are reading, checksums, encapsulation and the key of a flow
//! - `maps`: the maps that they ask, as cheap as can be
//!
//! The compiler is that of the host and no helper of the kernel is called, so figures order versions of this source and say
//! nothing of what a packet costs: `cargo xtask bench` does. Each benchmark checks what it measures first.

mod decisions;
mod headers;
mod maps;
mod permission;

/// Calls that are timed together: many, as one takes less than the clock can tell.
const CALLS: u32 = 10_000;

fn main() {
    divan::Divan::default()
        .sample_size(CALLS)
        .config_with_args()
        .main();
}

//! Decisions on the named packets and on random ones.

mod fixtures;
mod flow;
mod probes;
mod properties;
mod sizes;

use super::Meta;

/// What the kernel would say of a packet that arrived at `ifindex` and is for this host.
fn meta(frame: &[u8], ifindex: u32) -> Meta {
    Meta {
        len: frame.len() as u32,
        ifindex,
        to_us: true,
        ..Meta::default()
    }
}

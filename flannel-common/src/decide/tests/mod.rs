//! Decisions on the named packets and on random ones.

mod fixtures;
mod flow;
mod ipv6;
mod probes;
mod properties;
mod sizes;
mod v4;
mod v6;

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

//! The kernel's side: reading its state, comparing, changing it, and hearing of changes by others.
//!
//! The only code that writes kernel objects. Everything goes over netlink, `/proc/sys/net`, and one transaction of
//! `iptables-restore` or `nft` for rules; nothing calls `ip`.

pub mod apply;
pub mod blackhole;
pub mod connections;
pub mod conntrack;
pub mod decode;
pub mod diff;
pub mod dump;
pub mod events;
pub mod ipsec;
pub mod netlink;
pub mod objects;
pub mod observe;
pub mod pods;
pub mod rules;
pub mod traffic_control;

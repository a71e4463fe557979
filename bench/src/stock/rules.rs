//! Masquerade and forward rules of a stock node, as flanneld writes them with iptables.

use std::fmt::Display;

use crate::{error::Result, netns::Netns, process};

/// Writes the rules of both families that there are: program, network, subnet, and multicast's network.
pub(super) fn install(
    netns: &Netns,
    program: &str,
    network: &dyn Display,
    subnet: &dyn Display,
    multicast: &str,
) -> Result<()> {
    const MASQ: &str = r#"-m comment --comment "flanneld masq""#;
    const FORWARD: &str = r#"-m comment --comment "flanneld forward""#;
    let rules = format!(
        "*filter\n\
         :FLANNEL-FWD - [0:0]\n\
         -A FORWARD {FORWARD} -j FLANNEL-FWD\n\
         -A FLANNEL-FWD -s {network} {FORWARD} -j ACCEPT\n\
         -A FLANNEL-FWD -d {network} {FORWARD} -j ACCEPT\n\
         COMMIT\n\
         *nat\n\
         :FLANNEL-POSTRTG - [0:0]\n\
         -A POSTROUTING {MASQ} -j FLANNEL-POSTRTG\n\
         -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {MASQ} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {subnet} -d {network} {MASQ} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {network} -d {subnet} {MASQ} -j RETURN\n\
         -A FLANNEL-POSTRTG ! -s {network} -d {subnet} {MASQ} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {network} ! -d {multicast} {MASQ} -j MASQUERADE --random-fully\n\
         -A FLANNEL-POSTRTG ! -s {network} -d {network} {MASQ} -j MASQUERADE --random-fully\n\
         COMMIT\n"
    );
    process::run_with_input(Some(netns), program, &["--noflush", "--wait"], &rules).map(drop)
}

//! Masquerade and forward rules of a stock node, as flanneld writes them, with the tool that the network config says.
//!
//! As at each start of flanneld: with iptables its chains are emptied, and filled a moment later; with nftables one
//! transaction does both.

use std::fmt::Display;

use super::netconf::NetConf;
use crate::{
    error::Result,
    lease::{Subnet, Subnet6},
    netns::Netns,
    process,
};

/// Writes the rules of all families that the network has.
pub(super) fn install(
    netns: &Netns,
    config: &NetConf,
    subnet: Subnet,
    subnet6: Option<Subnet6>,
) -> Result<()> {
    let write = |rules: &Rules<'_>| {
        if config.enable_nftables {
            rules.by_nftables(netns)
        } else {
            rules.by_iptables(netns)
        }
    };
    if config.enable_nftables {
        make_tables(netns)?;
    }
    write(&Rules {
        family: IPV4,
        network: &config.networks.network,
        subnet: &subnet,
    })?;
    let ipv6 = config.networks.ipv6.zip(subnet6);
    ipv6.map_or(Ok(()), |((network, _), subnet)| {
        write(&Rules {
            family: IPV6,
            network: &network,
            subnet: &subnet,
        })
    })
}

/// The rules of one family.
struct Rules<'a> {
    family: Family,
    network: &'a dyn Display,
    /// The node's.
    subnet: &'a dyn Display,
}

/// What differs between families.
#[derive(Clone, Copy)]
struct Family {
    iptables: &'static str,
    nftables: &'static str,
    table: &'static str,
    multicast: &'static str,
}

/// IPv4's tools and addresses.
const IPV4: Family = Family {
    iptables: "iptables",
    nftables: "ip",
    table: "flannel-ipv4",
    multicast: "224.0.0.0/4",
};

/// IPv6's.
const IPV6: Family = Family {
    iptables: "ip6tables",
    nftables: "ip6",
    table: "flannel-ipv6",
    multicast: "ff00::/8",
};

/// One of flannel's chains of iptables.
struct Chain {
    table: &'static str,
    name: &'static str,
    base: &'static str,
    /// What every rule says beside its condition.
    comment: &'static str,
}

const MASQUERADE: Chain = Chain {
    table: "nat",
    name: "FLANNEL-POSTRTG",
    base: "POSTROUTING",
    comment: "flanneld masq",
};

const FORWARD: Chain = Chain {
    table: "filter",
    name: "FLANNEL-FWD",
    base: "FORWARD",
    comment: "flanneld forward",
};

/// Makes nftables' tables of both families, as flanneld does whatever the network has.
fn make_tables(netns: &Netns) -> Result<()> {
    let add = |Family {
                   nftables, table, ..
               }: Family| {
        format!("add table {nftables} {table} {{ comment \"rules for {table}\"; }}\n")
    };
    let script = add(IPV4) + &add(IPV6);
    process::run_with_input(Some(netns), "nft", &["-f", "-"], &script).map(drop)
}

impl Rules<'_> {
    /// Writes them with iptables.
    fn by_iptables(&self, netns: &Netns) -> Result<()> {
        let Self {
            network, subnet, ..
        } = self;
        let multicast = self.family.multicast;
        self.fill(
            netns,
            &MASQUERADE,
            &[
                ("-m mark --mark 0x4000/0x4000".to_owned(), "RETURN"),
                (format!("-s {subnet} -d {network}"), "RETURN"),
                (format!("-s {network} -d {subnet}"), "RETURN"),
                (format!("! -s {network} -d {subnet}"), "RETURN"),
                (
                    format!("-s {network} ! -d {multicast}"),
                    "MASQUERADE --random-fully",
                ),
                (
                    format!("! -s {network} -d {network}"),
                    "MASQUERADE --random-fully",
                ),
            ],
        )?;
        self.fill(
            netns,
            &FORWARD,
            &[
                (format!("-s {network}"), "ACCEPT"),
                (format!("-d {network}"), "ACCEPT"),
            ],
        )
    }

    /// Empties a chain, or makes it; then, where its jump is already, that is made anew with the rules.
    fn fill(&self, netns: &Netns, chain: &Chain, rules: &[(String, &str)]) -> Result<()> {
        let Chain {
            table,
            name,
            base,
            comment,
        } = chain;
        let program = self.family.iptables;
        let restore = |lines: &str| {
            let program = format!("{program}-restore");
            let script = format!("*{table}\n{lines}COMMIT\n");
            process::run_with_input(Some(netns), &program, &["--noflush", "--wait"], &script)
        };
        restore(&format!(":{name} - [0:0]\n"))?;
        let jump = ["-m", "comment", "--comment", comment, "-j", name];
        let check = ["--wait", "-t", table, "-C", base];
        let is_there = process::run(Some(netns), program, &[&check[..], &jump].concat()).is_ok();
        let comment = format!("-m comment --comment \"{comment}\"");
        let jump = format!("{base} {comment} -j {name}\n");
        let mut lines = String::new();
        if is_there {
            lines += &format!("-D {jump}");
        }
        lines += &format!("-A {jump}");
        for (condition, verdict) in rules {
            lines += &format!("-A {name} {condition} {comment} -j {verdict}\n");
        }
        restore(&lines).map(drop)
    }

    /// Writes them with nftables (`EnableNFTables`), each chain in a transaction. The tables are made before.
    fn by_nftables(&self, netns: &Netns) -> Result<()> {
        let Self {
            network,
            subnet,
            family:
                Family {
                    nftables: ip,
                    table,
                    multicast,
                    ..
                },
        } = self;
        let of = format!("{ip} {table}");
        let transaction = |script: &str| {
            process::run_with_input(Some(netns), "nft", &["-f", "-"], script).map(drop)
        };
        transaction(&format!(
            "add chain {of} postrtg {{ type nat hook postrouting priority srcnat; \
             comment \"chain to manage traffic masquerading by flannel\"; }}\n\
             flush chain {of} postrtg\n\
             add rule {of} postrtg meta mark 0x4000 return\n\
             add rule {of} postrtg {ip} saddr {subnet} {ip} daddr {network} return\n\
             add rule {of} postrtg {ip} saddr {network} {ip} daddr {subnet} return\n\
             add rule {of} postrtg {ip} saddr != {subnet} {ip} daddr {network} return\n\
             add rule {of} postrtg {ip} saddr {network} {ip} daddr != {multicast} masquerade fully-random\n\
             add rule {of} postrtg {ip} saddr != {network} {ip} daddr {network} masquerade fully-random\n"
        ))?;
        transaction(&format!(
            "add chain {of} forward {{ type filter hook forward priority filter; \
             comment \"chain to accept flannel traffic\"; }}\n\
             flush chain {of} forward\n\
             add rule {of} forward {ip} saddr {network} accept\n\
             add rule {of} forward {ip} daddr {network} accept\n"
        ))
    }
}

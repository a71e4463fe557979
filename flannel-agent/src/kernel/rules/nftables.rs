//! Rules as nftables tables: `ip flannel-ipv4` and `ip6 flannel-ipv6`, both always there as upstream's are, and the
//! fast path's own.

use std::fmt::Write as _;

use super::{Error, Rules, guard, multicast, process::run};
use crate::family::Family;

/// Writes all tables in one transaction.
pub fn install(rules: &Rules) -> Result<(), Error> {
    run(&["nft", "-f", "-"], &script(rules)).map(drop)
}

/// Lists all tables.
pub fn list(rules: &Rules) -> Result<String, Error> {
    let mut listing = String::new();
    for (family, name) in Family::ALL.map(table) {
        listing += &run(&["nft", "list", "table", family, name], "")?;
    }
    if !rules.guard.is_empty() {
        // Without counters, which every packet changes.
        let table = ["nft", "--stateless", "list", "table", "inet", guard::TABLE];
        listing += &run(&table, "")?;
    }
    let wanted = script(rules)
        .lines()
        .filter(|line| line.starts_with("add rule "))
        .count();
    // What is compared with later must not be what somebody has made of the rules in between.
    if listing.lines().filter(|line| is_rule(line)).count() != wanted {
        return Err(Error::Changed {
            what: "a table of nftables".into(),
        });
    }
    Ok(listing)
}

/// The input of `nft -f`.
fn script(rules: &Rules) -> String {
    rules.nft_script() + &rules.guard.nft_script()
}

/// Whether a line that `nft list table` prints is a rule: everything inside a chain but its head.
fn is_rule(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty()
        && !["table ", "comment ", "chain ", "type ", "}", "#"]
            .iter()
            .any(|head| line.starts_with(head))
}

/// Why nothing can be written with nftables here, if so.
pub fn objection() -> Option<Error> {
    run(&["nft", "list", "tables"], "").err()
}

/// Removes flannel's nftables tables, if there are any; returns what was removed. With `dry_run` only looks.
pub fn remove(dry_run: bool) -> Vec<String> {
    let [v4, v6] = Family::ALL.map(table);
    remove_tables(&[v4, v6, GUARD], dry_run)
}

/// As [`remove`], of the table that upstream does not know: the fast path's own.
pub fn remove_guard(dry_run: bool) -> Vec<String> {
    remove_tables(&[GUARD], dry_run)
}

fn remove_tables(tables: &[(&str, &str)], dry_run: bool) -> Vec<String> {
    // One look, which costs nothing where there are no tables.
    let Ok(present) = run(&["nft", "list", "tables"], "") else {
        return Vec::new();
    };
    tables
        .iter()
        .filter(|(family, name)| {
            let line = format!("table {family} {name}");
            present.lines().any(|present| present == line)
        })
        .filter(|(family, name)| {
            dry_run || run(&["nft", "delete", "table", family, name], "").is_ok()
        })
        .map(|(family, name)| format!("nftables table {family} {name}"))
        .collect()
}

/// nftables' family and the name of the fast path's table.
const GUARD: (&str, &str) = ("inet", guard::TABLE);

/// nftables' family and the name of a family's table.
const fn table(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::V4 => ("ip", "flannel-ipv4"),
        Family::V6 => ("ip6", "flannel-ipv6"),
    }
}

impl Rules {
    /// The input of `nft -f` without the fast path's rules: each table is made anew.
    pub(super) fn nft_script(&self) -> String {
        Family::ALL
            .into_iter()
            .map(|family| self.nft_table(family))
            .collect()
    }

    fn nft_table(&self, family: Family) -> String {
        let (ip, name) = table(family);
        let mut script = format!(
            "add table {ip} {name}\ndelete table {ip} {name}\nadd table {ip} {name} {{ comment \"rules for {name}\"; }}\n"
        );
        let Some((network, subnet)) = self.prefixes(family) else {
            return script;
        };
        if self.masquerade {
            let masquerade = if self.random_fully {
                "masquerade fully-random"
            } else {
                "masquerade"
            };
            // Upstream's two modes differ in two conditions, and so in what becomes of traffic from outside to other
            // nodes' pods. What the network config asks for holds, whatever the tool.
            let (marked, straight) = if self.mode.enable_nftables {
                (
                    "meta mark 0x4000",
                    format!("{ip} saddr != {subnet} {ip} daddr {network}"),
                )
            } else {
                (
                    "meta mark and 0x4000 == 0x4000",
                    format!("{ip} saddr != {network} {ip} daddr {subnet}"),
                )
            };
            let multicast = multicast(family);
            let _ = write!(
                script,
                "add chain {ip} {name} postrtg {{ comment \"chain to manage traffic masquerading by flannel\"; type nat hook postrouting priority srcnat; }}
add rule {ip} {name} postrtg {marked} return
add rule {ip} {name} postrtg {ip} saddr {subnet} {ip} daddr {network} return
add rule {ip} {name} postrtg {ip} saddr {network} {ip} daddr {subnet} return
add rule {ip} {name} postrtg {straight} return
add rule {ip} {name} postrtg {ip} saddr {network} {ip} daddr != {multicast} {masquerade}
add rule {ip} {name} postrtg {ip} saddr != {network} {ip} daddr {network} {masquerade}
"
            );
        }
        if self.forward {
            let _ = write!(
                script,
                "add chain {ip} {name} forward {{ comment \"chain to accept flannel traffic\"; type filter hook forward priority filter; }}
add rule {ip} {name} forward {ip} saddr {network} accept
add rule {ip} {name} forward {ip} daddr {network} accept
"
            );
        }
        script
    }
}

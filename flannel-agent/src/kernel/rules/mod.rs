//! Masquerade and forward rules: upstream's text, order and comments, written in one transaction.
//!
//! There is no moment without rules: chains are replaced by an atomic commit, and the jump to a chain is only added
//! where it is missing. A check compares what the tool lists with what it listed right after the rules were written,
//! so that a tool's own way of printing rules does not matter. No shell is involved, and no process per rule.

mod guard;

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::{Command, Stdio},
};

pub use guard::{Guard, Strict, Tunnel};
use ipnet::IpNet;

use crate::family::PerFamily;

/// The comment on every masquerade rule.
const MASQ: &str = "flanneld masq";
/// The comment on every forward rule.
const FORWARD: &str = "flanneld forward";
/// Packets that kube-proxy has marked for masquerading: value and mask.
const KUBE_MARK: &str = "0x4000/0x4000";
/// The first iptables that knows `--random-fully`.
const RANDOM_FULLY: (u32, u32, u32) = (1, 6, 2);

/// Why rules could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tool could not be started.
    #[error("{command}: {source}; install it, or choose the other tool with EnableNFTables")]
    Start {
        /// The command line.
        command: String,
        /// What the system said.
        source: io::Error,
    },
    /// The tool failed.
    #[error("{command}: {message}")]
    Failed {
        /// The command line.
        command: String,
        /// The tool's last line on standard error.
        message: String,
    },
}

/// The rules that should be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The flannel networks.
    pub networks: PerFamily<IpNet>,
    /// This node's subnets.
    pub subnets: PerFamily<IpNet>,
    /// Whether traffic that leaves the network is masqueraded.
    pub masquerade: bool,
    /// Whether masquerading chooses ports at random.
    pub random_fully: bool,
    /// Whether forwarded traffic of the network is accepted.
    pub forward: bool,
    /// nftables instead of iptables.
    pub nftables: bool,
    /// The fast path's own.
    pub guard: Guard,
}

/// What is there, as the tool prints it; compared with later, never parsed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing(String);

impl Rules {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        !self.masquerade && !self.forward && self.guard.is_empty()
    }

    /// What they do, for the status.
    pub fn names(&self) -> String {
        let parts = [
            ("masquerade", self.masquerade),
            ("forward", self.forward),
            ("attest", self.guard.mark.is_some()),
            ("anti-spoof", self.guard.strict.is_some()),
        ];
        let names: Vec<&str> = parts
            .into_iter()
            .filter_map(|(name, wanted)| wanted.then_some(name))
            .collect();
        names.join(", ")
    }

    /// Writes all rules, whatever is there, and lists them.
    ///
    /// # Errors
    /// When the tool is absent or fails; the rules are then as they were.
    pub fn install(&self) -> Result<Listing, Error> {
        if self.nftables {
            let script = self.nft_script() + &self.guard.nft_script();
            run(&["nft", "-f", "-"], &script)?;
        } else {
            let random_fully = self.random_fully && iptables_version()? >= RANDOM_FULLY;
            let missing = |table: &str, chain: &str, target: &str, comment: &str| {
                let jump = ["-m", "comment", "--comment", comment, "-j", target];
                iptables(&[&["-t", table, "-C", chain], &jump[..]].concat()).is_err()
            };
            let masquerade =
                self.masquerade && missing("nat", "POSTROUTING", "FLANNEL-POSTRTG", MASQ);
            let forward = self.forward && missing("filter", "FORWARD", "FLANNEL-FWD", FORWARD);
            let [attest, strict] = self.guard_chains().map(|(wanted, table, base, chain)| {
                wanted && iptables(&["-t", table, "-C", base, "-j", chain]).is_err()
            });
            let script = self.iptables_script(random_fully, masquerade, forward)
                + &self.guard.iptables_script(attest, strict);
            run(&["iptables-restore", "--noflush", "--wait"], &script)?;
            for (wanted, table, base, chain) in self.guard_chains() {
                if !wanted {
                    remove_chain(table, base, chain, &[], false);
                }
            }
        }
        self.list()
    }

    /// Lists what is there.
    ///
    /// # Errors
    /// When the tool is absent or fails, which it does if a chain is missing.
    pub fn list(&self) -> Result<Listing, Error> {
        if self.nftables {
            let mut listing = run(&["nft", "list", "table", "ip", "flannel-ipv4"], "")?;
            if !self.guard.is_empty() {
                // Without counters, which every packet changes.
                let table = ["nft", "--stateless", "list", "table", "inet", guard::TABLE];
                listing += &run(&table, "")?;
            }
            return Ok(Listing(listing));
        }
        let mut listing = String::new();
        for (wanted, table, chain, base, comment) in [
            (
                self.masquerade,
                "nat",
                "FLANNEL-POSTRTG",
                "POSTROUTING",
                MASQ,
            ),
            (self.forward, "filter", "FLANNEL-FWD", "FORWARD", FORWARD),
        ] {
            if wanted {
                iptables(&[
                    "-t",
                    table,
                    "-C",
                    base,
                    "-m",
                    "comment",
                    "--comment",
                    comment,
                    "-j",
                    chain,
                ])?;
                listing += &iptables(&["-t", table, "-S", chain])?;
            }
        }
        for (wanted, table, base, chain) in self.guard_chains() {
            if wanted {
                iptables(&["-t", table, "-C", base, "-j", chain])?;
                listing += &iptables(&["-t", table, "-S", chain])?;
            }
        }
        Ok(Listing(listing))
    }

    /// The fast path's chains of iptables: whether each is wanted, its table, where it is jumped to from, its name.
    fn guard_chains(&self) -> [(bool, &'static str, &'static str, &'static str); 2] {
        let guard = &self.guard;
        [
            (
                guard.mark.is_some(),
                "mangle",
                "POSTROUTING",
                guard::ATTEST_CHAIN,
            ),
            (
                guard.strict.is_some(),
                "raw",
                "PREROUTING",
                guard::STRICT_CHAIN,
            ),
        ]
    }

    /// The input of `iptables-restore`; the last two say which jumps to add.
    fn iptables_script(
        &self,
        random_fully: bool,
        masquerade_jump: bool,
        forward_jump: bool,
    ) -> String {
        let (Some(network), Some(subnet)) = (self.networks.v4, self.subnets.v4) else {
            return String::new();
        };
        let random = if random_fully { " --random-fully" } else { "" };
        let mut script = String::new();
        let mut table = |name: &str,
                         chain: &str,
                         base: &str,
                         comment: &str,
                         jump: bool,
                         rules: &[(String, String)]| {
            // Declaring a chain creates or empties it, in the same commit that fills it.
            let _ = writeln!(script, "*{name}\n:{chain} - [0:0]");
            for (condition, verdict) in rules {
                let _ = writeln!(
                    script,
                    "-A {chain} {condition} -m comment --comment \"{comment}\" -j {verdict}"
                );
            }
            if jump {
                let _ = writeln!(
                    script,
                    "-A {base} -m comment --comment \"{comment}\" -j {chain}"
                );
            }
            script.push_str("COMMIT\n");
        };
        if self.masquerade {
            let masquerade = format!("MASQUERADE{random}");
            let rules = [
                (format!("-m mark --mark {KUBE_MARK}"), "RETURN".into()),
                (format!("-s {subnet} -d {network}"), "RETURN".into()),
                (format!("-s {network} -d {subnet}"), "RETURN".into()),
                (format!("! -s {network} -d {subnet}"), "RETURN".into()),
                (format!("-s {network} ! -d 224.0.0.0/4"), masquerade.clone()),
                (format!("! -s {network} -d {network}"), masquerade),
            ];
            table(
                "nat",
                "FLANNEL-POSTRTG",
                "POSTROUTING",
                MASQ,
                masquerade_jump,
                &rules,
            );
        }
        if self.forward {
            let rules = [
                (format!("-s {network}"), "ACCEPT".into()),
                (format!("-d {network}"), "ACCEPT".into()),
            ];
            table(
                "filter",
                "FLANNEL-FWD",
                "FORWARD",
                FORWARD,
                forward_jump,
                &rules,
            );
        }
        script
    }

    /// The input of `nft -f`: the table is made anew in one transaction. The third return rule differs from iptables'
    /// as upstream's does.
    fn nft_script(&self) -> String {
        let (Some(network), Some(subnet)) = (self.networks.v4, self.subnets.v4) else {
            return String::new();
        };
        let random = if self.random_fully {
            " fully-random"
        } else {
            ""
        };
        let mut script = String::new();
        for (family, name) in [("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6")] {
            let _ = writeln!(
                script,
                "add table {family} {name}\ndelete table {family} {name}\nadd table {family} {name} {{ comment \"rules for {name}\"; }}"
            );
        }
        if self.masquerade {
            let _ = write!(
                script,
                "add chain ip flannel-ipv4 postrtg {{ comment \"chain to manage traffic masquerading by flannel\"; type nat hook postrouting priority srcnat; }}
add rule ip flannel-ipv4 postrtg meta mark 0x4000 return
add rule ip flannel-ipv4 postrtg ip saddr {subnet} ip daddr {network} return
add rule ip flannel-ipv4 postrtg ip saddr {network} ip daddr {subnet} return
add rule ip flannel-ipv4 postrtg ip saddr != {subnet} ip daddr {network} return
add rule ip flannel-ipv4 postrtg ip saddr {network} ip daddr != 224.0.0.0/4 masquerade{random}
add rule ip flannel-ipv4 postrtg ip saddr != {network} ip daddr {network} masquerade{random}
"
            );
        }
        if self.forward {
            let _ = write!(
                script,
                "add chain ip flannel-ipv4 forward {{ comment \"chain to accept flannel traffic\"; type filter hook forward priority filter; }}
add rule ip flannel-ipv4 forward ip saddr {network} accept
add rule ip flannel-ipv4 forward ip daddr {network} accept
"
            );
        }
        script
    }
}

/// Removes flannel's iptables rules, if there are any; returns what was removed. With `dry_run` only looks.
pub fn remove_iptables(dry_run: bool) -> Vec<String> {
    let mut removed = Vec::new();
    for (table, chain, base, comment) in [
        ("nat", "FLANNEL-POSTRTG", "POSTROUTING", Some(MASQ)),
        ("filter", "FLANNEL-FWD", "FORWARD", Some(FORWARD)),
        ("mangle", guard::ATTEST_CHAIN, "POSTROUTING", None),
        ("raw", guard::STRICT_CHAIN, "PREROUTING", None),
    ] {
        let condition = comment.map(|comment| ["-m", "comment", "--comment", comment]);
        if remove_chain(
            table,
            base,
            chain,
            condition.as_ref().map_or(&[], |it| it),
            dry_run,
        ) {
            removed.push(format!("iptables {table} chain {chain}"));
        }
    }
    removed
}

/// Removes a chain and the jump to it, which has `condition`; whether it was there.
fn remove_chain(table: &str, base: &str, chain: &str, condition: &[&str], dry_run: bool) -> bool {
    if iptables(&["-t", table, "-S", chain]).is_err() {
        return false;
    }
    let jump = [condition, &["-j", chain]].concat();
    let mut script = format!("*{table}\n");
    if iptables(&[&["-t", table, "-C", base], &jump[..]].concat()).is_ok() {
        let quoted: Vec<String> = jump.iter().map(|word| quote(word)).collect();
        let _ = writeln!(script, "-D {base} {}", quoted.join(" "));
    }
    let _ = write!(script, "-F {chain}\n-X {chain}\nCOMMIT\n");
    dry_run || run(&["iptables-restore", "--noflush", "--wait"], &script).is_ok()
}

/// A word as `iptables-restore` reads it.
fn quote(word: &str) -> String {
    if word.contains(' ') {
        format!("\"{word}\"")
    } else {
        word.to_owned()
    }
}

/// Removes flannel's nftables tables, if there are any; returns what was removed. With `dry_run` only looks.
pub fn remove_nftables(dry_run: bool) -> Vec<String> {
    [
        ("ip", "flannel-ipv4"),
        ("ip6", "flannel-ipv6"),
        ("inet", guard::TABLE),
    ]
    .into_iter()
    .filter(|(family, name)| run(&["nft", "list", "table", family, name], "").is_ok())
    .filter(|(family, name)| dry_run || run(&["nft", "delete", "table", family, name], "").is_ok())
    .map(|(family, name)| format!("nftables table {family} {name}"))
    .collect()
}

fn iptables(arguments: &[&str]) -> Result<String, Error> {
    run(&[&["iptables", "--wait"], arguments].concat(), "")
}

fn iptables_version() -> Result<(u32, u32, u32), Error> {
    Ok(parse_version(&run(&["iptables", "--version"], "")?))
}

/// The version in `iptables v1.8.9 (nf_tables)`; 0.0.0 if there is none.
fn parse_version(text: &str) -> (u32, u32, u32) {
    let mut numbers = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix('v'))
        .into_iter()
        .flat_map(|version| version.split('.'))
        .map(|number| number.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next())
}

fn run(command: &[&str], input: &str) -> Result<String, Error> {
    let start = |source| Error::Start {
        command: command[0].to_owned(),
        source,
    };
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that exits early says why on standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(start)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(Error::Failed {
        command: command.join(" "),
        message: errors
            .lines()
            .next()
            .unwrap_or("failed without a message")
            .to_owned(),
    })
}

#[cfg(test)]
mod tests;

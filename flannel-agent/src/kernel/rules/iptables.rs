//! Rules as chains of iptables and ip6tables, by either variant of the tool.

use std::fmt::Write as _;

use super::{
    Error, Rules,
    guard::{ATTEST_CHAIN, STRICT_CHAIN},
    multicast,
    process::exists,
    variant::Variant,
};
use crate::family::Family;

/// The comment on every masquerade rule.
const MASQ: &str = "flanneld masq";
/// The comment on every forward rule.
const FORWARD: &str = "flanneld forward";
/// Packets that kube-proxy has marked for masquerading: value and mask.
const KUBE_MARK: &str = "0x4000/0x4000";
/// The first iptables that knows `--random-fully`.
const RANDOM_FULLY: (u32, u32, u32) = (1, 6, 2);

/// The rule that deletes the one on a line of `iptables -S`.
fn deleting(line: &str) -> String {
    line.replacen("-A ", "-D ", 1)
}

/// One of the agent's chains.
#[derive(Debug)]
pub(super) struct Chain {
    table: &'static str,
    pub(super) name: &'static str,
    /// Where it is jumped to from.
    base: &'static str,
    /// What the rule says that jumps to it.
    jump: &'static str,
}

/// All of them: upstream's two, then the fast path's.
const CHAINS: [Chain; 4] = [
    Chain {
        table: "nat",
        name: "FLANNEL-POSTRTG",
        base: "POSTROUTING",
        jump: "-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG",
    },
    Chain {
        table: "filter",
        name: "FLANNEL-FWD",
        base: "FORWARD",
        jump: "-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD",
    },
    Chain {
        table: "mangle",
        name: ATTEST_CHAIN,
        base: "POSTROUTING",
        jump: "-A POSTROUTING -j FLANNEL-ATTEST",
    },
    Chain {
        table: "raw",
        name: STRICT_CHAIN,
        base: "PREROUTING",
        // First: what is dropped should cost nothing more.
        jump: "-I PREROUTING -j FLANNEL-STRICT",
    },
];

impl Variant {
    /// The rules that lead from a base chain to `chain` as flannel's do, as lines of `iptables -S`: without a condition of
    /// somebody else's.
    fn own_jumps(self, family: Family, chain: &Chain) -> Result<Vec<String>, Error> {
        // Behind `-A` or `-I`.
        let wanted: Vec<&str> = chain.jump.split_whitespace().skip(1).collect();
        let mut jumps = self.jumps(family, chain)?;
        jumps.retain(|line| line.split_whitespace().skip(1).eq(wanted.iter().copied()));
        Ok(jumps)
    }

    /// All rules that lead from a base chain to `chain`, as lines of `iptables -S`.
    fn jumps(self, family: Family, chain: &Chain) -> Result<Vec<String>, Error> {
        let listed = self.run(family, &["-t", chain.table, "-S", chain.base])?;
        let target = ["-j", chain.name];
        Ok(listed
            .lines()
            .filter(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                words.first() == Some(&"-A") && words.windows(2).any(|pair| pair == target)
            })
            .map(str::to_owned)
            .collect())
    }

    /// Removes a chain and the jumps to it. What was done, if it was there.
    fn remove(self, family: Family, chain: &Chain, dry_run: bool) -> Option<String> {
        if !self.may_have(family, chain.table) {
            return None;
        }
        self.run(family, &["-t", chain.table, "-S", chain.name])
            .ok()?;
        let (table, name) = (chain.table, chain.name);
        let what = format!("{} {table} chain {name}", self.program(family));
        if dry_run {
            return Some(what);
        }
        let mut script = format!("*{table}\n");
        for jump in self.jumps(family, chain).unwrap_or_default() {
            let _ = writeln!(script, "{}", deleting(&jump));
        }
        let _ = writeln!(script, "-F {name}");
        let whole = format!("{script}-X {name}\nCOMMIT\n");
        if self.restore(family, &whole).is_ok() {
            return Some(what);
        }
        // Somebody else's rule leads to it, which is not ours to remove: an empty chain does nothing.
        match self.restore(family, &format!("{script}COMMIT\n")) {
            Ok(()) => {
                tracing::warn!(
                    chain = what,
                    "emptied, not removed: another rule leads to it"
                );
                Some(format!("rules of {what}"))
            }
            Err(error) => {
                tracing::warn!(chain = what, "not removed: {error}");
                None
            }
        }
    }
}

/// Writes all chains, in one transaction per table, and removes those that are not wanted.
pub fn install(rules: &Rules, variant: &Variant) -> Result<(), Error> {
    let random_fully = rules.random_fully && variant.version()? >= RANDOM_FULLY;
    for family in Family::ALL {
        let chains = rules.iptables_chains(family, random_fully);
        let mut script = String::new();
        for (chain, lines) in chains.iter().filter(|(_, lines)| !lines.is_empty()) {
            script += &chain_script(chain, lines, &variant.own_jumps(family, chain)?);
        }
        if !script.is_empty() {
            variant.restore(family, &script)?;
        }
        for (chain, _) in chains.iter().filter(|(_, lines)| lines.is_empty()) {
            if exists(&variant.program(family)) {
                variant.remove(family, chain, false);
            }
        }
    }
    Ok(())
}

/// The section of `iptables-restore`'s input that fills a chain; `jumps` lead to it already.
pub(super) fn chain_script(chain: &Chain, lines: &[String], jumps: &[String]) -> String {
    // Declaring a chain creates or empties it, in the same commit that fills it.
    let mut script = format!("*{}\n:{} - [0:0]\n", chain.table, chain.name);
    for line in lines {
        let _ = writeln!(script, "-A {} {line}", chain.name);
    }
    match jumps {
        [] => {
            let _ = writeln!(script, "{}", chain.jump);
        }
        [_, copies @ ..] => {
            for copy in copies {
                let _ = writeln!(script, "{}", deleting(copy));
            }
        }
    }
    script.push_str("COMMIT\n");
    script
}

/// Lists all chains that are wanted, and the jumps to them.
pub fn list(rules: &Rules, variant: &Variant) -> Result<String, Error> {
    let mut listing = String::new();
    for family in Family::ALL {
        let chains = rules.iptables_chains(family, false);
        for (chain, lines) in chains.iter().filter(|(_, lines)| !lines.is_empty()) {
            let jumps = variant.own_jumps(family, chain)?;
            let listed = variant.run(family, &["-t", chain.table, "-S", chain.name])?;
            let present = listed.lines().filter(|line| line.starts_with("-A"));
            // What is compared with later must not be what somebody has made of the rules in between.
            if jumps.len() != 1 || present.count() != lines.len() {
                let program = variant.program(family);
                return Err(Error::Changed {
                    what: format!("{program} {} chain {}", chain.table, chain.name),
                });
            }
            listing += &format!("{}\n{listed}", jumps.concat());
        }
    }
    Ok(listing)
}

/// Removes flannel's rules from every variant of iptables, if there are any; returns what was removed. With `dry_run`
/// only looks.
pub fn remove(dry_run: bool) -> Vec<String> {
    remove_except(None, dry_run)
}

/// As [`remove`], of the chains that upstream does not know: the fast path's own.
pub fn remove_guard(dry_run: bool) -> Vec<String> {
    let [_, _, guard @ ..] = &CHAINS;
    remove_chains(guard, None, dry_run)
}

/// As [`remove`], sparing one variant.
pub(super) fn remove_except(spared: Option<&Variant>, dry_run: bool) -> Vec<String> {
    remove_chains(&CHAINS, spared, dry_run)
}

fn remove_chains(chains: &[Chain], spared: Option<&Variant>, dry_run: bool) -> Vec<String> {
    let mut removed = Vec::new();
    for variant in Variant::installed() {
        if spared.is_some_and(|spared| spared.legacy == variant.legacy) {
            continue;
        }
        for family in Family::ALL {
            if exists(&variant.program(family)) {
                let chains = chains.iter();
                removed.extend(chains.filter_map(|chain| variant.remove(family, chain, dry_run)));
            }
        }
    }
    removed
}

impl Rules {
    /// All chains with what their rules say, in order; none for a chain that is not wanted.
    pub(super) fn iptables_chains(
        &self,
        family: Family,
        random_fully: bool,
    ) -> [(&'static Chain, Vec<String>); 4] {
        let [postrouting, forward, attest, strict] = &CHAINS;
        [
            (postrouting, self.masquerade_lines(family, random_fully)),
            (forward, self.forward_lines(family)),
            (attest, self.attest_lines(family)),
            (strict, self.guard.strict_lines(family)),
        ]
    }

    fn masquerade_lines(&self, family: Family, random_fully: bool) -> Vec<String> {
        let Some((network, subnet)) = self.prefixes(family).filter(|_| self.masquerade) else {
            return Vec::new();
        };
        let multicast = multicast(family);
        let masquerade = if random_fully {
            "MASQUERADE --random-fully"
        } else {
            "MASQUERADE"
        };
        // As in the nftables mode of upstream, where the network config asks for that one.
        let straight = if self.mode.enable_nftables {
            format!("! -s {subnet} -d {network}")
        } else {
            format!("! -s {network} -d {subnet}")
        };
        [
            (format!("-m mark --mark {KUBE_MARK}"), "RETURN"),
            (format!("-s {subnet} -d {network}"), "RETURN"),
            (format!("-s {network} -d {subnet}"), "RETURN"),
            (straight, "RETURN"),
            (format!("-s {network} ! -d {multicast}"), masquerade),
            (format!("! -s {network} -d {network}"), masquerade),
        ]
        .map(|(condition, verdict)| commented(&condition, MASQ, verdict))
        .into()
    }

    fn forward_lines(&self, family: Family) -> Vec<String> {
        let Some(network) = self.networks.get(family).filter(|_| self.forward) else {
            return Vec::new();
        };
        ["-s", "-d"]
            .map(|side| commented(&format!("{side} {network}"), FORWARD, "ACCEPT"))
            .into()
    }

    fn attest_lines(&self, family: Family) -> Vec<String> {
        match self.networks.get(family) {
            Some(_) => self.guard.attest_lines(),
            None => Vec::new(),
        }
    }
}

fn commented(condition: &str, comment: &str, verdict: &str) -> String {
    format!("{condition} -m comment --comment \"{comment}\" -j {verdict}")
}

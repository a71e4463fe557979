//! Rules as chains of iptables and ip6tables, by either variant of the tool.

use std::{fmt::Write as _, fs};

use super::{
    Error, Rules,
    guard::{ATTEST_CHAIN, STRICT_CHAIN},
    multicast,
    process::{exists, run},
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

/// One of the tools that are called iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// What stands behind `iptables` in its programs' names.
    suffix: &'static str,
    /// Whether it has tables of its own in the kernel instead of nftables'.
    pub(super) legacy: bool,
}

impl Variant {
    /// All that are installed, each once.
    pub(super) fn installed() -> Vec<Self> {
        let named = [("-nft", false), ("-legacy", true)]
            .into_iter()
            .filter(|(suffix, _)| exists(&format!("iptables{suffix}")))
            .map(|(suffix, legacy)| Self { suffix, legacy });
        let mut variants: Vec<Self> = named.collect();
        // The plain name is one of them, where there are several.
        if let Some(legacy) = Self::plain_is_legacy()
            && variants.iter().all(|variant| variant.legacy != legacy)
        {
            variants.push(Self { suffix: "", legacy });
        }
        variants
    }

    /// Whether `iptables` is the legacy variant, if it is installed.
    pub(super) fn plain_is_legacy() -> Option<bool> {
        let version = run(&["iptables", "--version"], "").ok()?;
        Some(!version.contains("nf_tables"))
    }

    /// The name of its program for a family, such as `ip6tables-legacy`.
    pub(super) fn program(self, family: Family) -> String {
        let name = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{name}{}", self.suffix)
    }

    /// Whether a table may hold something. The legacy variant makes a table, and its hooks, by looking at it.
    pub(super) fn may_have(self, family: Family, table: &str) -> bool {
        !self.legacy
            || legacy_tables(family)
                .lines()
                .any(|present| present == table)
    }

    fn run(self, family: Family, arguments: &[&str]) -> Result<String, Error> {
        run(
            &[&[self.program(family).as_str(), "--wait"], arguments].concat(),
            "",
        )
    }

    fn restore(self, family: Family, script: &str) -> Result<(), Error> {
        let program = format!("{}-restore", self.program(family));
        run(&[program.as_str(), "--noflush", "--wait"], script).map(drop)
    }

    /// Why nothing can be written with it for one of `families`, if so.
    pub(super) fn objection(self, families: &[Family]) -> Option<Error> {
        families
            .iter()
            .find_map(|family| self.run(*family, &["-t", "nat", "-S", "POSTROUTING"]).err())
    }

    fn version(self) -> Result<(u32, u32, u32), Error> {
        let text = run(&[self.program(Family::V4).as_str(), "--version"], "")?;
        Ok(parse_version(&text))
    }

    /// The rules that lead from a base chain to `chain`, as lines of `iptables -S`.
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

/// The tables that the legacy variant has in this network namespace, one per line.
fn legacy_tables(family: Family) -> String {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    fs::read_to_string(path).unwrap_or_default()
}

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

/// All of them.
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

/// Writes all chains, in one transaction per table, and removes those that are not wanted.
pub fn install(rules: &Rules, variant: &Variant) -> Result<(), Error> {
    let random_fully = rules.random_fully && variant.version()? >= RANDOM_FULLY;
    for family in Family::ALL {
        let chains = rules.iptables_chains(family, random_fully);
        let mut script = String::new();
        for (chain, lines) in chains.iter().filter(|(_, lines)| !lines.is_empty()) {
            script += &chain_script(chain, lines, &variant.jumps(family, chain)?);
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
            let jumps = variant.jumps(family, chain)?;
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

/// As [`remove`], sparing one variant.
pub(super) fn remove_except(spared: Option<&Variant>, dry_run: bool) -> Vec<String> {
    let mut removed = Vec::new();
    for variant in Variant::installed() {
        if spared.is_some_and(|spared| spared.legacy == variant.legacy) {
            continue;
        }
        for family in Family::ALL {
            if exists(&variant.program(family)) {
                let chains = CHAINS.iter();
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

/// The version in `iptables v1.8.9 (nf_tables)`; 0.0.0 if there is none.
pub(super) fn parse_version(text: &str) -> (u32, u32, u32) {
    let mut numbers = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix('v'))
        .into_iter()
        .flat_map(|version| version.split('.'))
        .map(|number| number.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next())
}

/// Whether the legacy variant has tables in this network namespace.
pub(super) fn legacy_is_used(families: &[Family]) -> bool {
    families
        .iter()
        .any(|family| !legacy_tables(*family).is_empty())
}

/// What says where others' rules are: whether kubelet's hints are there, and how many rules.
pub(super) fn evidence(variant: Variant, families: &[Family]) -> (bool, usize) {
    let mut found = (false, 0);
    for family in families {
        if variant.legacy && legacy_tables(*family).is_empty() {
            continue;
        }
        let program = format!("{}-save", variant.program(*family));
        let listed = run(&[program.as_str()], "").unwrap_or_default();
        let (hint, rules) = weigh(&listed);
        found = (found.0 || hint, found.1 + rules);
    }
    found
}

/// The evidence in the output of `iptables-save`. Flannel's own rules say nothing.
pub(super) fn weigh(listed: &str) -> (bool, usize) {
    /// Chains that kubelet makes to show which variant it uses.
    const HINTS: [&str; 2] = [":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY "];
    let hint = listed
        .lines()
        .any(|line| HINTS.iter().any(|hint| line.starts_with(hint)));
    let rules = listed
        .lines()
        .filter(|line| line.starts_with("-A") && !line.contains("FLANNEL-"))
        .count();
    (hint, rules)
}

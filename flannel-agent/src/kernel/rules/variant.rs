//! The tools that are called iptables: which are installed, how they are run, and what others have written with each.

use std::fs;

use super::{
    Error,
    process::{exists, run},
};
use crate::family::Family;

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

    /// Runs its program for a family.
    pub(super) fn run(self, family: Family, arguments: &[&str]) -> Result<String, Error> {
        run(
            &[&[self.program(family).as_str(), "--wait"], arguments].concat(),
            "",
        )
    }

    /// Gives its `-restore` program a script, whose tables are one transaction each.
    pub(super) fn restore(self, family: Family, script: &str) -> Result<(), Error> {
        let program = format!("{}-restore", self.program(family));
        run(&[program.as_str(), "--noflush", "--wait"], script).map(drop)
    }

    /// Why nothing can be written with it for one of `families`, if so.
    pub(super) fn objection(self, families: &[Family]) -> Option<Error> {
        families
            .iter()
            .find_map(|family| self.run(*family, &["-t", "nat", "-S", "POSTROUTING"]).err())
    }

    /// Its version.
    pub(super) fn version(self) -> Result<(u32, u32, u32), Error> {
        let text = run(&[self.program(Family::V4).as_str(), "--version"], "")?;
        Ok(parse_version(&text))
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

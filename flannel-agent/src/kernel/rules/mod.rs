//! Masquerade and forward rules of both address families: upstream's text, order and comments.
//!
//! `nftables` and `iptables` write the same rules with one tool each, `variant` knows the tools that are called
//! iptables, `choose` says which one is used, `guard` has the fast path's own rules, `events` hears of changes. There is
//! no moment without rules: nftables' tables are replaced by one transaction, iptables' chains by one
//! `iptables-restore` per family, and a jump to a chain is only added where it is missing. A check compares what the
//! tool lists with what it listed right after the rules were written, so that a tool's own way of printing rules does
//! not matter. No shell is involved, and no process per rule.

mod choose;
pub mod events;
mod guard;
mod iptables;
mod nftables;
mod process;
mod variant;

use std::io;

pub use choose::{Choice, Mode, Tool};
pub use guard::{Guard, Strict, Tunnel};
use ipnet::IpNet;

pub use self::{iptables::remove as remove_iptables, nftables::remove as remove_nftables};
use crate::family::{Family, PerFamily};

/// Why rules could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tool could not be started.
    #[error("{command}: {source}; install it, or choose the other tool with --traffic-rules")]
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
        /// The tool's first line on standard error.
        message: String,
    },
    /// Others have been at the rules while they were written.
    #[error("{what} was changed while it was written; trying again")]
    Changed {
        /// The chain or the tables.
        what: String,
    },
    /// No tool works.
    #[error(
        "no tool writes traffic rules here: {nftables}; {iptables}; install nftables or iptables (and ip6tables for IPv6)"
    )]
    NoTool {
        /// What is wrong with nftables.
        nftables: String,
        /// What is wrong with iptables.
        iptables: String,
    },
}

/// The rules that should be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The flannel networks. A family without one gets no rules.
    pub networks: PerFamily<IpNet>,
    /// This node's subnets.
    pub subnets: PerFamily<IpNet>,
    /// Whether traffic that leaves the network is masqueraded.
    pub masquerade: bool,
    /// Whether masquerading chooses ports at random.
    pub random_fully: bool,
    /// Whether forwarded traffic of the network is accepted.
    pub forward: bool,
    /// What was asked for about tools.
    pub mode: Mode,
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

    /// The tool to write them with on this node.
    ///
    /// # Errors
    /// When none works that may be used.
    pub fn choose_tool(&self) -> Result<Tool, Error> {
        choose::tool(self.mode, &self.families())
    }

    /// Writes all rules, whatever is there, and lists them.
    ///
    /// # Errors
    /// When the tool is absent or fails; the rules of the transaction that failed are then as they were.
    pub fn install(&self, tool: &Tool) -> Result<Listing, Error> {
        match tool {
            Tool::Nftables => nftables::install(self)?,
            Tool::Iptables(variant) => iptables::install(self, variant)?,
        }
        self.list(tool)
    }

    /// Lists what is there.
    ///
    /// # Errors
    /// When the tool is absent or fails, which it does if a chain is missing; or when there are more or fewer rules
    /// than there should be.
    pub fn list(&self, tool: &Tool) -> Result<Listing, Error> {
        match tool {
            Tool::Nftables => nftables::list(self),
            Tool::Iptables(variant) => iptables::list(self, variant),
        }
        .map(Listing)
    }

    /// The families that have rules.
    fn families(&self) -> Vec<Family> {
        self.networks.iter().map(|(family, _)| family).collect()
    }

    /// Network and subnet of a family that has both.
    fn prefixes(&self, family: Family) -> Option<(&IpNet, &IpNet)> {
        Some((self.networks.get(family)?, self.subnets.get(family)?))
    }
}

/// Removes the rules that upstream does not know, the fast path's own, whatever they are written with; returns what was
/// removed. With `dry_run` only looks.
pub fn remove_guard(dry_run: bool) -> Vec<String> {
    let mut removed = iptables::remove_guard(dry_run);
    removed.extend(nftables::remove_guard(dry_run));
    removed
}

/// Removes what a tool other than `tool` has of flannel's rules; returns what was removed.
pub fn remove_others(tool: &Tool) -> Vec<String> {
    match tool {
        Tool::Nftables => remove_iptables(false),
        Tool::Iptables(variant) => {
            let mut removed = nftables::remove(false);
            removed.extend(iptables::remove_except(Some(variant), false));
            removed
        }
    }
}

/// Addresses that nothing is masqueraded for.
const fn multicast(family: Family) -> &'static str {
    match family {
        Family::V4 => "224.0.0.0/4",
        Family::V6 => "ff00::/8",
    }
}

#[cfg(test)]
mod tests;

//! With which tool rules are written.
//!
//! As upstream: `EnableNFTables` in the network config means nftables, its absence iptables. The two are not the same
//! to others: an `accept` in a table of nftables does not save a packet from a `DROP` in iptables' FORWARD chain, as
//! Docker sets it, and upstream's two modes masquerade differently. So nothing but the operator's word, or the lack of
//! a tool, makes a node differ from its neighbours.

use std::{cmp::Reverse, io::ErrorKind};

use clap::ValueEnum;

use super::{
    Error, nftables,
    variant::{self, Variant},
};
use crate::family::Family;

/// `--traffic-rules`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// What the network config says, or the other tool where that one does not work.
    #[default]
    Auto,
    /// nftables.
    Nftables,
    /// iptables.
    Iptables,
}

/// What was asked for about tools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// `EnableNFTables` in the network config: whose masquerading is wanted, that of upstream's nftables mode or that of
    /// its iptables mode.
    pub enable_nftables: bool,
    /// `--traffic-rules`.
    pub choice: Choice,
}

/// A tool that writes rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// `nft`.
    Nftables,
    /// A variant of `iptables`, and of `ip6tables`.
    Iptables(Variant),
}

impl Tool {
    /// Its name, for the status.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables(_) => "iptables",
        }
    }

    /// The name of its program, for the log.
    pub fn program(&self) -> String {
        match self {
            Self::Nftables => "nft".into(),
            Self::Iptables(variant) => variant.program(Family::V4),
        }
    }
}

/// The tool for a node with networks of `families`.
///
/// # Errors
/// When none works that may be used.
pub(super) fn tool(mode: Mode, families: &[Family]) -> Result<Tool, Error> {
    let attempt = |nftables: bool| {
        if nftables {
            nftables::objection().map_or(Ok(Tool::Nftables), Err)
        } else {
            find_variant(families).map(Tool::Iptables)
        }
    };
    let wanted = match mode.choice {
        Choice::Nftables => return attempt(true),
        Choice::Iptables => return attempt(false),
        Choice::Auto => mode.enable_nftables,
    };
    let objection = match attempt(wanted) {
        Ok(tool) => return Ok(tool),
        Err(objection) => objection,
    };
    match attempt(!wanted) {
        Ok(tool) => {
            tracing::warn!(
                "EnableNFTables = {wanted}, but {objection}: writing rules with {}",
                tool.name()
            );
            Ok(tool)
        }
        Err(other) => {
            let [nftables, iptables] = if wanted {
                [objection, other]
            } else {
                [other, objection]
            };
            Err(Error::NoTool {
                nftables: nftables.to_string(),
                iptables: iptables.to_string(),
            })
        }
    }
}

/// The variant of iptables that others' rules are written with, as Kubernetes' iptables-wrapper finds it: kubelet's
/// hint, then the number of rules, then what the system calls iptables. One that does not work is not taken.
fn find_variant(families: &[Family]) -> Result<Variant, Error> {
    let plain_is_legacy = Variant::plain_is_legacy();
    let mut variants = Variant::installed();
    // To count all rules of a node may take a second of CPU, and mostly there is nothing to compare with.
    let compare = plain_is_legacy == Some(true) || variant::legacy_is_used(families);
    variants.sort_by_cached_key(|variant| {
        let evidence = compare.then(|| variant::evidence(*variant, families));
        Reverse((evidence, plain_is_legacy == Some(variant.legacy)))
    });
    let mut objection = None;
    for variant in variants {
        match variant.objection(families) {
            None => return Ok(variant),
            Some(error) => objection = objection.or(Some(error)),
        }
    }
    Err(objection.unwrap_or_else(|| Error::Start {
        command: "iptables".into(),
        source: ErrorKind::NotFound.into(),
    }))
}

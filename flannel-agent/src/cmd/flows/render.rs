//! Flows as text: one line each, and why a direction is not fast.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::{LegRow, Listing, Row};

/// Columns for an IPv4 address and a port.
const END_WIDTH: usize = 22;

/// Why a direction is not fast, for people.
pub(super) fn meaning(leg: &LegRow) -> Option<&'static str> {
    Some(match leg.outcome {
        "no-flow" if leg.outdated => {
            "attested before the pod, the other node or the mode became what it is; the next packet that the kernel passes counts"
        }
        "no-flow" => "the kernel has passed no packet of this direction that conntrack attests",
        "stale" => {
            "idle, or the kernel does not pass it any more: its next packet takes the kernel's path"
        }
        "closing" => "a FIN was seen: the rest is the kernel's",
        "draining" => "turns fast as soon as earlier packets have left the kernel's queues",
        "tcp-strict" => {
            "conntrack is strict about TCP windows: set net.netfilter.nf_conntrack_tcp_be_liberal = 1"
        }
        "no-heartbeat" => "the agent has been away for too long: start it",
        _ => return None,
    })
}

impl LegRow {
    /// In a word or two.
    pub(super) fn label(&self) -> &'static str {
        match self.outcome {
            "no-flow" if self.outdated => "outdated",
            "no-flow" if self.attested_ms.is_none() => "not attested",
            outcome => outcome,
        }
    }

    /// `fast 0.3 s`
    pub(super) fn text(&self) -> String {
        match self.attested_ms {
            Some(age) => format!("{} {}", self.label(), seconds(age)),
            None => self.label().to_owned(),
        }
    }
}

/// A time in milliseconds as `0.3 s`, `12 s`, `3 min`, `5 h`.
pub(super) fn seconds(milliseconds: u64) -> String {
    const MINUTE: u64 = 60_000;
    const HOUR: u64 = 60 * MINUTE;
    match milliseconds {
        ms if ms < 9_950 => format!("{:.1} s", milliseconds as f64 / 1e3),
        ms if ms < MINUTE => format!("{} s", milliseconds / 1_000),
        ms if ms < HOUR => format!("{} min", milliseconds / MINUTE),
        _ => format!("{} h", milliseconds / HOUR),
    }
}

/// The listing for people.
pub(super) fn table(listing: &Listing) -> String {
    let mut text = String::new();
    let Listing {
        mode,
        revalidate_ms,
        stale_ms,
        remembered,
        matching,
        flows,
        notes,
    } = listing;
    let _ = writeln!(
        text,
        "fast path {mode}: {remembered} flows remembered, {matching} match; asked again after {}, slow without an answer after {}",
        seconds(*revalidate_ms),
        seconds(*stale_ms)
    );
    let ends = |row: &Row| {
        let ends = [(row.pod, row.pod_port), (row.remote, row.remote_port)];
        ends.map(|(address, port)| SocketAddr::new(address, port).to_string().len())
    };
    let longest = flows.iter().flat_map(ends).max().unwrap_or_default();
    let width = (longest + 1).max(END_WIDTH);
    if !flows.is_empty() {
        let _ = writeln!(
            text,
            "\n{:<6}{:<width$}{:<width$}{:<9}{:<20}IN, SINCE ATTESTED",
            "PROTO", "POD", "REMOTE", "STATE", "OUT, SINCE ATTESTED"
        );
    }
    for row in flows {
        let _ = writeln!(
            text,
            "{:<6}{:<width$}{:<width$}{:<9}{:<20}{}",
            row.protocol,
            SocketAddr::new(row.pod, row.pod_port).to_string(),
            SocketAddr::new(row.remote, row.remote_port).to_string(),
            row.state.name(),
            row.out.text(),
            row.into.text()
        );
    }
    let more = matching - flows.len();
    if more > 0 {
        let _ = writeln!(text, "and {more} more: --limit 0 shows all");
    }
    if !notes.is_empty() {
        text.push('\n');
    }
    for note in notes {
        let _ = writeln!(text, "{note}");
    }
    text
}

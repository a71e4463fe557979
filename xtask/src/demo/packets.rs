//! The table of packets: by path, why BPF left them to the kernel, and what it learned from those that the kernel passed.

use std::time::Duration;

use crate::demo::{
    observe::Packets,
    style::{Line, Style, grouped},
};

/// Columns from one part of the table to the next.
const PART: usize = 41;
/// What is learned from packets that the kernel has passed, by the names of the status, and in words.
const LEARNED: [(&str, &str); 5] = [
    ("attested", "attested"),
    ("probe-done", "probes answered"),
    ("created", "created"),
    ("killed", "killed"),
    ("refused", "not attested"),
];

/// How much of the table is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Columns of the terminal.
    pub(super) columns: usize,
    /// How many reasons for declining are named; the rest is summed up.
    pub(super) reasons: usize,
}

impl Room {
    /// As much as fits a small terminal: five rows and one for what was learned.
    pub(super) const LEAST: Self = Self {
        columns: 80,
        reasons: 4,
    };
    /// For text, which has no end.
    pub(super) const FOR_TEXT: Self = Self {
        columns: 80,
        reasons: 8,
    };

    fn has_three_parts(self) -> bool {
        self.columns >= 3 * PART
    }
}

/// Packets by path on the left, what was left to the kernel on the right, and beside or below that what was learned; with
/// rates if there is a recent past.
pub(super) fn table(
    total: &Packets,
    recent: Option<(&Packets, Duration)>,
    room: Room,
) -> Vec<Line> {
    let rate =
        |count: fn(&Packets) -> u64| recent.map(|(packets, time)| per_second(count(packets), time));
    let left = [
        counter_head("PACKETS", recent.is_some()),
        counter(
            "fast, from pods",
            total.bpf.fast_egress,
            rate(|packets| packets.bpf.fast_egress),
        ),
        counter(
            "fast, to pods",
            total.bpf.fast_ingress,
            rate(|packets| packets.bpf.fast_ingress),
        ),
        counter(
            "kernel, from pods",
            total.kernel_egress,
            rate(|packets| packets.kernel_egress),
        ),
        counter(
            "kernel, to pods",
            total.kernel_ingress,
            rate(|packets| packets.kernel_ingress),
        ),
    ];
    let mut reasons: Vec<_> = total
        .bpf
        .declined
        .iter()
        .filter(|(_, count)| **count > 0)
        .collect();
    reasons.sort_by_key(|(reason, count)| (std::cmp::Reverse(**count), reason.as_str()));
    let recent_of = |reason: &str| {
        recent.map(|(packets, time)| {
            per_second(packets.bpf.declined.get(reason).copied().unwrap_or(0), time)
        })
    };
    let mut right = vec![counter_head("BPF LEFT TO KERNEL", recent.is_some())];
    let named = if reasons.len() > room.reasons {
        room.reasons - 1
    } else {
        reasons.len()
    };
    right.extend(
        reasons[..named]
            .iter()
            .map(|(reason, count)| counter(&short(reason), **count, recent_of(reason))),
    );
    if let Some((_, rest)) = reasons
        .split_at_checked(named)
        .filter(|(_, rest)| !rest.is_empty())
    {
        let sum = rest.iter().map(|(_, count)| **count).sum();
        let recent = rest.iter().map(|(reason, _)| recent_of(reason)).sum();
        right.push(counter(
            &format!("{} other reasons", rest.len()),
            sum,
            recent,
        ));
    }
    if reasons.is_empty() {
        right.push(Line::of(Style::Dim, "nothing"));
    }
    if room.has_three_parts() {
        let lines = side_by_side(left.into(), right, PART);
        return side_by_side(lines, learned(total, recent), 2 * PART);
    }
    let mut lines = side_by_side(left.into(), right, PART);
    lines.push(learned_in_brief(total, recent));
    lines
}

/// What was learned, as a part of the table.
fn learned(total: &Packets, recent: Option<(&Packets, Duration)>) -> Vec<Line> {
    let mut lines = vec![counter_head("BPF LEARNED", recent.is_some())];
    lines.extend(LEARNED.map(|(outcome, words)| {
        let rate = recent.map(|(packets, time)| per_second(packets.learned(outcome), time));
        counter(words, total.learned(outcome), rate)
    }));
    lines
}

/// The same in one line: rates, or totals without a recent past.
fn learned_in_brief(total: &Packets, recent: Option<(&Packets, Duration)>) -> Line {
    let mut line = Line::of(
        Style::Bold,
        if recent.is_some() {
            "LEARNED/s "
        } else {
            "LEARNED "
        },
    );
    let parts = LEARNED.map(|(outcome, words)| {
        let number = recent.map_or_else(
            || total.learned(outcome),
            |(packets, time)| per_second(packets.learned(outcome), time),
        );
        format!("{words} {}", grouped(number))
    });
    line.push(Style::Plain, parts.join(", "));
    line
}

fn counter_head(what: &str, with_rates: bool) -> Line {
    let rates = if with_rates { "/s" } else { "" };
    Line::of(Style::Bold, format!("{what:<18}{:>12}{rates:>9}", "total"))
}

fn counter(what: &str, total: u64, rate: Option<u64>) -> Line {
    let style = if total == 0 { Style::Dim } else { Style::Plain };
    let rate = rate.map(grouped).unwrap_or_default();
    let what: String = what.chars().take(18).collect();
    Line::of(style, format!("{what:<18}{:>12}{rate:>9}", grouped(total)))
}

/// A reason as `hook/outcome`, with what fits beside the numbers in place of the hook: where the packet was going.
fn short(reason: &str) -> String {
    match reason.split_once('/') {
        Some(("pod_egress" | "bridge_egress", outcome)) => format!("out: {outcome}"),
        Some((_, outcome)) => format!("in: {outcome}"),
        None => reason.to_owned(),
    }
}

fn per_second(count: u64, time: Duration) -> u64 {
    (count as f64 / time.as_secs_f64().max(f64::EPSILON)).round() as u64
}

fn side_by_side(left: Vec<Line>, right: Vec<Line>, column: usize) -> Vec<Line> {
    let rows = left.len().max(right.len());
    let (mut left, mut right) = (left.into_iter(), right.into_iter());
    (0..rows)
        .map(|_| {
            let mut line = left.next().unwrap_or_default();
            if let Some(right) = right.next() {
                line.pad(column);
                line.append(right);
            }
            line
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn reasons_are_sorted_and_summed_up() {
        let mut packets = Packets::default();
        packets.bpf.declined = BTreeMap::from(
            [
                ("icmp", 5),
                ("tcp_flags", 9),
                ("mtu", 1),
                ("ttl", 1),
                ("options", 1),
                ("fragment", 0),
            ]
            .map(|(reason, count)| (reason.to_owned(), count)),
        );
        let lines: Vec<_> = table(&packets, None, Room::LEAST)
            .iter()
            .map(Line::plain)
            .collect();
        let right: Vec<_> = lines
            .iter()
            .map(|line| line.get(PART..).unwrap_or_default())
            .collect();
        assert_eq!(right[1], "tcp_flags                    9");
        assert_eq!(right[2], "icmp                         5");
        assert_eq!(right[4], "2 other reasons              2");
    }
    #[test]
    fn what_was_learned_is_beside_the_rest_if_there_is_room() {
        let mut packets = Packets::default();
        packets.bpf.attest = [
            ("attest_in/attested", 5),
            ("attest_out/attested", 1234),
            ("attest_in/probe-done", 7),
            ("attest_in/elsewhere", 99),
        ]
        .map(|(name, count)| (name.to_owned(), count))
        .into();
        let recent = Some((&packets, Duration::from_secs(2)));
        let lines = |columns| {
            let room = Room {
                columns,
                ..Room::LEAST
            };
            let lines = table(&packets, recent, room);
            lines.iter().map(Line::plain).collect::<Vec<_>>()
        };
        let narrow = lines(80);
        assert_eq!(
            narrow[5],
            "LEARNED/s attested 620, probes answered 4, created 0, killed 0, not attested 0"
        );
        let wide = lines(140);
        assert_eq!(wide.len(), 6, "{wide:#?}");
        assert!(
            wide[1].ends_with("attested                 1,239      620"),
            "{wide:#?}"
        );
    }
}

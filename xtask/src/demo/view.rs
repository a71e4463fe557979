//! Observations as lines of text: the live screen, and the parts that the text report shares with it. Pure: no
//! terminal, no clock.

use std::time::Duration;

use crate::demo::{
    check::Pair,
    matrix::{Cell, Matrix},
    observe::{NodeView, Observation},
    packets,
    screen::Size,
    style::{Line, Style},
    traffic,
};

/// Rows from which reasons and flows get more room.
const TALL: usize = 30;

/// The whole live screen, for a terminal of the given size.
pub(super) fn screen(seen: &Observation, size: Size) -> Vec<Line> {
    let mode = seen.nodes.first().map_or("", |node| &node.path.mode);
    let mut footer = vec![Line::default(), traffic::stream(seen.stream.as_ref())];
    footer.extend(traffic::service(seen.service.as_ref(), mode));
    footer.push(traffic::policy(seen.policy.as_ref(), mode));
    footer.extend(problems(&seen.nodes));
    let reasons = if size.rows >= TALL {
        packets::Room::FOR_TEXT.reasons
    } else {
        packets::Room::LEAST.reasons
    };
    let room = packets::Room {
        columns: size.columns,
        reasons,
    };

    let mut lines = Vec::from(headline(seen, mode));
    lines.extend(nodes(&seen.nodes));
    lines.push(Line::default());
    lines.extend(packets::table(
        &seen.packets,
        Some((&seen.recent.0, seen.recent.1)),
        room,
    ));
    lines.push(Line::default());
    let rows = size.rows.saturating_sub(lines.len() + footer.len());
    lines.extend(ping_matrix(
        seen,
        Size {
            columns: size.columns,
            rows,
        },
    ));
    lines.extend(footer);
    let rows = size.rows.saturating_sub(lines.len());
    lines.extend(traffic::flows(&seen.flows, rows));
    lines
}

fn headline(seen: &Observation, mode: &str) -> [Line; 3] {
    let mut first = Line::of(Style::Bold, "flannel demo");
    first.push(Style::Plain, format!("  {}  ", seen.headline));
    let changing = seen.nodes.iter().any(|node| node.path.mode != mode);
    let shown = if changing { "changing" } else { mode };
    first.push(Style::Bold, format!("fast path {shown}"));
    let seconds = seen.up.as_secs();
    let mut second = Line::of(
        Style::Dim,
        format!("up {}:{:02}", seconds / 60, seconds % 60),
    );
    for (key, does) in [
        ("f", "fast path: next mode"),
        ("p", "policy on or off"),
        ("q", "quit"),
    ] {
        second.push(Style::Plain, "  ");
        second.push(Style::Bold, key);
        second.push(Style::Dim, format!(" {does}"));
    }
    if !seen.message.is_empty() {
        second.push(Style::Plain, format!("  {}", seen.message));
    }
    [first, second, Line::default()]
}

/// A table of the nodes.
pub(super) fn nodes(nodes: &[NodeView]) -> Vec<Line> {
    let mut lines = vec![Line::of(
        Style::Bold,
        format!(
            "{:<5}{:<16}{:<15}{:<7}{:<7}{:<10}{}",
            "NODE", "SUBNET", "PUBLIC IP", "LEASES", "FLOWS", "ATTESTS", "PATH"
        ),
    )];
    lines.extend(nodes.iter().map(|node| {
        let NodeView {
            name,
            subnet,
            public_ip,
            leases,
            flows,
            attestation,
            path,
            ..
        } = node;
        let flows = flows.map_or_else(|| "-".to_owned(), |flows| flows.to_string());
        let attests = attestation.as_deref().unwrap_or("-");
        let mut line = Line::of(
            Style::Plain,
            format!("{name:<5}{subnet:<16}{public_ip:<15}{leases:<7}{flows:<7}{attests:<10}"),
        );
        let (style, path_name) = if path.fast {
            (Style::Good, "fast")
        } else {
            (Style::Bold, "kernel")
        };
        line.push(style, path_name);
        line.push(Style::Plain, format!(": {}", path.detail));
        line
    }));
    lines
}

/// The pings of a check, as a matrix, and the middle of the round trips between nodes.
pub(super) fn pairs(pairs: &[Pair]) -> Vec<Line> {
    let mut names: Vec<String> = pairs.iter().map(|pair| pair.from.clone()).collect();
    names.dedup();
    let cell = |from: &String, to: &String| {
        let pair = pairs
            .iter()
            .find(|pair| pair.from == *from && pair.to == *to);
        pair.map_or(Cell::Same, |pair| {
            Cell::of(&[pair.ping_ms.map(|ms| Duration::from_secs_f64(ms / 1e3))])
        })
    };
    let cells = names
        .iter()
        .map(|from| names.iter().map(|to| cell(from, to)).collect())
        .collect();
    let mut lines = Matrix { names, cells }.lines("PING ms");
    let middle = |value: fn(&Pair) -> Option<f64>| {
        let mut values: Vec<f64> = pairs
            .iter()
            .filter(|pair| !pair.same_node)
            .filter_map(value)
            .collect();
        values.sort_by(f64::total_cmp);
        values
            .get(values.len() / 2)
            .map_or_else(|| "-".to_owned(), |ms| format!("{ms:.3}"))
    };
    lines.push(Line::default());
    lines.push(Line::of(
        Style::Plain,
        format!(
            "ROUND TRIP ms between nodes, median: ping {}, TCP {}, UDP {}",
            middle(|pair| pair.ping_ms),
            middle(|pair| pair.tcp_ms),
            middle(|pair| pair.udp_ms)
        ),
    ));
    lines
}

/// Round-trip times from each pod (row) to each (column); by node with the worst of their pods where there is no room.
pub(super) fn ping_matrix(seen: &Observation, room: Size) -> Vec<Line> {
    let by_pod = Matrix {
        names: seen.pods.clone(),
        cells: (0..seen.pods.len())
            .map(|from| {
                (0..seen.pods.len())
                    .map(|to| {
                        if from == to {
                            Cell::Same
                        } else {
                            Cell::of(&[seen.pings[from][to]])
                        }
                    })
                    .collect()
            })
            .collect(),
    };
    if by_pod.size().columns <= room.columns && by_pod.size().rows <= room.rows {
        return by_pod.lines("PING ms");
    }
    let by_node = by_pod_to_by_node(seen);
    let mut lines = by_node.lines("WORST PING ms");
    if lines.len() > room.rows {
        lines.truncate(room.rows.saturating_sub(1));
        lines.push(Line::of(
            Style::Dim,
            "the window is too small for all nodes",
        ));
    }
    lines
}

fn by_pod_to_by_node(seen: &Observation) -> Matrix {
    let names: Vec<String> = seen.nodes.iter().map(|node| node.name.clone()).collect();
    let pods_of = |node: &str| {
        let prefix = format!("{node}-");
        (0..seen.pods.len())
            .filter(|pod| seen.pods[*pod].starts_with(&prefix))
            .collect::<Vec<_>>()
    };
    let cell = |from: &str, to: &str| {
        let pairs = pods_of(from)
            .into_iter()
            .flat_map(|from| pods_of(to).into_iter().map(move |to| (from, to)));
        let times: Vec<_> = pairs
            .filter(|(from, to)| from != to)
            .map(|(from, to)| seen.pings[from][to])
            .collect();
        if times.is_empty() {
            Cell::Same
        } else {
            Cell::of(&times)
        }
    };
    let cells = names
        .iter()
        .map(|from| names.iter().map(|to| cell(from, to)).collect())
        .collect();
    Matrix { names, cells }
}

/// What the agents complain about, the first line of each.
pub(super) fn problems(nodes: &[NodeView]) -> Vec<Line> {
    let of_node = |node: &NodeView| {
        let name = node.name.clone();
        node.problems.clone().into_iter().map(move |problem| {
            let mut line = Line::of(Style::Bad, format!("{name}: "));
            line.push(Style::Plain, problem.lines().next().unwrap_or_default());
            line
        })
    };
    nodes.iter().flat_map(of_node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::{
        flows::FlowView,
        observe::{Packets, PathView},
        policy::PolicyView,
        service::ServiceView,
        stream::StreamView,
    };

    fn observation(nodes: usize, pods: usize) -> Observation {
        let names: Vec<String> = (1..=nodes)
            .flat_map(|n| (1..=pods).map(move |p| format!("n{n}-p{p}")))
            .collect();
        let packets = Packets {
            kernel_egress: 1_234_567,
            ..Packets::default()
        };
        let node = |n| NodeView {
            name: format!("n{n}"),
            subnet: "10.244.255.0/24".to_owned(),
            public_ip: format!("192.168.100.{n}"),
            backend: "host-gw".to_owned(),
            leases: nodes - 1,
            flows: Some(12),
            attestation: Some("conntrack".to_owned()),
            path: PathView {
                mode: "flow".to_owned(),
                fast: true,
                detail: "tcx encap nic: 3 pod_egress, 1 nic_ingress".to_owned(),
                ..PathView::default()
            },
            problems: vec![],
        };
        Observation {
            headline: "lab 1  host-gw  2 nodes, 4 pods".to_owned(),
            up: Duration::from_secs(75),
            nodes: (1..=nodes).map(node).collect(),
            recent: (packets.clone(), Duration::from_secs(2)),
            packets,
            pings: vec![vec![Some(Duration::from_micros(123)); names.len()]; names.len()],
            pods: names,
            stream: Some(StreamView::default()),
            service: Some(ServiceView {
                from: "n1-p1".to_owned(),
                by: "n2-p1".to_owned(),
                round_trip_ms: Some(0.05),
                answers: [("n2-p1", 12_345), ("n2-p2", 12_345)]
                    .map(|(pod, count)| (pod.to_owned(), count))
                    .into(),
                legs: ["n1", "n2"].map(|node| (node.to_owned(), None)),
                ..ServiceView::default()
            }),
            policy: Some(PolicyView {
                from: "n1-p2".to_owned(),
                to: "n2-p2".to_owned(),
                on: true,
                ended_ms: Some(2_345),
                ..PolicyView::default()
            }),
            flows: vec![("n1".to_owned(), FlowView::default()); 100],
            message: String::new(),
        }
    }

    fn text(lines: &[Line]) -> Vec<String> {
        lines.iter().map(Line::plain).collect()
    }

    #[test]
    fn the_usual_demo_fits_a_usual_terminal() {
        let lines = text(&screen(
            &observation(2, 2),
            Size {
                columns: 80,
                rows: 24,
            },
        ));
        assert!(lines.len() <= 24, "{lines:#?}");
        // The node table may be cut: its last column is as long as it must be. Nothing else is.
        let cut: Vec<_> = lines
            .iter()
            .filter(|line| line.len() > 80 && !line.starts_with('n'))
            .collect();
        assert!(cut.is_empty(), "{cut:#?}");
        assert_eq!(
            lines[1],
            "up 1:15  f fast path: next mode  p policy on or off  q quit"
        );
        assert!(lines[0].ends_with("fast path flow"), "{lines:#?}");
        assert!(
            lines
                .iter()
                .any(|line| line.contains("ended after 2,345 ms")),
            "{lines:#?}"
        );
        assert!(
            lines
                .iter()
                .any(|line| line == "n1-p2     0.123       -   0.123   0.123"),
            "{lines:#?}"
        );
        assert!(
            lines
                .iter()
                .any(|line| line.starts_with("kernel, from pods    1,234,567  617,284")),
            "{lines:#?}"
        );
    }

    #[test]
    fn room_is_filled_with_flows_and_never_overfilled() {
        let lines = text(&screen(
            &observation(2, 2),
            Size {
                columns: 140,
                rows: 50,
            },
        ));
        assert_eq!(lines.len(), 50, "{lines:#?}");
        assert!(
            lines.iter().any(|line| line.starts_with("FLOW ")),
            "{lines:#?}"
        );
    }

    #[test]
    fn large_clusters_are_shown_by_node() {
        let mut seen = observation(4, 5);
        seen.pings[0][6] = None;
        seen.pings[1][9] = None;
        let lines = text(&screen(
            &seen,
            Size {
                columns: 80,
                rows: 24,
            },
        ));
        assert!(lines.len() <= 24, "{lines:#?}");
        let first = lines
            .iter()
            .find(|line| line.starts_with("n1 ") && line.contains("0.123"))
            .expect("a row of n1");
        assert_eq!(first, "n1              0.123  2 fail   0.123   0.123");
        let lines = text(&screen(
            &seen,
            Size {
                columns: 200,
                rows: 60,
            },
        ));
        assert!(
            lines.iter().any(|line| line.starts_with("n4-p5")),
            "with room, all pods"
        );
        let tiny = screen(
            &observation(20, 1),
            Size {
                columns: 80,
                rows: 24,
            },
        );
        assert!(!tiny.is_empty());
    }
}

//! Stream, service, policy and flows as lines of text. Pure, like [`super::view`].

use crate::demo::{
    flows::FlowView,
    policy::{BOUND, PolicyView},
    service::{ADDRESS, ServiceView},
    stream::StreamView,
    style::{Line, Style, grouped},
    trial::{PolicyTrial, ServiceTrial},
};

/// Where text behind a heading begins.
const TEXT: usize = 9;

fn heading(what: &str) -> Line {
    Line::of(Style::Bold, format!("{what:<TEXT$}"))
}

/// The live stream, in one line.
pub(super) fn stream(stream: Option<&StreamView>) -> Line {
    stream_line(stream, "limited to 1")
}

/// The stream of a check, in one line.
pub(super) fn measured_stream(stream: Option<&StreamView>) -> Line {
    stream_line(stream, "not limited")
}

fn stream_line(stream: Option<&StreamView>, pace: &str) -> Line {
    let mut line = heading("STREAM");
    let Some(stream) = stream else {
        line.push(Style::Dim, "needs two nodes with pods");
        return line;
    };
    let StreamView {
        from,
        to,
        gbit_per_second,
        retransmits,
        failure,
    } = stream;
    line.push(Style::Plain, format!("{from} to {to}  "));
    match failure {
        Some(failure) => line.push(Style::Bad, failure.lines().next().unwrap_or_default()),
        None => {
            line.push(Style::Good, format!("{gbit_per_second:.2} Gbit/s"));
            line.push(
                Style::Plain,
                format!(" ({pace}), intact, {retransmits} retransmits"),
            );
        }
    }
    line
}

/// The service: who asks and who answers, and whose legs are fast.
pub(super) fn service(service: Option<&ServiceView>, mode: &str) -> Vec<Line> {
    let mut line = heading("SERVICE");
    let Some(service) = service else {
        line.push(Style::Dim, "needs two nodes with pods");
        return vec![line];
    };
    line.push(Style::Plain, format!("{ADDRESS} from {}: ", service.from));
    let mut legs = Line::of(Style::Plain, " ".repeat(TEXT));
    if let Some(failure) = &service.failure {
        line.push(Style::Bad, format!("fails: {failure}"));
        if mode == "subnet" {
            legs.push(
                Style::Plain,
                "mode subnet leads answers past the kernel's translation: use flow",
            );
        }
        return vec![line, legs];
    }
    match service.round_trip_ms {
        Some(time) => line.push(Style::Good, format!("{time:.3} ms")),
        None => line.push(Style::Dim, "no answer yet"),
    }
    for (number, (pod, count)) in service.answers.iter().enumerate() {
        line.push(Style::Plain, if number == 0 { "  by " } else { ", " });
        let style = if *pod == service.by {
            Style::Good
        } else {
            Style::Plain
        };
        line.push(style, pod);
        line.push(Style::Plain, format!(" {}", grouped(*count)));
    }
    let [client, server] = &service.legs;
    for (role, (node, state), instead) in [
        ("server's", server, "kernel"),
        ("client's", client, "kernel, which translates"),
    ] {
        let comma = if role == "server's" { "" } else { ", " };
        legs.push(Style::Plain, format!("{comma}{role} node {node}: "));
        match state.as_deref() {
            Some("fast") => legs.push(Style::Good, "fast"),
            Some(state) => legs.push(Style::Plain, state),
            None if mode == "subnet" => legs.push(Style::Plain, "by topology"),
            None => legs.push(Style::Plain, instead),
        }
    }
    vec![line, legs]
}

/// The policy, and what it does to its flow.
pub(super) fn policy(policy: Option<&PolicyView>, mode: &str) -> Line {
    let mut line = heading("POLICY");
    let Some(policy) = policy else {
        line.push(Style::Dim, "needs two nodes with pods");
        return line;
    };
    let PolicyView { from, to, .. } = policy;
    line.push(Style::Plain, format!("{from} to {to} "));
    if policy.on {
        line.push(Style::Bad, "DROP");
    } else {
        line.push(Style::Bold, "off");
    }
    line.push(Style::Plain, ": UDP ");
    if let Some(failure) = &policy.failure {
        line.push(Style::Bad, failure);
        return line;
    }
    let most = grouped(u64::try_from(BOUND.as_millis()).unwrap_or(u64::MAX));
    let ended = |time: u64| format!("ended after {} ms (at most {most})", grouped(time));
    match (policy.on, policy.ended_ms) {
        (true, Some(time)) => line.push(Style::Good, ended(time)),
        (true, None) if mode == "subnet" => {
            line.push(Style::Bad, "goes on: mode subnet leads past it");
        }
        (true, None) => {
            let since = policy.switched_ms.unwrap_or_default();
            line.push(
                Style::Plain,
                format!("still fast after {} ms (at most {most})", grouped(since)),
            );
        }
        (false, _) if !policy.answered => line.push(Style::Bad, "no answer"),
        (false, ended_ms) => {
            let time = policy.round_trip_ms.unwrap_or_default();
            line.push(Style::Good, format!("{time:.2} ms"));
            let state = match policy.state.as_deref() {
                Some("fast") => "fast",
                Some(state) => state,
                None if mode == "subnet" => "by topology",
                None => "kernel",
            };
            line.push(Style::Plain, format!(", {state}, {} lost", policy.lost));
            if let (Some(ended_ms), Some(back)) = (ended_ms, policy.back_ms) {
                let (ended_ms, back) = (grouped(ended_ms), grouped(back));
                line.push(Style::Plain, format!("; ended {ended_ms}, back {back} ms"));
            }
        }
    }
    line
}

/// A check of the service, in one line.
pub(super) fn service_trial(trial: &ServiceTrial) -> Line {
    let mut line = heading("SERVICE");
    line.push(
        Style::Plain,
        format!("{} from {}: ", trial.address, trial.from),
    );
    if let Some(time) = trial.round_trip_ms {
        let answers: Vec<_> = trial
            .answers
            .iter()
            .map(|(pod, count)| format!("{pod} {count}"))
            .collect();
        let fast = if trial.fast_at.is_empty() {
            "by the kernel".to_owned()
        } else {
            format!("fast at {}", trial.fast_at.join(", "))
        };
        line.push(
            Style::Plain,
            format!("{time:.3} ms, answers {}, {fast}; ", answers.join(", ")),
        );
    }
    line.push(Style::Plain, trial.verdict.text());
    line
}

/// A check of the policy, in one line.
pub(super) fn policy_trial(trial: &PolicyTrial) -> Line {
    let mut line = heading("POLICY");
    line.push(
        Style::Plain,
        format!("drop {} to {}: ", trial.from, trial.to),
    );
    if let Some(time) = trial.ended_ms {
        let path = if trial.was_fast { "fast" } else { "slow" };
        line.push(
            Style::Plain,
            format!("{path} flow ended after {} ms", grouped(time)),
        );
        let most = grouped(trial.bound_ms);
        line.push(Style::Plain, format!(" (at most {most})"));
        if let Some(back) = trial.back_ms {
            line.push(Style::Plain, format!(", back after {} ms", grouped(back)));
        }
        line.push(Style::Plain, "; ");
    }
    line.push(Style::Plain, trial.verdict.text());
    line
}

/// As many flows as there are rows for; nothing if that is too few to be worth it.
pub(super) fn flows(flows: &[(String, FlowView)], rows: usize) -> Vec<Line> {
    /// A blank line, a heading and two flows.
    const LEAST: usize = 4;
    if rows < LEAST || flows.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![
        Line::default(),
        Line::of(
            Style::Bold,
            format!(
                "{:<6}{:<6}{:<22}{:<22}{:<9}{:<15}{}",
                "FLOW", "PROTO", "POD", "REMOTE", "STATE", "OUT", "IN"
            ),
        ),
    ];
    // The freshest of both nodes: those of one come in their order.
    let mut freshest: Vec<_> = flows.iter().collect();
    freshest.sort_by_key(|(node, flow)| {
        let ages = [flow.out.attested_ms, flow.into.attested_ms];
        (
            !flow.is_fast(),
            flow.state == "closing",
            ages.into_iter().flatten().min().unwrap_or(u64::MAX) / 10_000,
            node.clone(),
            flow.pod.clone(),
            flow.pod_port,
        )
    });
    lines.extend(freshest.into_iter().take(rows - 2).map(|(node, flow)| {
        let mut line = Line::of(
            Style::Plain,
            format!(
                "{node:<6}{:<6}{:<22}{:<22}",
                flow.protocol,
                format!("{}:{}", flow.pod, flow.pod_port),
                format!("{}:{}", flow.remote, flow.remote_port),
            ),
        );
        let style = if flow.is_fast() {
            Style::Good
        } else {
            Style::Dim
        };
        line.push(style, format!("{:<9}", flow.state));
        for leg in [&flow.out, &flow.into] {
            let age = leg
                .attested_ms
                .map_or_else(String::new, |age| format!(" {:.1} s", age as f64 / 1e3));
            line.push(Style::Plain, format!("{:<15}", leg.outcome.clone() + &age));
        }
        line
    }));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_told_from_key_to_end_and_back() {
        let mut view = PolicyView {
            from: "n1-p2".to_owned(),
            to: "n2-p2".to_owned(),
            on: true,
            switched_ms: Some(700),
            answered: true,
            round_trip_ms: Some(0.051),
            ..PolicyView::default()
        };
        let line = |view: &PolicyView, mode| policy(Some(view), mode).plain();
        assert_eq!(
            line(&view, "flow"),
            "POLICY   n1-p2 to n2-p2 DROP: UDP still fast after 700 ms (at most 2,500)"
        );
        assert!(line(&view, "subnet").contains("mode subnet leads past it"));
        view.ended_ms = Some(1834);
        assert_eq!(
            line(&view, "flow"),
            "POLICY   n1-p2 to n2-p2 DROP: UDP ended after 1,834 ms (at most 2,500)"
        );
        (view.on, view.back_ms) = (false, Some(12));
        assert_eq!(
            line(&view, "flow"),
            "POLICY   n1-p2 to n2-p2 off: UDP 0.05 ms, kernel, 0 lost; ended 1,834, back 12 ms"
        );
        view.answered = false;
        assert!(line(&view, "flow").ends_with("no answer"));
    }

    #[test]
    fn a_service_that_a_mode_breaks_is_said_so() {
        let mut view = ServiceView {
            from: "n1-p1".to_owned(),
            by: "n2-p1".to_owned(),
            round_trip_ms: Some(0.045),
            answers: [("n2-p1".to_owned(), 1234)].into(),
            legs: [
                ("n1".to_owned(), None),
                ("n2".to_owned(), Some("fast".to_owned())),
            ],
            failure: None,
        };
        let lines = |view: &ServiceView, mode| {
            let lines = service(Some(view), mode);
            lines.iter().map(Line::plain).collect::<Vec<_>>()
        };
        assert_eq!(
            lines(&view, "flow"),
            [
                "SERVICE  10.96.0.100:80 from n1-p1: 0.045 ms  by n2-p1 1,234",
                "         server's node n2: fast, client's node n1: kernel, which translates",
            ]
        );
        view.failure = Some("no answer".to_owned());
        let broken = lines(&view, "subnet");
        assert!(
            broken[0].ends_with("fails: no answer") && broken[1].contains("use flow"),
            "{broken:?}"
        );
    }

    #[test]
    fn fast_flows_come_first_and_only_with_room() {
        let flow = |state: &str| {
            let flow = FlowView {
                state: state.to_owned(),
                ..FlowView::default()
            };
            ("n1".to_owned(), flow)
        };
        let all = [flow("closing"), flow("stale"), flow("fast"), flow("stale")];
        assert!(flows(&all, 3).is_empty());
        let shown: Vec<_> = flows(&all, 4).iter().map(Line::plain).collect();
        assert_eq!(shown.len(), 4);
        assert!(
            shown[2].contains("fast") && shown[3].contains("stale"),
            "{shown:#?}"
        );
    }
}

//! Samples are compared pair by pair, and what is missing is said.

use super::*;
use crate::remote::{
    load::Least,
    proof::{Counted, Verdict},
};

fn report(fast_path: Option<Mode>) -> Report {
    let target = Target {
        address: ([10, 5, 2, 2], 5210).into(),
        rate: 1000,
        size: 64,
    };
    let agent = fast_path.map(|_| Mode::Flow);
    let nodes = [Node::this(agent), Node::this(agent)];
    Report::new(nodes, target, fast_path, Duration::from_secs(1), 3)
}

fn add(rounds: &mut Rounds, path: Path, [time, lost]: [f64; 2], verdict: Verdict) {
    let figure = |name, unit, value| Figure { name, unit, value };
    let done = Done {
        figures: vec![
            figure("time", Unit::Microseconds, time),
            figure("lost", Unit::Percent, lost),
        ],
        least: Least::default(),
    };
    let proof = Proof {
        before: Counted::default(),
        during: Counted::default(),
        verdict,
    };
    rounds.add(Kind::UdpRr, path, done, proof);
}

fn rounds(verdict: &Verdict) -> Rounds {
    let mut rounds = Rounds::default();
    // The second round met a machine twice as slow.
    for (time, lost) in [(10.0, 1.0), (20.0, 0.0), (10.0, 0.0)] {
        add(&mut rounds, Path::Kernel, [time, lost], Verdict::Proven);
        add(&mut rounds, Path::Fast, [time / 2.0, 0.0], verdict.clone());
    }
    rounds
}

#[test]
fn ratios_and_differences_are_taken_round_by_round() {
    let mut report = report(Some(Mode::Flow));
    report.add(rounds(&Verdict::Proven));
    let compared: Vec<_> = report
        .rows
        .iter()
        .map(|row| {
            (
                row.figure,
                row.path,
                row.comparison.map(|it| it.summary.median),
            )
        })
        .collect();
    assert_eq!(
        compared,
        [
            ("time", Path::Kernel, None),
            ("time", Path::Fast, Some(0.5)),
            ("lost", Path::Kernel, None),
            ("lost", Path::Fast, Some(0.0)),
        ]
    );
    let text = report.text();
    assert!(text.contains("0.500 0.500..0.500"), "{text}");
    assert!(text.contains("proven by both agents' counters in 3 of 3 rounds"));
    assert!(report.is_complete());
}

#[test]
fn a_missing_proof_or_number_is_said_and_makes_it_incomplete() {
    let mut unproven = report(Some(Mode::Flow));
    unproven.add(rounds(&Verdict::Lacking("client out 0".to_owned())));
    assert!(!unproven.is_complete());
    for row in &unproven.rows {
        assert_eq!(row.unproven, row.path == Path::Fast);
        assert!(row.comparison.is_none(), "{row:?}");
    }
    let text = unproven.text();
    let marked = text.lines().filter(|line| line.ends_with("NOT PROVEN"));
    assert_eq!(marked.count(), 2, "{text}");
    assert!(
        text.contains("NOT PROVEN in 3 of 3 rounds: client out 0"),
        "{text}"
    );

    let mut spoiled = rounds(&Verdict::Proven);
    spoiled.spoil(Kind::UdpRr, Path::Fast, "round 3: no answer".to_owned());
    assert!(spoiled.is_spoiled(Kind::UdpRr, Path::Fast));
    let mut report = report(Some(Mode::Flow));
    report.add(spoiled);
    assert!(!report.is_complete());
    assert!(
        report
            .text()
            .contains("fast path: error: round 3: no answer")
    );
    assert!(report.rows.iter().all(|row| row.comparison.is_none()));
}

#[test]
fn without_agents_it_says_that_nothing_is_compared() {
    let report = report(None);
    assert_eq!(report.paths(), [Path::AsIs]);
    assert!(report.heading().contains("the path as it is"));
}

#[test]
fn no_ratio_to_nothing() {
    let mut rounds = Rounds::default();
    for path in [Path::Kernel, Path::Fast] {
        add(&mut rounds, path, [0.0, 0.0], Verdict::Proven);
    }
    let mut report = report(Some(Mode::Subnet));
    report.add(rounds);
    let time = report.rows.iter().find(|row| row.path == Path::Fast);
    assert!(time.unwrap().comparison.is_none());
    serde_json::to_string(&report).unwrap();
}

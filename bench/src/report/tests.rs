//! Tables from samples that are made up.

use super::*;
use crate::{measure::Name, rounds::Series, variants::Backend};

const EFFORT: Effort = Effort {
    rounds: 2,
    packets: 10,
    flows: 1,
    quick: false,
    full: false,
};

fn series(samples: [f64; 2]) -> Outcome {
    let series = Series {
        unit: Unit::Nanoseconds,
        detail: false,
        samples: samples.into(),
    };
    Ok(vec![("UDP packet".to_owned(), series)])
}

fn report(tables: Vec<(usize, Vec<(Carrier, Outcome)>)>) -> Report {
    let mut report = Report::new(0, EFFORT);
    for (services, outcomes) in tables {
        let setting = Setting::usual(Backend::Vxlan, services);
        report.add(setting, &*Name::Forward.measure(), outcomes);
    }
    report.compare(&Bounds::built_in());
    report
}

#[test]
fn ratios_are_to_the_kernel_with_and_without_the_generator() {
    let report = report(vec![(
        200,
        vec![
            (Carrier::Kernel, series([110.0, 210.0])),
            (Carrier::KernelAgain, series([110.0, 210.0])),
            (Carrier::Flow, series([20.0, 30.0])),
            (Carrier::Generator, series([10.0, 10.0])),
        ],
    )]);
    let rows = &report.tables[0].rows;
    assert_eq!(rows[0].summary.median, 160.0);
    assert!(rows[0].comparisons.is_empty() && rows[3].comparisons.is_empty());
    assert_eq!(rows[1].comparisons[0].summary.median, 1.0);
    let flow = &rows[2].comparisons[0];
    assert!((flow.summary.max - 20.0 / 110.0).abs() < 1e-9);
    assert_eq!(flow.net, Some(0.1));
    assert_eq!(flow.verdict.map(|verdict| verdict.met), Some(false));
    assert!(report.is_complete() && report.text().contains("MISSED"));
    let unmeasured = "not measured: forward, vxlan: UDP packet to kernel, no rules";
    assert!(report.text().contains(unmeasured));
}

#[test]
fn the_fast_path_with_rules_is_compared_with_a_kernel_without() {
    let outcomes = |kernel, flow| {
        vec![
            (Carrier::Kernel, series(kernel)),
            (Carrier::Flow, series(flow)),
        ]
    };
    let report = report(vec![
        (200, outcomes([100.0; 2], [10.0; 2])),
        (0, outcomes([40.0; 2], [9.0; 2])),
    ]);
    let of = |table: usize| {
        let comparisons = report.tables[table].rows[1].comparisons.iter();
        comparisons
            .map(|comparison| (comparison.base, comparison.summary.median))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        of(0),
        [(Base::Kernel, 0.1), (Base::KernelWithoutRules, 0.25)]
    );
    assert_eq!(of(1), [(Base::Kernel, 0.225)]);
}

#[test]
fn equal_figures_are_no_difference() {
    let report = report(vec![(
        0,
        vec![
            (Carrier::Kernel, series([100.0, 101.0])),
            (Carrier::KernelAgain, series([101.0, 100.0])),
        ],
    )]);
    assert!(report.text().contains("no difference"));
}

#[test]
fn an_error_is_no_number() {
    let report = report(vec![(
        200,
        vec![
            (Carrier::Kernel, series([100.0; 2])),
            (Carrier::Flow, Err("round 2: lost\nmore".to_owned())),
        ],
    )]);
    assert_eq!(report.tables[0].rows.len(), 1);
    assert!(!report.is_complete());
    assert!(report.text().contains("error: round 2: lost\n"));
}

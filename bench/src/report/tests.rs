//! Tables from samples that are made up.

use super::*;
use crate::{measure::Name, rounds::Series, variants::Backend};

/// What reports that are made up say of their effort.
pub(crate) const EFFORT: Effort = Effort {
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
    assert!(report.is_complete() && report.text(false).contains("MISSED"));
    let unmeasured = "not measured: forward, vxlan, 200 services: UDP packet to kernel, no rules";
    assert!(report.text(false).contains(unmeasured));
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
    assert!(report.text(false).contains("no difference"));
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
    assert!(report.text(false).contains("error: round 2: lost\n"));
}

/// A figure of the kernel at 100, and of the fast path.
fn beside_the_kernel(flow: [f64; 2]) -> Report {
    report(vec![(
        200,
        vec![
            (Carrier::Kernel, series([100.0; 2])),
            (Carrier::Flow, series(flow)),
        ],
    )])
}

#[test]
fn what_is_slower_is_said_before_all_tables() {
    let slower = beside_the_kernel([120.0, 130.0]);
    let said = "slower than the kernel: 1\n  forward, vxlan, 200 services: UDP packet, fast path, flow: 1.250 \
                (1.200..1.300) times the kernel's\n";
    assert!(
        slower.text(false).starts_with(said),
        "{}",
        slower.text(false)
    );
    assert!(slower.text(true).starts_with("\x1b[31mslower"));
    for not_slower in [[99.0, 101.0], [100.0, 130.0], [10.0, 10.0]] {
        let text = beside_the_kernel(not_slower).text(true);
        assert!(text.starts_with("slower than the kernel: none\n") && !text.contains('\x1b'));
    }
}

#[test]
fn the_kernel_again_is_no_fast_path_however_slow() {
    let outcomes = vec![
        (Carrier::Kernel, series([100.0; 2])),
        (Carrier::KernelAgain, series([200.0; 2])),
    ];
    assert!(report(vec![(200, outcomes)]).slower().is_empty());
}

#[test]
fn more_events_are_not_slower() {
    let events = |count| {
        let series = Series {
            unit: Unit::Count,
            detail: false,
            samples: vec![count; 2],
        };
        Ok(vec![("retransmits".to_owned(), series)])
    };
    let outcomes = vec![(Carrier::Kernel, events(2.0)), (Carrier::Flow, events(9.0))];
    assert!(report(vec![(200, outcomes)]).slower().is_empty());
}

#[test]
fn a_report_is_read_back_as_it_was_written() {
    let mut written = beside_the_kernel([0.1, 0.2]);
    written.tables[0]
        .errors
        .push((Carrier::Native, "lost".to_owned()));
    let text = serde_json::to_string(&written).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), written);
}

#[test]
fn what_is_no_number_is_an_error_and_a_part_of_nothing_no_ratio() {
    let report = report(vec![(
        200,
        vec![
            (Carrier::Kernel, series([0.0; 2])),
            (Carrier::KernelAgain, series([f64::NAN, 1.0])),
            (Carrier::Flow, series([0.0, 1.0])),
        ],
    )]);
    assert_eq!(report.tables[0].errors.len(), 1);
    assert!(
        report.tables[0]
            .rows
            .iter()
            .all(|row| row.comparisons.is_empty())
    );
    let text = serde_json::to_string(&report).unwrap();
    serde_json::from_str::<Report>(&text).unwrap();
}

#[test]
fn every_sample_is_a_line_of_csv() {
    let mut report = beside_the_kernel([10.5, 11.0]);
    report.tables[0].rows[1].figure = "say \"x\", y".to_owned();
    let mut csv = Vec::new();
    report.csv(&mut csv).unwrap();
    let lines = String::from_utf8(csv).unwrap();
    let lines: Vec<_> = lines.lines().collect();
    assert_eq!(lines.len(), 1 + 4);
    assert_eq!(
        lines[0],
        "measure,backend,services,rules,bridge netfilter,figure,carrier,unit,round,value"
    );
    assert_eq!(
        lines[2],
        "forward,vxlan,200,iptables,true,UDP packet,kernel,ns,2,100"
    );
    assert_eq!(
        lines[3],
        "forward,vxlan,200,iptables,true,\"say \"\"x\"\", y\",\"fast path, flow\",ns,1,10.5"
    );
}

//! Reports that are made up, and changed a little.

use super::*;
use crate::{
    bounds::Bounds,
    measure::{Name, Unit},
    report::tests::EFFORT,
    rounds::Series,
    variants::{Backend, Carrier, Setting},
};

/// A bounded figure, by the kernel at 100 ns and by the fast path.
fn report(flow: f64) -> Report {
    let mut report = Report::new(0, EFFORT);
    let setting = Setting::usual(Backend::Vxlan, 200);
    let outcome = |value: f64| {
        let series = Series {
            unit: Unit::Nanoseconds,
            detail: false,
            samples: vec![value, value + 1.0],
        };
        Ok(vec![("UDP packet".to_owned(), series)])
    };
    let outcomes = vec![
        (Carrier::Kernel, outcome(100.0)),
        (Carrier::Flow, outcome(flow)),
    ];
    report.add(setting, &*Name::Forward.measure(), outcomes);
    report.compare(&Bounds::built_in());
    report
}

#[test]
fn the_largest_change_comes_first_whichever_way() {
    let changes = Changes::between(&report(10.0), &report(30.0));
    let ratios: Vec<_> = changes
        .both
        .iter()
        .filter_map(|change| change.ratio)
        .collect();
    assert_eq!(ratios, [30.5 / 10.5, 1.0]);
    let text = text(&report(10.0), &report(30.0));
    let at = |what: &str| {
        text.find(what)
            .unwrap_or_else(|| panic!("{what} is not in {text}"))
    };
    assert!(at("fast path, flow") < at("UDP packet, kernel"));
    assert!(text.contains("2.905  apart") && text.contains("1.000  overlap: no difference"));
}

#[test]
fn a_bounded_figure_fails_by_too_much_in_either_direction_and_by_its_absence() {
    let failed = |a: f64, b: f64, limit| gate::judge(&report(a), &report(b), limit).failed.len();
    assert_eq!(failed(10.0, 10.0, 0.0), 0);
    assert_eq!(failed(10.0, 11.0, 5.0), 1);
    assert_eq!(failed(11.0, 10.0, 5.0), 1);
    assert_eq!(failed(10.0, 11.0, 20.0), 0);
    let mut empty = report(10.0);
    empty.tables.clear();
    assert_eq!(gate::judge(&report(10.0), &empty, 5.0).failed.len(), 1);
    assert_eq!(gate::judge(&empty, &report(10.0), 5.0).judged, 0);
}

#[test]
fn what_only_one_has_and_what_differs_is_said() {
    let before = report(10.0);
    let mut after = report(10.0);
    after.machine.kernel = "0.0.1".to_owned();
    after.tables[0].rows.pop();
    let text = text(&before, &after);
    assert!(text.contains(&format!(
        "differs: kernel: A {}, B 0.0.1\n",
        before.machine.kernel
    )));
    assert!(
        text.contains("only in A: forward, vxlan, 200 services: UDP packet, fast path, flow\n")
    );
}

#[test]
fn a_file_that_is_no_report_is_named() {
    let path = std::env::temp_dir().join(format!("bench-no-report-{}.json", std::process::id()));
    std::fs::write(&path, "{\"tables\": 3}").unwrap();
    let error = output::read(&path).unwrap_err();
    std::fs::remove_file(&path).unwrap();
    let said = format!("{error:#}");
    assert!(
        said.starts_with(path.to_str().unwrap()) && !said.contains('\n'),
        "{said}"
    );
    assert!(said.contains("is not a report"), "{said}");
}

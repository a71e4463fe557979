//! The page of a report that is made up.

use crate::{
    bounds::Bounds,
    measure::{Name, Unit},
    report::{Report, tests::EFFORT},
    rounds::Series,
    variants::{Backend, Carrier, Setting},
};

/// Figures of the kernel and the fast path, with and without rules.
fn report(flow: f64) -> Report {
    let mut report = Report::new(0, EFFORT);
    for services in [200, 0] {
        let setting = Setting::usual(Backend::Vxlan, services);
        let outcome = |value: f64| {
            let figures = [
                "TCP, p50",
                "TCP, p99",
                "a <figure> & more",
                "x, 1 flow",
                "x, 1 000 flows",
            ];
            let figures = figures.map(|name| {
                let series = Series {
                    unit: Unit::Microseconds,
                    detail: false,
                    samples: vec![value, value * 1.01],
                };
                (name.to_owned(), series)
            });
            Ok(figures.into())
        };
        let outcomes = vec![
            (Carrier::Kernel, outcome(100.0)),
            (Carrier::KernelAgain, Err("it <broke>".to_owned())),
            (Carrier::Flow, outcome(flow)),
        ];
        report.add(setting, &*Name::Rr.measure(), outcomes);
    }
    report.compare(&Bounds::built_in());
    report
}

fn count(page: &str, what: &str) -> usize {
    page.matches(what).count()
}

#[test]
fn the_page_needs_nothing_else() {
    let page = report(50.0).html();
    for outside in [
        "http:", "https:", "<script", "<link", "<img", "url(", "@import",
    ] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(!page.contains("NaN") && !page.contains(">inf"));
}

#[test]
fn names_and_errors_are_no_markup() {
    let page = report(50.0).html();
    assert!(page.contains("a &lt;figure&gt; &amp; more") && !page.contains("<figure> & more"));
    assert!(page.contains("it &lt;broke&gt;"));
}

#[test]
fn each_kind_of_figure_has_its_chart() {
    let page = report(50.0).html();
    // Per setting: ratios, one of percentiles, three of bars, one against flows. Together: four against services.
    assert_eq!(count(&page, "<svg"), 2 * (1 + 1 + 3 + 1) + 4);
    assert_eq!(count(&page, "percentiles, µs"), 2);
    assert_eq!(count(&page, " against flows\""), 2);
    assert_eq!(count(&page, " against services\""), 4);
}

#[test]
fn what_is_slower_comes_first() {
    let (good, bad) = (report(50.0).html(), report(200.0).html());
    assert!(good.contains("Slower than the kernel: none"));
    assert!(bad.contains("Slower than the kernel: 10"));
    let at = |what: &str| bad.find(what).unwrap();
    assert!(at("Slower than the kernel") < at("<svg"));
    assert_eq!(
        count(&report(100.0).html(), "<g class=\"less\"")
            + count(&report(100.0).html(), "<g class=\"more\""),
        0
    );
}

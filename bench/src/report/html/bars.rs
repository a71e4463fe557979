//! A figure as one bar per carrier, with whiskers.

use maud::{Markup, html};

use super::{
    Colours,
    chart::{self, Scale, WIDTH, place},
};
use crate::report::Row;

/// Left: names. Right: numbers.
const NAMES: f64 = 116.0;
const NUMBERS: f64 = 66.0;
/// A row, and the bar in it.
const ROW: f64 = 24.0;
const BAR: f64 = 14.0;
/// Half the height of a whisker's end.
const END: f64 = 4.0;

/// The chart of a figure's rows, of which there is at least one.
pub fn chart(rows: &[&Row], colours: &Colours) -> Markup {
    let intervals: Vec<_> = rows
        .iter()
        .map(|row| chart::interval(&row.samples, &row.summary))
        .collect();
    let high = intervals
        .iter()
        .map(|interval| interval.high)
        .fold(0.0, f64::max);
    let low = intervals
        .iter()
        .map(|interval| interval.low)
        .fold(0.0, f64::min);
    // Of nothing but zeros: bars without length, at the left.
    let high = if high > low { high } else { low + 1.0 };
    let scale = Scale::linear((low, high), (NAMES, WIDTH - NUMBERS));
    let zero = scale.at(0.0);
    let height = ROW * rows.len() as f64;
    let title = format!("{}, {}", rows[0].figure, rows[0].unit.name());
    html! {
        figure {
            figcaption { (rows[0].figure) " " span { (rows[0].unit.name()) } }
            svg viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-label=(title) {
                @for (index, (row, interval)) in rows.iter().zip(&intervals).enumerate() {
                    @let middle = ROW * (index as f64 + 0.5);
                    @let end = scale.at(row.summary.median);
                    @let number = chart::number(row.summary.median, row.unit);
                    g class=(colours.class(row.carrier)) {
                        title {
                            (row.carrier.name()) ": " (number) " " (row.unit.name()) ", "
                            (chart::number(interval.low, row.unit)) " to " (chart::number(interval.high, row.unit))
                        }
                        text x=(place(NAMES - 8.0)) y=(place(middle + 4.0)) text-anchor="end" { (row.carrier.name()) }
                        rect.bar x=(place(zero.min(end))) y=(place(middle - BAR / 2.0)) width=(place((end - zero).abs()))
                            height=(place(BAR)) rx="2" {}
                        (whisker(scale.at(interval.low), scale.at(interval.high), middle))
                        text x=(place(WIDTH)) y=(place(middle + 4.0)) text-anchor="end" { (number) }
                    }
                }
                line.grid x1=(place(zero)) x2=(place(zero)) y1="0" y2=(place(height)) {}
            }
        }
    }
}

/// From one place to another, lying.
pub fn whisker(from: f64, to: f64, middle: f64) -> Markup {
    html! {
        line.whisker x1=(place(from)) x2=(place(to)) y1=(place(middle)) y2=(place(middle)) {}
        @for end in [from, to] {
            line.whisker x1=(place(end)) x2=(place(end)) y1=(place(middle - END)) y2=(place(middle + END)) {}
        }
    }
}

//! A figure against a number of services, flows or nodes: one line per carrier.

use maud::{Markup, html};

use super::{
    Colours,
    chart::{self, Scale, WIDTH, mark, place},
};
use crate::{report::Row, variants::Carrier};

const HEIGHT: f64 = 200.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = WIDTH - 18.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = HEIGHT - 36.0;
const POINT: f64 = 3.5;
/// Marks on the upright axis, about.
const MARKS: usize = 4;

/// What is drawn: the numbers with the figure's rows of all carriers.
pub struct Series<'a> {
    /// The figure's name.
    pub name: &'a str,
    /// What the number counts.
    pub what: &'a str,
    /// At each number; two numbers at least.
    pub points: Vec<(f64, Vec<&'a Row>)>,
}

/// The chart, where a carrier has more than one number.
pub fn chart(series: &Series<'_>, colours: &Colours) -> Option<Markup> {
    let lines = lines(series);
    let rows = || {
        lines
            .iter()
            .flat_map(|(_, points)| points.iter().map(|(_, row)| *row))
    };
    let unit = rows().next()?.unit;
    let intervals = rows().map(|row| chart::interval(&row.samples, &row.summary));
    let (mut low, mut high) = (0.0_f64, f64::MIN_POSITIVE);
    for interval in intervals {
        (low, high) = (low.min(interval.low), high.max(interval.high));
    }
    let marks = chart::ticks(low, high, MARKS);
    let y = Scale::linear((marks[0], marks[marks.len() - 1]), (BOTTOM, TOP));
    let numbers: Vec<f64> = series.points.iter().map(|(number, _)| *number).collect();
    let x = Scale::counting((numbers[0], *numbers.last()?), (LEFT + 14.0, RIGHT - 14.0));
    Some(html! {
        figure {
            figcaption { (series.name) " " span { (unit.name()) } }
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(format!("{} against {}", series.name, series.what)) {
                @for value in &marks {
                    @let y = y.at(*value);
                    line.grid x1=(place(LEFT)) x2=(place(RIGHT)) y1=(place(y)) y2=(place(y)) {}
                    text.muted x=(place(LEFT - 6.0)) y=(place(y + 4.0)) text-anchor="end" { (mark(*value)) }
                }
                @for number in &numbers {
                    text.muted x=(place(x.at(*number))) y=(place(BOTTOM + 16.0)) text-anchor="middle" { (mark(*number)) }
                }
                text.muted x=(place(RIGHT)) y=(place(HEIGHT - 4.0)) text-anchor="end" { (series.what) }
                // The kernel on top of itself again.
                @for (carrier, points) in lines.iter().rev() {
                    g class=(colours.class(*carrier)) {
                        @let path: Vec<String> = points
                            .iter()
                            .map(|(number, row)| format!("{:.1},{:.1}", x.at(*number), y.at(row.summary.median)))
                            .collect();
                        polyline.curve points=(path.join(" ")) {}
                        @for (number, row) in points {
                            @let x = x.at(*number);
                            @let interval = chart::interval(&row.samples, &row.summary);
                            line.spread x1=(place(x)) x2=(place(x)) y1=(place(y.at(interval.low))) y2=(place(y.at(interval.high))) {}
                            circle.point cx=(place(x)) cy=(place(y.at(row.summary.median))) r=(POINT) {
                                title {
                                    (carrier.name()) ", " (mark(*number)) " " (series.what) ": "
                                    (chart::number(row.summary.median, unit)) " " (unit.name())
                                }
                            }
                        }
                    }
                }
            }
        }
    })
}

/// The points of each carrier that has more than one.
fn lines<'a>(series: &Series<'a>) -> Vec<(Carrier, Vec<(f64, &'a Row)>)> {
    let mut lines: Vec<(Carrier, Vec<(f64, &Row)>)> = Vec::new();
    for (number, rows) in &series.points {
        for row in rows {
            match lines
                .iter_mut()
                .find(|(carrier, _)| *carrier == row.carrier)
            {
                Some((_, points)) => points.push((*number, row)),
                None => lines.push((row.carrier, vec![(*number, row)])),
            }
        }
    }
    lines.retain(|(_, points)| points.len() > 1);
    lines
}

//! Percentiles of the same times as one curve per carrier: times from left to right, the share that is faster upwards,
//! each step of the scale a tenth of what is slower.

use maud::{Markup, html};

use super::{
    Colours,
    chart::{self, Scale, WIDTH, mark, place},
    group::Percentiles,
};
use crate::{
    report::{Row, Table},
    variants::Carrier,
};

const HEIGHT: f64 = 190.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = WIDTH - 16.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = HEIGHT - 36.0;
const POINT: f64 = 3.5;

/// A carrier's figures in the group's order, with their percents.
type Curve<'a> = (Carrier, Vec<(f64, &'a Row)>);

/// The chart, where there are times to draw.
pub fn chart(table: &Table, group: &Percentiles, colours: &Colours) -> Option<Markup> {
    let curves = curves(table, group);
    let rows = || {
        curves
            .iter()
            .flat_map(|(_, rows)| rows.iter().map(|(_, row)| *row))
    };
    let intervals = rows().map(|row| chart::interval(&row.samples, &row.summary));
    let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
    for interval in intervals {
        (low, high) = (low.min(interval.low), high.max(interval.high));
    }
    let unit = rows().next()?.unit;
    // No time at all has no place on a logarithmic scale.
    if low <= 0.0 {
        return None;
    }
    let marks = chart::ratio_ticks(low, high);
    let x = Scale::logarithmic((marks[0], marks[marks.len() - 1]), (LEFT, RIGHT));
    let slowest = group.figures.iter().map(|(percent, _)| nines(*percent));
    let y = Scale::linear((0.0, slowest.fold(0.0, f64::max)), (BOTTOM, TOP));
    Some(html! {
        figure {
            figcaption { (group.name) " " span { "percentiles, " (unit.name()) } }
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(format!("{}, percentiles", group.name)) {
                @for value in &marks {
                    @let x = x.at(*value);
                    line.grid x1=(place(x)) x2=(place(x)) y1=(place(TOP)) y2=(place(BOTTOM)) {}
                    text.muted x=(place(x)) y=(place(BOTTOM + 15.0)) text-anchor="middle" { (mark(*value)) }
                }
                text.muted x=(place(RIGHT)) y=(place(HEIGHT - 4.0)) text-anchor="end" { (unit.name()) ", logarithmic" }
                @for (percent, _) in &group.figures {
                    @let y = y.at(nines(*percent));
                    line.grid x1=(place(LEFT)) x2=(place(RIGHT)) y1=(place(y)) y2=(place(y)) {}
                    text.muted x=(place(LEFT - 8.0)) y=(place(y + 4.0)) text-anchor="end" { "p" (percent) }
                }
                // The kernel on top of itself again.
                @for (carrier, rows) in curves.iter().rev() {
                    g class=(colours.class(*carrier)) {
                        @let path: Vec<String> = rows
                            .iter()
                            .map(|(percent, row)| format!("{:.1},{:.1}", x.at(row.summary.median), y.at(nines(*percent))))
                            .collect();
                        polyline.curve points=(path.join(" ")) {}
                        @for (percent, row) in rows {
                            @let y = y.at(nines(*percent));
                            @let interval = chart::interval(&row.samples, &row.summary);
                            line.spread x1=(place(x.at(interval.low))) x2=(place(x.at(interval.high))) y1=(place(y)) y2=(place(y)) {}
                            circle.point cx=(place(x.at(row.summary.median))) cy=(place(y)) r=(POINT) {
                                title {
                                    (carrier.name()) ", p" (percent) ": " (chart::number(row.summary.median, unit)) " " (unit.name())
                                }
                            }
                        }
                    }
                }
            }
        }
    })
}

fn curves<'a>(table: &'a Table, group: &Percentiles) -> Vec<Curve<'a>> {
    let mut curves: Vec<Curve<'a>> = Vec::new();
    for (percent, figure) in &group.figures {
        for row in table.rows.iter().filter(|row| row.figure == *figure) {
            match curves
                .iter_mut()
                .find(|(carrier, _)| *carrier == row.carrier)
            {
                Some((_, rows)) => rows.push((*percent, row)),
                None => curves.push((row.carrier, vec![(*percent, row)])),
            }
        }
    }
    curves
}

/// How many nines: 1 for the 90th percentile, 2 for the 99th.
fn nines(percent: f64) -> f64 {
    -(1.0 - percent / 100.0).log10()
}

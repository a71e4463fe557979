//! The fast path's figures as ratios to the kernel's, all of a table in one chart.

use maud::{Markup, html};

use super::{
    bars::whisker,
    chart::{self, Scale, mark, place},
};
use crate::{
    measure::Unit,
    report::{Comparison, Row, Table, slower::EQUAL},
    variants::Carrier,
};

const WIDTH: f64 = 860.0;
/// Left: figures and carriers. Right: numbers.
const FIGURES: f64 = 240.0;
const NAMES: f64 = 366.0;
const NUMBERS: f64 = 172.0;
const ROW: f64 = 22.0;
const BAR: f64 = 12.0;
const AXIS: f64 = 22.0;
/// The axis goes from 0 so far at least, and so far at most: what is larger ends there, with its number beside it.
const LEAST: f64 = 1.25;
const MOST: f64 = 3.0;
/// Marks on the axis, about.
const MARKS: usize = 6;

/// The chart, where there is anything to compare.
pub fn chart(table: &Table) -> Option<Markup> {
    let rows: Vec<(&Row, &Comparison)> = table
        .rows
        .iter()
        .filter(|row| !row.detail && row.carrier.is_fast() && row.unit != Unit::Count)
        .filter_map(|row| Some((row, row.to_kernel()?)))
        .collect();
    let largest = rows
        .iter()
        .map(|(_, to)| to.interval.high)
        .fold(LEAST, f64::max);
    if rows.is_empty() {
        return None;
    }
    let marks = chart::ticks(0.0, largest.min(MOST), MARKS);
    let end = marks.last().copied().unwrap_or(MOST);
    let scale = Scale::linear((0.0, end), (NAMES, WIDTH - NUMBERS));
    let bottom = ROW * rows.len() as f64;
    let height = bottom + AXIS;
    Some(html! {
        figure.wide {
            figcaption {
                "Ratio to the kernel " span { "less is better; shaded: kernel again, the noise of this machine; grey: no difference" }
            }
            svg viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-label="Ratios to the kernel" {
                @for (index, (row, _)) in rows.iter().enumerate() {
                    @if let Some(noise) = noise(table, row) {
                        @let (low, high) = (scale.at(noise.interval.low), scale.at(noise.interval.high));
                        rect.band x=(place(low)) y=(place(ROW * index as f64 + 1.0)) width=(place(high - low))
                            height=(place(ROW - 2.0)) {}
                    }
                }
                @for value in &marks {
                    @let x = scale.at(*value);
                    line.grid x1=(place(x)) x2=(place(x)) y1="0" y2=(place(bottom)) {}
                    text.muted x=(place(x)) y=(place(height - 6.0)) text-anchor="middle" { (mark(*value)) }
                }
                @for (index, (row, to)) in rows.iter().enumerate() {
                    @let top = ROW * index as f64;
                    (self::row(row, to, &scale, top, index == 0 || rows[index - 1].0.figure != row.figure))
                }
                @let one = scale.at(EQUAL);
                line.one x1=(place(one)) x2=(place(one)) y1="0" y2=(place(bottom)) {}
            }
        }
    })
}

/// How far the kernel's path differs from itself.
fn noise<'a>(table: &'a Table, row: &Row) -> Option<&'a Comparison> {
    let mut rows = table.rows.iter();
    let again =
        rows.find(|other| other.figure == row.figure && other.carrier == Carrier::KernelAgain);
    again?.to_kernel()
}

fn row(row: &Row, to: &Comparison, scale: &Scale, top: f64, is_first: bool) -> Markup {
    let middle = top + ROW / 2.0;
    let base = middle + 4.0;
    let (start, end) = (scale.at(0.0), scale.at(to.summary.median));
    let value = format!("{:.3}", to.summary.median);
    let class = chart::class(&to.interval, EQUAL);
    let said = if class == "same" {
        "no difference".to_owned()
    } else {
        format!("{:.3} – {:.3}", to.interval.low, to.interval.high)
    };
    html! {
        g class=(class) {
            title {
                (row.figure) ", " (row.carrier.name()) ": " (value) ", " (format!("{:.3} to {:.3}", to.interval.low, to.interval.high))
            }
            @if is_first {
                text x="0" y=(place(base)) { (row.figure) }
            }
            text.muted x=(place(FIGURES)) y=(place(base)) { (row.carrier.name()) }
            rect.bar x=(place(start)) y=(place(middle - BAR / 2.0)) width=(place(end - start)) height=(place(BAR)) rx="2" {}
            (whisker(scale.at(to.interval.low), scale.at(to.interval.high), middle))
            text.ratio-value x=(place(WIDTH - NUMBERS + 52.0)) y=(place(base)) text-anchor="end" { (value) }
            text.muted x=(place(WIDTH)) y=(place(base)) text-anchor="end" { (said) }
        }
    }
}

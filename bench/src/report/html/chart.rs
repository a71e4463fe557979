//! What all charts need: scales, marks on them, and numbers as people read them.

use crate::{
    measure::Unit,
    stats::{Interval, Summary},
};

/// Width of a small chart, in units of its own, which are pixels unless the page is narrow.
pub const WIDTH: f64 = 372.0;

/// From values to places on an axis.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    from: (f64, f64),
    to: (f64, f64),
    transform: fn(f64) -> f64,
}

impl Scale {
    /// Equal steps for equal differences.
    pub fn linear(from: (f64, f64), to: (f64, f64)) -> Self {
        Self::new(from, to, |value| value)
    }

    /// Equal steps for equal ratios; values are above 0.
    pub fn logarithmic(from: (f64, f64), to: (f64, f64)) -> Self {
        Self::new(from, to, f64::ln)
    }

    /// As logarithmic for large numbers, with a place for 0.
    pub fn counting(from: (f64, f64), to: (f64, f64)) -> Self {
        Self::new(from, to, f64::ln_1p)
    }

    fn new(from: (f64, f64), to: (f64, f64), transform: fn(f64) -> f64) -> Self {
        Self {
            from: (transform(from.0), transform(from.1)),
            to,
            transform,
        }
    }

    /// Where a value is; beyond the ends is at the ends, and with one value for both ends in the middle.
    pub fn at(&self, value: f64) -> f64 {
        let range = self.from.1 - self.from.0;
        if range <= 0.0 {
            return f64::midpoint(self.to.0, self.to.1);
        }
        let part = ((self.transform)(value) - self.from.0) / range;
        self.to.0 + part.clamp(0.0, 1.0) * (self.to.1 - self.to.0)
    }
}

/// Round numbers from `low` to at least `high`, about `count` of them.
pub fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let range = (high - low).max(f64::MIN_POSITIVE);
    let rough = range / count as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(10.0 * power);
    // Counted, not added up: the last one would be missed by a rounding error.
    let (first, last) = (
        (low / step).floor() as i64,
        (high / step - 1e-9).ceil() as i64,
    );
    (first..=last).map(|index| index as f64 * step).collect()
}

/// 1, 2 and 5 of each power of ten around `low` to `high`, which are above 0.
pub fn ratio_ticks(low: f64, high: f64) -> Vec<f64> {
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let all: Vec<f64> = powers
        .flat_map(|power| [1.0, 2.0, 5.0].map(|factor| factor * 10f64.powi(power)))
        .collect();
    let first = all.iter().rposition(|tick| *tick <= low).unwrap_or(0);
    let last = all.iter().position(|tick| *tick >= high);
    all[first..=last.unwrap_or(all.len() - 1)].to_vec()
}

/// A place in a chart.
pub fn place(value: f64) -> String {
    format!("{value:.1}")
}

/// A number of a unit, its thousands apart.
pub fn number(value: f64, unit: Unit) -> String {
    grouped(&format!("{value:.*}", unit.decimals()))
}

/// A number at an axis: no more decimals than it has.
pub fn mark(value: f64) -> String {
    let text = format!("{value:.2}");
    grouped(text.trim_end_matches('0').trim_end_matches('.'))
}

fn grouped(number: &str) -> String {
    const NARROW_SPACE: char = '\u{202f}';
    let (whole, decimals) = number
        .split_once('.')
        .map_or((number, None), |(whole, decimals)| (whole, Some(decimals)));
    let (sign, digits) = match whole.strip_prefix('-') {
        Some(digits) => ("−", digits),
        None => ("", whole),
    };
    let mut text = sign.to_owned();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(NARROW_SPACE);
        }
        text.push(digit);
    }
    if let Some(decimals) = decimals {
        text.push('.');
        text.push_str(decimals);
    }
    text
}

/// Of the samples' median.
pub fn interval(samples: &[f64], summary: &Summary) -> Interval {
    Interval::of(samples).unwrap_or(Interval {
        low: summary.min,
        high: summary.max,
    })
}

/// Whether a ratio says less than the kernel, more, or that nobody knows.
pub fn class(interval: &Interval, none: f64) -> &'static str {
    if interval.contains(none) {
        "same"
    } else if interval.high < none {
        "less"
    } else {
        "more"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_both_ends() {
        assert_eq!(ticks(0.0, 47.0, 5), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(ticks(0.0, 1.0, 4), [0.0, 0.25, 0.5, 0.75, 1.0]);
        assert_eq!(ticks(-3.0, 8.0, 4), [-5.0, 0.0, 5.0, 10.0]);
        assert_eq!(ratio_ticks(3.0, 70.0), [2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(ratio_ticks(10.0, 10.0), [10.0]);
    }

    #[test]
    fn scales_meet_their_ends() {
        let scale = Scale::logarithmic((10.0, 1_000.0), (0.0, 100.0));
        assert!((scale.at(100.0) - 50.0).abs() < 1e-9);
        assert_eq!((scale.at(10.0), scale.at(5_000.0)), (0.0, 100.0));
        assert_eq!(Scale::counting((0.0, 200.0), (100.0, 0.0)).at(0.0), 100.0);
        assert_eq!(Scale::linear((1.0, 1.0), (0.0, 10.0)).at(1.0), 5.0);
    }

    #[test]
    fn thousands_are_apart() {
        assert_eq!(
            number(1_234_567.26, Unit::Nanoseconds),
            "1\u{202f}234\u{202f}567.3"
        );
        assert_eq!(number(-1_234.0, Unit::Count), "−1\u{202f}234");
        assert_eq!(number(999.0, Unit::Microseconds), "999.00");
        assert_eq!(
            (mark(0.25), mark(20.0)),
            ("0.25".to_owned(), "20".to_owned())
        );
    }
}

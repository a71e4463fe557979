//! Medians and spreads of a few samples.
//!
//! No mean and no variance: one round that a neighbour disturbed would move both.

use serde::{Deserialize, Serialize};

/// What is said about the samples of one row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The middle value, or the mean of the two in the middle.
    pub median: f64,
    /// Median of the absolute deviations from the median.
    pub deviation: f64,
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
}

impl Summary {
    /// Summarises samples in any order; nothing can be said of none.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let sorted = sorted(samples.iter().copied());
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let median = middle(&sorted);
        let deviations = sorted.iter().map(|sample| (sample - median).abs());
        Some(Self {
            median,
            deviation: middle(&self::sorted(deviations)),
            min,
            max,
        })
    }
}

/// Where the true median lies, by at least 95 % if there are six samples or more.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// From the samples that so few lie beyond that chance would put the true median there once in twenty times at the
    /// most: each sample lies on either side of it with the same probability, however they are distributed. Of fewer than
    /// six samples the smallest and the largest, which promise less.
    pub fn of(samples: &[f64]) -> Option<Self> {
        /// Outside, at both ends together.
        const OUTSIDE: f64 = 0.05;
        let sorted = sorted(samples.iter().copied());
        let (first, last) = (0, sorted.len().checked_sub(1)?);
        // The probability that exactly so many samples lie below the true median.
        let mut exactly = 0.5f64.powi(sorted.len() as i32);
        let mut at_most = exactly;
        let mut beyond = 0;
        while beyond < last {
            exactly *= (sorted.len() - beyond) as f64 / (beyond + 1) as f64;
            at_most += exactly;
            if 2.0 * at_most > OUTSIDE {
                break;
            }
            beyond += 1;
        }
        Some(Self {
            low: sorted[first + beyond],
            high: sorted[last - beyond],
        })
    }

    /// Whether both hold a value.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.low <= other.high && other.low <= self.high
    }

    /// Whether a value may be the true one.
    pub fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// The quotients of samples that were taken in the same round: what disturbs a whole round falls out.
pub fn pairwise(samples: &[f64], base: &[f64]) -> Vec<f64> {
    samples.iter().zip(base).map(|(a, b)| a / b).collect()
}

/// The differences of samples that were taken in the same round.
pub fn differences(samples: &[f64], base: &[f64]) -> Vec<f64> {
    samples.iter().zip(base).map(|(a, b)| a - b).collect()
}

fn sorted(samples: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut samples: Vec<f64> = samples.collect();
    samples.sort_by(f64::total_cmp);
    samples
}

/// The middle of sorted values, of which there is at least one.
fn middle(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[half]
    } else {
        f64::midpoint(sorted[half - 1], sorted[half])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outlier_moves_only_the_range() {
        let calm = Summary::of(&[12.0, 10.0, 11.0, 9.0, 13.0]).unwrap();
        let disturbed = Summary::of(&[12.0, 10.0, 11.0, 9.0, 900.0]).unwrap();
        assert_eq!((calm.median, calm.deviation), (11.0, 1.0));
        assert_eq!((disturbed.median, disturbed.deviation), (11.0, 1.0));
        assert_eq!((calm.min, calm.max), (9.0, 13.0));
        assert_eq!((disturbed.min, disturbed.max), (9.0, 900.0));
    }

    #[test]
    fn an_even_number_of_samples_has_its_median_in_between() {
        let summary = Summary::of(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((summary.median, summary.deviation), (2.5, 1.0));
    }

    #[test]
    fn one_sample_has_no_spread_and_none_has_no_summary() {
        let one = Summary::of(&[7.0]).unwrap();
        assert_eq!(
            (one.median, one.deviation, one.min, one.max),
            (7.0, 0.0, 7.0, 7.0)
        );
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn an_interval_narrows_with_agreement_and_survives_an_outlier() {
        let agreed = [0.50, 0.51, 0.49, 0.50, 0.50, 0.51, 0.50, 0.51, 9.0];
        let agreed = Interval::of(&agreed).unwrap();
        assert!(agreed.low >= 0.49 && agreed.high <= 0.51, "{agreed:?}");
        let noisy = Interval::of(&[0.8, 1.2, 0.9, 1.1, 1.0, 0.7, 1.3]).unwrap();
        assert_eq!((noisy.low, noisy.high), (0.7, 1.3));
        let few = Interval::of(&[0.8, 1.2, 0.9]).unwrap();
        assert_eq!((few.low, few.high), (0.8, 1.2));
    }

    #[test]
    fn as_many_samples_lie_beyond_as_tables_of_the_sign_test_say() {
        for (samples, beyond) in [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (12, 2), (25, 7)] {
            let numbers: Vec<f64> = (0..samples).map(|number| number as f64).collect();
            let interval = Interval::of(&numbers).unwrap();
            assert_eq!(interval.low as usize, beyond, "{samples}");
            assert_eq!(interval.high as usize, samples - 1 - beyond, "{samples}");
        }
        assert_eq!(Interval::of(&[]), None);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The second round ran on a machine twice as slow.
        let ratios = pairwise(&[1.0, 2.0, 1.0], &[10.0, 20.0, 10.0]);
        assert_eq!(ratios, [0.1, 0.1, 0.1]);
        assert_eq!(Summary::of(&ratios).unwrap().deviation, 0.0);
    }
}

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

/// Where the true median lies, by 95 %: the bootstrap's percentiles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// Draws from the samples again and again, the same way in each run of the benchmark. Of fewer than five samples,
    /// the ends are the smallest and the largest.
    pub fn of(samples: &[f64]) -> Option<Self> {
        const DRAWS: usize = 2_000;
        const OUTSIDE: usize = DRAWS / 40; // at each end
        let summary = Summary::of(samples)?;
        if samples.len() < 5 {
            return Some(Self {
                low: summary.min,
                high: summary.max,
            });
        }
        let mut random = Random(1);
        let medians = (0..DRAWS).map(|_| {
            let drawn = samples.iter().map(|_| samples[random.below(samples.len())]);
            middle(&sorted(drawn))
        });
        let medians = sorted(medians);
        Some(Self {
            low: medians[OUTSIDE],
            high: medians[DRAWS - 1 - OUTSIDE],
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

/// Marsaglia's xorshift, 64 bits: good enough to draw samples.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % limit
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
        let agreed = Interval::of(&[0.50, 0.51, 0.49, 0.50, 0.50, 0.51, 9.0]).unwrap();
        assert!(agreed.low >= 0.49 && agreed.high <= 0.51, "{agreed:?}");
        let noisy = Interval::of(&[0.8, 1.2, 0.9, 1.1, 1.0, 0.7, 1.3]).unwrap();
        assert!(
            noisy.contains(1.0) && noisy.high - noisy.low > 0.2,
            "{noisy:?}"
        );
        let few = Interval::of(&[0.8, 1.2, 0.9]).unwrap();
        assert_eq!((few.low, few.high), (0.8, 1.2));
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The second round ran on a machine twice as slow.
        let ratios = pairwise(&[1.0, 2.0, 1.0], &[10.0, 20.0, 10.0]);
        assert_eq!(ratios, [0.1, 0.1, 0.1]);
        assert_eq!(Summary::of(&ratios).unwrap().deviation, 0.0);
    }
}

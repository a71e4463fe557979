//! What is being measured, and how much longer it all takes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Rounds that are still to come, and what those of the past have taken.
pub struct Progress {
    start: Instant,
    /// Rounds to come, by measure.
    left: BTreeMap<&'static str, usize>,
    /// Rounds that are over and their time, by measure.
    past: BTreeMap<&'static str, (u32, Duration)>,
    /// The round that is under way.
    current: Option<(&'static str, Instant)>,
}

impl Progress {
    /// Nothing is measured yet of so many rounds of measures.
    pub fn new(rounds: impl Iterator<Item = (&'static str, usize)>) -> Self {
        let mut left = BTreeMap::new();
        for (measure, rounds) in rounds {
            *left.entry(measure).or_default() += rounds;
        }
        Self {
            start: Instant::now(),
            left,
            past: BTreeMap::new(),
            current: None,
        }
    }

    /// A round of `measure` begins, and the one before is over; `what` describes it.
    pub fn begin(&mut self, measure: &'static str, what: impl FnOnce() -> String) {
        let now = Instant::now();
        self.change(measure, now);
        let left = self.time_left().map_or(String::new(), |left| {
            format!(", about {} s left", left.as_secs())
        });
        let elapsed = (now - self.start).as_secs();
        eprintln!("{elapsed:4} s{left}: {}", what());
    }

    fn change(&mut self, measure: &'static str, now: Instant) {
        if let Some((measure, since)) = self.current.replace((measure, now)) {
            let (rounds, time) = self.past.entry(measure).or_default();
            *rounds += 1;
            *time += now - since;
        }
        if let Some(rounds) = self.left.get_mut(measure) {
            *rounds = rounds.saturating_sub(1);
        }
    }

    /// The time of the rounds to come and the one that has begun, by what earlier ones took; those of measures that were
    /// not seen yet are taken for average ones.
    fn time_left(&self) -> Option<Duration> {
        let (rounds, time) = self.past.values().fold((0, Duration::ZERO), |sum, one| {
            (sum.0 + one.0, sum.1 + one.1)
        });
        let average = time.checked_div(rounds)?;
        let each = |measure| {
            let past = self.past.get(measure);
            past.and_then(|(rounds, time)| time.checked_div(*rounds))
                .unwrap_or(average)
        };
        let to_come = self
            .left
            .iter()
            .map(|(&measure, &rounds)| each(measure) * u32::try_from(rounds).unwrap_or(u32::MAX));
        let current = self.current.map(|(measure, _)| each(measure));
        Some(to_come.chain(current).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_judged_by_what_was() {
        let mut progress = Progress::new([("a", 3), ("b", 1)].into_iter());
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        progress.change("a", at(0));
        assert_eq!(progress.time_left(), None, "nothing is known yet");
        progress.change("a", at(10));
        // This round, one more of `a`, and one of `b`, which is unknown.
        assert_eq!(progress.time_left(), Some(Duration::from_secs(30)));
        progress.change("b", at(20));
        progress.change("a", at(22));
        assert_eq!(progress.time_left(), Some(Duration::from_secs(10)));
    }
}

//! Annotations that somebody else keeps changing: how often they are put right, and when an operator is told.
//!
//! Pure: the caller patches, and says what time it is.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::lease::kube::annotations::{Key, Names};

/// Shortest time between two patches.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Longest time before the same is patched again.
const INTERVAL_MAX: Duration = Duration::from_secs(300);
/// From so many repetitions on it is a problem.
const STATED: u32 = 3;

/// Values that were written, by annotation.
type Written = BTreeMap<Key, String>;

/// The last patch, and how often it came before.
pub struct Rewrites {
    last: Option<(Instant, Written)>,
    /// The time after it before the same is patched again.
    interval: Duration,
    repeated: u32,
}

impl Rewrites {
    /// Nothing was patched.
    pub const fn new() -> Self {
        Self {
            last: None,
            interval: INTERVAL_MIN,
            repeated: 0,
        }
    }

    /// When `changes` may be patched; none for at any time. What is news waits no longer than it must.
    pub fn earliest(&self, changes: &Written) -> Option<Instant> {
        let (at, written) = self.last.as_ref()?;
        let interval = if written == changes {
            self.interval
        } else {
            INTERVAL_MIN
        };
        Some(*at + interval)
    }

    /// Takes note that `changes` were patched.
    pub fn patched(&mut self, changes: Written, now: Instant) {
        self.settle(now);
        let again = self.last.as_ref().is_some_and(|(_, last)| *last == changes);
        (self.interval, self.repeated) = if again {
            ((self.interval * 2).min(INTERVAL_MAX), self.repeated + 1)
        } else {
            (INTERVAL_MIN, 0)
        };
        self.last = Some((now, changes));
    }

    /// Forgets all once nothing was patched for twice the interval.
    pub fn settle(&mut self, now: Instant) {
        if self.quiet().is_some_and(|quiet| quiet <= now) {
            *self = Self::new();
        }
    }

    fn quiet(&self) -> Option<Instant> {
        self.last.as_ref().map(|(at, _)| *at + self.interval * 2)
    }

    /// When the problem is over if nothing is patched until then; none while there is no problem.
    pub fn over(&self) -> Option<Instant> {
        self.quiet().filter(|_| self.repeated >= STATED)
    }

    /// The problem, with the annotations that it is about.
    pub fn problem(&self, names: &Names) -> Option<String> {
        let (_, written) = self.last.as_ref().filter(|_| self.repeated >= STATED)?;
        let written: Vec<_> = written
            .iter()
            .map(|(key, value)| format!("{} = {value}", names.full(*key)))
            .collect();
        Some(format!(
            "somebody else keeps writing annotations that are this agent's: {}; find who does, such as another flannel on \
             this node",
            written.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::kube::DEFAULT_PREFIX;

    fn written(address: &str) -> Written {
        BTreeMap::from([(Key::PublicIp, address.to_owned())])
    }

    #[test]
    fn what_is_patched_again_and_again_is_patched_ever_more_seldom() {
        let names = Names::new(DEFAULT_PREFIX).unwrap();
        let ours = written("10.0.0.1");
        let mut rewrites = Rewrites::new();
        assert_eq!(rewrites.earliest(&ours), None);
        let mut now = Instant::now();
        let mut intervals = Vec::new();
        for number in 0..12 {
            rewrites.patched(ours.clone(), now);
            let problem = rewrites.problem(&names);
            assert_eq!(problem.is_some(), number >= 3, "{number}");
            assert_eq!(rewrites.over().is_some(), number >= 3, "{number}");
            let earliest = rewrites.earliest(&ours).unwrap();
            intervals.push((earliest - now).as_secs());
            now = earliest;
        }
        assert_eq!(intervals, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        let problem = rewrites.problem(&names).unwrap();
        assert!(
            problem.contains("flannel.alpha.coreos.com/public-ip = 10.0.0.1"),
            "{problem}"
        );
        rewrites.settle(now);
        assert!(rewrites.problem(&names).is_some(), "not for long enough");
        rewrites.settle(now + INTERVAL_MAX);
        assert_eq!(rewrites.problem(&names), None);
        assert_eq!(rewrites.earliest(&ours), None);
    }

    #[test]
    fn what_is_news_is_no_repetition() {
        let names = Names::new(DEFAULT_PREFIX).unwrap();
        let mut rewrites = Rewrites::new();
        let now = Instant::now();
        for number in 0..10 {
            rewrites.patched(written(&format!("10.0.0.{number}")), now);
            assert_eq!(rewrites.earliest(&written("")), Some(now + INTERVAL_MIN));
            assert_eq!(rewrites.problem(&names), None);
        }
    }
}

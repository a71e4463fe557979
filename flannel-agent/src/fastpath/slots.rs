//! Which slots of an array of values are free.
//!
//! A program that has been led to a slot reads it while the index may already lead elsewhere. So a slot that was given
//! back rests before it is written again: by far longer than any program runs.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use flannel_common::maps::NO_SLOT;

/// How long a slot rests. Programs run for microseconds; the time is for a processor that stands still meanwhile, as
/// those of virtual machines do.
const REST: Duration = Duration::from_secs(1);

/// The slots of one array.
#[derive(Debug)]
pub struct Slots {
    /// The first that nobody has used.
    next: u32,
    /// How many there are.
    count: u32,
    /// Those that were given back, the oldest first.
    resting: VecDeque<(u32, Instant)>,
}

impl Slots {
    /// `count` slots, of which an earlier agent has left those in `taken` in use. It gave out new ones in their order, so
    /// free ones before the last of them may have been given back a moment ago.
    pub fn new(count: u32, taken: &BTreeSet<u32>, now: Instant) -> Self {
        let next = taken.last().map_or(NO_SLOT, |last| *last) + 1;
        let free = (NO_SLOT + 1..next).filter(|slot| !taken.contains(slot));
        Self {
            next,
            count,
            resting: free.map(|slot| (slot, now)).collect(),
        }
    }

    /// A slot that no program looks at; none if all are in use or rest.
    pub fn take(&mut self, now: Instant) -> Option<u32> {
        // Never used ones first, so that the others rest for long.
        if self.next < self.count {
            self.next += 1;
            return Some(self.next - 1);
        }
        let (slot, since) = self.resting.front().copied()?;
        if now.saturating_duration_since(since) < REST {
            return None;
        }
        self.resting.pop_front();
        Some(slot)
    }

    /// Takes back a slot that nothing leads to any more.
    pub fn give_back(&mut self, slot: u32, now: Instant) {
        self.resting.push_back((slot, now));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_slot_rests_before_it_is_used_again() {
        let start = Instant::now();
        let mut slots = Slots::new(3, &BTreeSet::new(), start);
        assert_eq!((slots.take(start), slots.take(start)), (Some(1), Some(2)));
        assert_eq!(slots.take(start), None);
        slots.give_back(1, start);
        assert_eq!(slots.take(start + REST / 2), None);
        assert_eq!(slots.take(start + REST), Some(1));
    }

    #[test]
    fn what_an_earlier_agent_gave_back_rests_too() {
        let start = Instant::now();
        let mut slots = Slots::new(5, &BTreeSet::from([1, 3]), start);
        assert_eq!((slots.take(start), slots.take(start)), (Some(4), None));
        assert_eq!(slots.take(start + REST), Some(2));
    }

    proptest! {
        #[test]
        fn no_slot_is_used_twice(taken: BTreeSet<u8>, steps: Vec<(bool, u8)>) {
            let mut now = Instant::now();
            let mut used: BTreeSet<u32> = taken.iter().map(|slot| u32::from(*slot) + 1).collect();
            let mut slots = Slots::new(300, &used, now);
            for (take, which) in steps {
                now += REST;
                if take {
                    if let Some(slot) = slots.take(now) {
                        prop_assert!((1..300).contains(&slot) && used.insert(slot));
                    }
                } else if let Some(slot) = used.iter().nth(usize::from(which) % used.len().max(1)).copied() {
                    used.remove(&slot);
                    slots.give_back(slot, now);
                }
            }
            let left = std::iter::from_fn(|| slots.take(now + REST)).collect::<BTreeSet<_>>();
            prop_assert_eq!(left.len() + used.len(), 299, "every slot is free or in use");
            prop_assert!(left.is_disjoint(&used));
        }
    }
}

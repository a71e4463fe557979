//! The map of flows, on the host.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;

use crate::flow::{Clock, Flow, FlowKey, Flows, SharedFlow};

/// A time at which every age of a test fits into the past, in nanoseconds.
pub const NOW: u64 = 1_000_000_000_000;

/// Flows in memory, with a clock that is set by hand.
#[derive(Debug)]
pub struct Memory<K = FlowKey> {
    /// Entries live as long as the process, as the kernel's do until its readers are done.
    entries: RefCell<HashMap<K, &'static SharedFlow>>,
    /// The time in nanoseconds.
    pub now: Cell<u64>,
}

impl<K: Copy + Eq + Hash> Memory<K> {
    /// Flows whose times are given as ages; a time of zero stays zero.
    pub fn new(ages: &HashMap<K, Flow>) -> Self {
        let memory = Self {
            entries: RefCell::default(),
            now: Cell::new(NOW),
        };
        for (key, flow) in ages {
            memory.create(key, &at(flow, NOW));
        }
        memory
    }

    /// A copy of an entry.
    pub fn get(&self, key: &K) -> Option<Flow> {
        self.find(key).map(SharedFlow::snapshot)
    }
}

/// A flow whose times are ages, with its times at `now`. An age that wraps around ([`ahead`]) lies in the future.
pub fn at(ages: &Flow, now: u64) -> Flow {
    let time = |age: u64| match age {
        0 => 0,
        age => now.wrapping_sub(age),
    };
    let mut flow = *ages;
    for leg in &mut flow.legs {
        leg.attested = time(leg.attested);
        leg.probed = time(leg.probed);
    }
    flow.queued = time(flow.queued);
    flow
}

/// The age of a time that lies so many nanoseconds ahead.
pub const fn ahead(nanoseconds: u64) -> u64 {
    nanoseconds.wrapping_neg()
}

impl<K> Clock for Memory<K> {
    fn now(&self) -> u64 {
        self.now.get()
    }

    fn tick(&self) -> u64 {
        self.now.get()
    }
}

impl<K: Copy + Eq + Hash> Flows<K> for Memory<K> {
    fn find(&self, key: &K) -> Option<&SharedFlow> {
        self.entries.borrow().get(key).copied()
    }

    fn create(&self, key: &K, flow: &Flow) {
        self.entries
            .borrow_mut()
            .entry(*key)
            .or_insert_with(|| Box::leak(Box::new((*flow).into())));
    }

    fn forget(&self, key: &K) {
        self.entries.borrow_mut().remove(key);
    }
}

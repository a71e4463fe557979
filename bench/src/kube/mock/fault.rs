//! What can go wrong with an answer or a watch, on demand.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::request::Kind;

/// A fault that waits for the next request of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request is refused, with the `Status` body that belongs to the code.
    Status {
        /// 401, 409, 410, 429, 500, 503, 504.
        code: u16,
        /// `Retry-After`, in seconds.
        retry_after: Option<u32>,
    },
    /// The connection is reset; nothing is answered, and nothing was done.
    Reset,
    /// The answer ends in its middle, with the connection. What was asked for is done all the same. A watch breaks in
    /// the first line that it sends.
    Cut,
    /// The answer is no JSON, of status 200; a patch is done all the same. A watch's first line is none.
    Garbage,
    /// The answer comes after this time.
    Slow(Duration),
    /// Headers come and nothing else, until the connection goes.
    Stall,
}

/// What happens to all watches that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// They end, as after their time.
    End,
    /// Their connections are reset.
    Reset,
    /// They send half a line, and their connections close.
    Cut,
    /// They send a line that is no JSON and go on.
    Garbage,
    /// They send an `ERROR` with the Status 410 `Expired`, and end.
    Expired,
    /// They stay open and send nothing any more.
    Stall,
    /// They send a bookmark, if they allow it.
    Bookmark,
}

/// Faults by the kind of request that they wait for, in the order in which they were armed.
#[derive(Debug, Default)]
pub(super) struct Faults(BTreeMap<Kind, VecDeque<Fault>>);

impl Faults {
    pub(super) fn arm(&mut self, kind: Kind, times: usize, fault: Fault) {
        let queue = self.0.entry(kind).or_default();
        queue.extend(std::iter::repeat_n(fault, times));
    }

    pub(super) fn take(&mut self, kind: Kind) -> Option<Fault> {
        self.0.get_mut(&kind)?.pop_front()
    }

    pub(super) fn disarm(&mut self) {
        self.0.clear();
    }

    /// How many wait.
    pub(super) fn armed(&self) -> usize {
        self.0.values().map(VecDeque::len).sum()
    }
}

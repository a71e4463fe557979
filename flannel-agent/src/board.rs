//! Where the agent's parts leave what an operator should know: the status document and the current problems.
//!
//! A problem has a source; it is logged when it appears, when it changes and when it is over, and never in between.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::status::Status;

/// A handle on the one board of the process.
#[derive(Clone, Default)]
pub struct Board(Arc<Mutex<Contents>>);

#[derive(Default)]
struct Contents {
    status: Status,
    problems: BTreeMap<String, String>,
}

impl Board {
    /// A board that shows `status`.
    pub fn new(status: Status) -> Self {
        Self(Arc::new(Mutex::new(Contents {
            status,
            problems: BTreeMap::new(),
        })))
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        // Plain data: a panic elsewhere leaves it readable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// States the problem that `source` has, or that it has none.
    pub fn problem(&self, source: &str, problem: Option<String>) {
        let mut contents = self.contents();
        let previous = contents.problems.get(source);
        match problem {
            Some(problem) if previous != Some(&problem) => {
                tracing::warn!(source, "{problem}");
                contents.problems.insert(source.to_owned(), problem);
            }
            None if previous.is_some() => {
                contents.problems.remove(source);
                tracing::info!(source, "problem is over");
            }
            _ => {}
        }
    }

    /// Changes the status.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.contents().status);
    }

    /// The status with the current problems.
    pub fn status(&self) -> Status {
        let contents = self.contents();
        let mut status = contents.status.clone();
        status.problems = contents.problems.values().cloned().collect();
        status
    }

    /// Whether the agent is ready.
    pub fn ready(&self) -> bool {
        self.contents().status.ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_come_and_go_by_source() {
        let board = Board::default();
        board.problem("etcd", Some("away".into()));
        board.problem("rules", Some("missing".into()));
        board.problem("etcd", Some("still away".into()));
        assert_eq!(board.status().problems, ["still away", "missing"]);
        board.problem("etcd", None);
        assert_eq!(board.status().problems, ["missing"]);
    }
}

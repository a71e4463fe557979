//! Where the agent's parts leave what an operator should know: the status document and the current problems.
//!
//! A problem has a source; it is logged when it appears, when it changes and when it is over, and never in between.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{
    metrics::{Gauges, exposition},
    notify,
    status::Status,
};

/// A handle on the one board of the process.
#[derive(Clone, Default)]
pub struct Board(Arc<Shared>);

#[derive(Default)]
struct Shared {
    contents: Mutex<Contents>,
    /// Told when the agent is ready.
    ready: Notify,
}

#[derive(Default)]
struct Contents {
    status: Status,
    problems: BTreeMap<String, String>,
    gauges: Gauges,
}

impl Contents {
    /// What is wrong, or how far the agent is, in one line.
    fn summary(&self) -> &str {
        let state = if self.status.ready {
            "ready"
        } else {
            "starting"
        };
        self.problems.values().next().map_or(state, String::as_str)
    }
}

impl Board {
    /// A board that shows `status`.
    pub fn new(status: Status) -> Self {
        Self(Arc::new(Shared {
            contents: Mutex::new(Contents {
                status,
                ..Contents::default()
            }),
            ready: Notify::new(),
        }))
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        // Plain data: a panic elsewhere leaves it readable.
        let contents = self.0.contents.lock();
        contents.unwrap_or_else(PoisonError::into_inner)
    }

    /// States the problem that `source` has, or that it has none.
    pub fn problem(&self, source: &str, problem: Option<String>) {
        let mut contents = self.contents();
        let previous = contents.problems.get(source);
        match problem {
            Some(problem) if previous != Some(&problem) => {
                tracing::warn!(source, "{problem}");
                contents.problems.insert(source.to_owned(), problem);
                notify::status(contents.summary());
            }
            None if previous.is_some() => {
                contents.problems.remove(source);
                tracing::info!(source, "problem is over");
                notify::status(contents.summary());
            }
            _ => {}
        }
    }

    /// Changes the status.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        let mut contents = self.contents();
        let before = contents.status.ready;
        change(&mut contents.status);
        if contents.status.ready && !before {
            self.0.ready.notify_waiters();
        }
    }

    /// The status with the current problems.
    pub fn status(&self) -> Status {
        let contents = self.contents();
        let mut status = contents.status.clone();
        status.problems = contents.problems.values().cloned().collect();
        status
    }

    /// Takes over what was measured for a scrape.
    pub fn measured(&self, gauges: Gauges) {
        self.contents().gauges = gauges;
    }

    /// The text that `/metrics` answers.
    pub fn exposition(&self) -> String {
        let contents = self.contents();
        exposition::text(&contents.status, contents.problems.len(), &contents.gauges)
    }

    /// Whether the agent is ready.
    pub fn ready(&self) -> bool {
        self.contents().status.ready
    }

    /// Waits until the agent is ready.
    pub async fn until_ready(&self) {
        loop {
            // In this order: a change between the two is not missed.
            let told = self.0.ready.notified();
            if self.ready() {
                return;
            }
            told.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_for_the_agent_is_told_once_it_is_ready() {
        let board = Board::default();
        let waiting = tokio::spawn({
            let board = board.clone();
            async move { board.until_ready().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        board.update(|status| status.ready = true);
        waiting.await.unwrap();
        board.until_ready().await;
    }

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

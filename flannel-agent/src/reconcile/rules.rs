//! Keeps the traffic rules: writes them at the start, then looks at them at an interval.
//!
//! A task of its own, because the tools take milliseconds to seconds on nodes with many rules, which nothing else
//! should wait for.

use std::time::Duration;

use tokio::{sync::watch, task::spawn_blocking, time::sleep};

use crate::{
    board::Board,
    kernel::rules::{self, Listing, Rules},
    metrics::{COUNTERS, Kind},
    status::Object,
};

/// Pause before rules that could not be written are tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What has become of the rules.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Whether they have been written, or none are wanted.
    pub installed: bool,
    /// The bit that packets are marked with which the kernel has passed, while a rule does so.
    pub marked: Option<u32>,
    /// For the status.
    pub objects: Vec<Object>,
}

/// A handle on the task.
pub struct Keeper {
    wanted: watch::Sender<Rules>,
    state: watch::Receiver<State>,
}

impl Keeper {
    /// Starts the task: writes `rules`, and looks at them every `resync`.
    pub fn start(rules: Rules, resync: Duration, board: Board) -> Self {
        let (sender, state) = watch::channel(State {
            installed: rules.is_empty(),
            ..State::default()
        });
        let (wanted, receiver) = watch::channel(rules);
        tokio::spawn(keep(receiver, resync, board, sender));
        Self { wanted, state }
    }

    /// What has become of the rules.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Changes what is wanted.
    pub fn want(&self, change: impl FnOnce(&mut Rules)) {
        self.wanted.send_if_modified(|rules| {
            let before = rules.clone();
            change(rules);
            *rules != before
        });
    }

    /// Waits for the state to change.
    pub async fn changed(&mut self) {
        if self.state.changed().await.is_err() {
            // No task: it never will.
            std::future::pending::<()>().await;
        }
    }
}

async fn keep(
    mut wanted: watch::Receiver<Rules>,
    resync: Duration,
    board: Board,
    state: watch::Sender<State>,
) {
    let mut written: Option<(Rules, Listing)> = None;
    let mut others_removed = false;
    loop {
        let rules = wanted.borrow_and_update().clone();
        let before = written.take();
        if rules.is_empty() && before.is_none() {
            match wanted.changed().await {
                Ok(()) => continue,
                Err(_) => return,
            }
        }
        let job = {
            let rules = rules.clone();
            move || check_or_write(&rules, before)
        };
        let result = match spawn_blocking(job).await {
            Ok(result) => result,
            Err(_) => return, // the runtime is shutting down
        };
        let tool = if rules.nftables {
            "nftables"
        } else {
            "iptables"
        };
        let object = |ok: bool, detail| Object {
            kind: "rules".into(),
            name: format!("{tool} {}", rules.names()),
            state: if ok { "ok" } else { "missing" }.into(),
            detail,
        };
        let pause = match result {
            Ok(listing) => {
                board.problem("rules", None);
                state.send_replace(State {
                    installed: true,
                    marked: rules.guard.mark,
                    objects: vec![object(true, None)],
                });
                written = Some((rules.clone(), listing));
                if !others_removed {
                    others_removed = true;
                    remove_others(rules.nftables).await;
                }
                resync
            }
            Err(error) => {
                board.problem("rules", Some(error.to_string()));
                state.send_modify(|state| {
                    state.marked = None;
                    state.objects = vec![object(false, Some(error.to_string()))];
                });
                RETRY
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}

/// Looks whether the rules are as they were written; writes them if not.
fn check_or_write(
    rules: &Rules,
    written: Option<(Rules, Listing)>,
) -> Result<Listing, rules::Error> {
    if let Some((of, listing)) = written
        && of == *rules
    {
        if rules.list().is_ok_and(|present| present == listing) {
            return Ok(listing);
        }
        tracing::warn!("traffic rules were changed or removed; writing them again");
    }
    let result = rules.install();
    COUNTERS.changes(Kind::Rules).count(&result);
    result
}

/// Removes what a run with the other tool left behind, now that these rules are in place.
async fn remove_others(nftables: bool) {
    let removed = spawn_blocking(move || {
        if nftables {
            rules::remove_iptables(false)
        } else {
            rules::remove_nftables(false)
        }
    });
    for name in removed.await.unwrap_or_default() {
        tracing::info!(name, "removed: rules are written with the other tool now");
    }
}

//! Keeps the traffic rules: writes them at the start, then looks at them at an interval, and with nftables at once when
//! somebody changes them.
//!
//! A task of its own, because the tools take milliseconds to seconds on nodes with many rules, which nothing else
//! should wait for.

use std::time::Duration;

use tokio::{sync::watch, task::spawn_blocking, time::sleep};

use crate::{
    board::Board,
    kernel::rules::{self, Guard, Listing, Rules, Tool, events::Events},
    metrics::{COUNTERS, Kind},
    status::Object,
};

/// Pause before rules that could not be written are tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Pause between an event and the look at what has changed, so that a script of somebody else's is through.
const DEBOUNCE: Duration = Duration::from_millis(20);

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

/// What was written last, and how.
struct Written {
    rules: Rules,
    tool: Tool,
    listing: Listing,
    /// Whether others had changed them.
    repaired: bool,
    /// Why the fast path's own are not among them, if so.
    without_guard: Option<String>,
}

async fn keep(
    mut wanted: watch::Receiver<Rules>,
    resync: Duration,
    board: Board,
    state: watch::Sender<State>,
) {
    if wanted.borrow().is_empty() {
        // What former runs have left is not wanted either.
        remove(|| [rules::remove_nftables(false), rules::remove_iptables(false)].concat()).await;
    }
    let mut written: Option<Written> = None;
    // The tool that is alone on this node.
    let mut alone: Option<Tool> = None;
    // The tool that was chosen: rules that come and go between tools would be worse than none for a moment.
    let mut known: Option<Tool> = None;
    let mut events: Option<Events> = None;
    loop {
        let rules = wanted.borrow_and_update().clone();
        let before = written.take();
        if rules.is_empty() && before.is_none() {
            match wanted.changed().await {
                Ok(()) => continue,
                Err(_) => return,
            }
        }
        let names = rules.names();
        let object = |tool: &str, state: &str, detail| Object {
            kind: "rules".into(),
            name: format!("{tool} {names}"),
            state: state.into(),
            detail,
        };
        let result = match spawn_blocking(move || check_or_write(rules, before, known)).await {
            Ok(result) => result,
            Err(_) => return, // the runtime is shutting down
        };
        let pause = match result {
            Ok(now) => {
                let tool = now.tool;
                known = Some(tool);
                board.problem("rules", now.without_guard.clone());
                let guarded = now.without_guard.is_none();
                state.send_replace(State {
                    installed: true,
                    marked: now.rules.guard.mark.filter(|_| guarded),
                    objects: vec![object(tool.name(), "ok", None)],
                });
                written = Some(now);
                if alone != Some(tool) {
                    alone = Some(tool);
                    tracing::info!(program = tool.program(), "traffic rules written");
                    remove(move || rules::remove_others(&tool)).await;
                    events = listen(tool);
                }
                resync
            }
            Err(error) => {
                if let rules::Error::Start { .. } = error {
                    known = None;
                }
                let tool = alone.map_or("no tool for", |tool| tool.name());
                board.problem("rules", Some(error.to_string()));
                state.send_modify(|state| {
                    state.marked = None;
                    state.objects = vec![object(tool, "missing", Some(error.to_string()))];
                });
                RETRY
            }
        };
        // Who has two daemons write the same tables should not see them fight over every CPU cycle.
        let fought = written.as_ref().is_some_and(|written| written.repaired);
        let debounce = if fought { RETRY } else { DEBOUNCE };
        let heard = async {
            heard(events.as_ref()).await;
            sleep(debounce).await;
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = heard => {}
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}

/// Looks whether the rules are as they were written; writes them if not. Should the fast path's own be what is refused,
/// upstream's are written without them: a node must not be kept from its pods for want of speed.
fn check_or_write(
    rules: Rules,
    written: Option<Written>,
    known: Option<Tool>,
) -> Result<Written, rules::Error> {
    let mut repaired = false;
    let tool = match written {
        Some(mut written) if written.rules == rules && written.without_guard.is_none() => {
            let present = rules.list(&written.tool);
            if present.is_ok_and(|present| present == written.listing) {
                written.repaired = false;
                return Ok(written);
            }
            tracing::warn!("traffic rules were changed or removed; writing them again");
            repaired = true;
            written.tool
        }
        Some(written) => written.tool,
        None => match known {
            Some(tool) => tool,
            None => rules.choose_tool()?,
        },
    };
    let result = rules.install(&tool);
    COUNTERS.changes(Kind::Rules).count(&result);
    let (listing, without_guard) = match result {
        Ok(listing) => (listing, None),
        Err(error @ rules::Error::Failed { .. }) if !rules.guard.is_empty() => {
            let plain = Rules {
                guard: Guard::default(),
                ..rules.clone()
            };
            (plain.install(&tool)?, Some(error.to_string()))
        }
        Err(error) => return Err(error),
    };
    Ok(Written {
        rules,
        tool,
        listing,
        repaired,
        without_guard,
    })
}

/// Listens for changes of what `tool` writes, where that can be heard.
fn listen(tool: Tool) -> Option<Events> {
    if tool != Tool::Nftables {
        return None;
    }
    Events::open()
        .inspect_err(|error| tracing::warn!("changes of nftables are not heard: {error}"))
        .ok()
}

async fn heard(events: Option<&Events>) {
    match events {
        Some(events) => events.changed().await,
        None => std::future::pending().await,
    }
}

/// Removes what nobody wants, now that the rules that are wanted are in place.
async fn remove(work: impl FnOnce() -> Vec<String> + Send + 'static) {
    for name in spawn_blocking(work).await.unwrap_or_default() {
        tracing::info!(
            name,
            "removed: left by another run or written with another tool"
        );
    }
}

//! What the keys do: end the demo, switch the policy, change the fast path's mode on all nodes.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::Sender,
    },
    time::Instant,
};

use lab::{Cluster, cluster::in_parallel};

use crate::demo::{FastPath, policy::Policy, screen::Screen};

/// What a key has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Something is to be seen.
    Changed,
    /// It is the end.
    Quit,
}

/// The state that keys change.
pub(super) struct Controls<'a> {
    cluster: &'a Cluster,
    policy: Option<&'a Policy>,
    state: Mutex<State>,
    ended: AtomicBool,
}

struct State {
    mode: FastPath,
    message: String,
}

impl<'a> Controls<'a> {
    pub(super) fn new(cluster: &'a Cluster, policy: Option<&'a Policy>, mode: FastPath) -> Self {
        Self {
            cluster,
            policy,
            state: Mutex::new(State {
                mode,
                message: String::new(),
            }),
            ended: AtomicBool::new(false),
        }
    }

    /// Does what keys ask for until the end. On a thread of its own, so that nothing has to wait for the screen.
    pub(super) fn obey(&self, screen: &Screen, events: &Sender<Event>) {
        while !self.ended.load(Ordering::Relaxed) {
            let Some(key) = screen.key() else {
                continue;
            };
            let pressed = Instant::now();
            let event = match key {
                'q' => Event::Quit,
                'p' => {
                    if let Some(policy) = self.policy {
                        policy.switch(!policy.is_on(), pressed);
                    }
                    Event::Changed
                }
                'f' => {
                    self.next_mode(pressed);
                    Event::Changed
                }
                _ => continue,
            };
            if events.send(event).is_err() || event == Event::Quit {
                return;
            }
        }
    }

    /// No key is obeyed any more.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// What the last change has come to.
    pub(super) fn message(&self) -> String {
        self.state().message.clone()
    }

    /// Asks all agents as `flannel-agent fast-path` does.
    fn next_mode(&self, pressed: Instant) {
        let mode = match self.state().mode {
            FastPath::Flow => FastPath::Subnet,
            FastPath::Subnet => FastPath::Off,
            FastPath::Off => FastPath::Flow,
        };
        let change = in_parallel(self.cluster.nodes(), |node| {
            let socket = format!("--status-socket={}", node.agent().socket().display());
            node.agent()
                .command_output(&["fast-path", mode.name(), &socket])
        });
        let mut state = self.state();
        state.mode = mode;
        state.message = match change {
            Ok(_) => format!("{} after {} ms", mode.name(), pressed.elapsed().as_millis()),
            Err(error) => last_line(&error.to_string()),
        };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a command says what went wrong.
fn last_line(text: &str) -> String {
    let mut lines = text.lines().rev();
    lines
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default()
        .to_owned()
}

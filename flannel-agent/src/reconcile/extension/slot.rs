//! What has been run for one node, and what is to be run next. Pure.

use std::time::Duration;

use tokio::time::Instant;

use crate::backend::extension::Node;

/// First pause before a command that has failed is run again; doubles up to `RETRY_MAX`.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest pause before a command that has failed is run again.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How often a removal is tried: there may be nothing left that could be removed.
const REMOVALS: u32 = 4;

/// What is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The command that adds the node.
    Add(Node),
    /// The command that removes it.
    Remove(Node),
}

impl Step {
    /// Whom it is about.
    pub(super) fn node(&self) -> &Node {
        match self {
            Self::Add(node) | Self::Remove(node) => node,
        }
    }
}

/// The state of one node's commands.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// What the last command that added the node was told, whether it has succeeded or not, unless it was removed again.
    added: Option<Node>,
    /// Whether it has succeeded.
    complete: bool,
    running: bool,
    failed: Option<Failed>,
}

/// A step that has failed.
#[derive(Debug)]
struct Failed {
    step: Step,
    /// How often in a row.
    times: u32,
    /// When it is tried again.
    retry: Instant,
    why: String,
}

impl Slot {
    /// Of a node that has been added.
    pub(super) fn done(node: Node) -> Self {
        Self {
            added: Some(node),
            complete: true,
            ..Self::default()
        }
    }

    /// What is to be run so that `wanted` is what has been added.
    fn next(&self, wanted: Option<&Node>) -> Option<Step> {
        match (&self.added, wanted) {
            (None, None) => None,
            (None, Some(new)) => Some(Step::Add(new.clone())),
            (Some(old), Some(new)) if old == new => {
                (!self.complete).then(|| Step::Add(new.clone()))
            }
            (Some(old), _) => Some(Step::Remove(old.clone())),
        }
    }

    /// What is to be run at once.
    pub(super) fn due(&self, wanted: Option<&Node>, now: Instant) -> Option<Step> {
        let step = self.next(wanted).filter(|_| !self.running)?;
        (self.retry(&step) <= Some(now)).then_some(step)
    }

    /// When there is something to be run, if it has to wait.
    pub(super) fn wake(&self, wanted: Option<&Node>) -> Option<Instant> {
        self.retry(&self.next(wanted).filter(|_| !self.running)?)
    }

    fn retry(&self, step: &Step) -> Option<Instant> {
        let failed = self.failed.as_ref().filter(|failed| failed.step == *step);
        failed.map(|failed| failed.retry)
    }

    /// A step has begun.
    pub(super) fn begin(&mut self) {
        self.running = true;
    }

    /// It has ended; `failure` says why it has failed, if so, and `wanted` is what is wanted by now.
    pub(super) fn end(
        &mut self,
        step: Step,
        failure: Option<String>,
        wanted: Option<&Node>,
        now: Instant,
    ) {
        self.running = false;
        let before = self.failed.take();
        if let Step::Add(node) = &step {
            self.added = Some(node.clone());
            self.complete = failure.is_none();
        }
        let Some(why) = failure else {
            if let Step::Remove(_) = step {
                self.added = None;
            }
            return;
        };
        let before = before.filter(|failed| failed.step == step);
        let times = 1 + before.map_or(0, |failed| failed.times);
        // A node with another lease must not wait for what the old one has left.
        if matches!(step, Step::Remove(_)) && (wanted.is_some() || times >= REMOVALS) {
            tracing::warn!("{}: {why}; given up", step.node().subnets.join());
            self.added = None;
            return;
        }
        let pause = RETRY_MIN.saturating_mul(1 << (times - 1).min(6));
        self.failed = Some(Failed {
            step,
            times,
            retry: now + pause.min(RETRY_MAX),
            why,
        });
    }

    /// Why the last step has failed, if it has.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failed.as_ref().map(|failed| failed.why.as_str())
    }

    /// The subnets that the step which has failed is about.
    pub(super) fn subnets(&self) -> Option<String> {
        Some(self.failed.as_ref()?.step.node().subnets.join())
    }

    /// Whether nothing has to be removed or waited for.
    pub(super) fn is_empty(&self) -> bool {
        self.added.is_none() && !self.running
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::PerFamily;

    fn node(data: &str) -> Node {
        Node {
            subnets: PerFamily::v4("10.5.7.0/24".parse().unwrap()),
            addresses: PerFamily::v4("192.168.100.2".parse().unwrap()),
            data: data.into(),
        }
    }

    fn failure() -> Option<String> {
        Some("exit status: 1".into())
    }

    #[test]
    fn a_changed_lease_is_removed_as_it_was_and_added_as_it_is() {
        let now = Instant::now();
        let (old, new) = (node("old"), node("new"));
        let mut slot = Slot::default();
        assert_eq!(slot.due(None, now), None);
        assert_eq!(slot.due(Some(&old), now), Some(Step::Add(old.clone())));
        slot.begin();
        // One after the other.
        assert_eq!(slot.due(Some(&new), now), None);
        slot.end(Step::Add(old.clone()), None, Some(&new), now);
        assert_eq!(slot.due(Some(&old), now), None);
        assert_eq!(slot.due(Some(&new), now), Some(Step::Remove(old.clone())));
        // It is not waited for.
        slot.end(Step::Remove(old), failure(), Some(&new), now);
        assert_eq!(slot.due(Some(&new), now), Some(Step::Add(new.clone())));
        slot.end(Step::Add(new.clone()), None, Some(&new), now);
        assert_eq!((slot.due(Some(&new), now), slot.failure()), (None, None));
        slot.end(Step::Remove(new), None, None, now);
        assert!(slot.is_empty());
    }

    #[test]
    fn what_fails_is_tried_again_later_and_later() {
        let start = Instant::now();
        let (one, other) = (node("one"), node("other"));
        let add = Step::Add(one.clone());
        let mut slot = Slot::default();
        let mut now = start;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            slot.end(add.clone(), failure(), Some(&one), now);
            assert_eq!(slot.due(Some(&one), now), None);
            let wake = slot.wake(Some(&one)).unwrap();
            pauses.push((wake - now).as_secs());
            now = wake;
            assert_eq!(slot.due(Some(&one), now), Some(add.clone()));
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(slot.failure(), Some("exit status: 1"));
        assert_eq!(slot.subnets().as_deref(), Some("10.5.7.0/24"));
        // Something else is not kept waiting, and what was half done is undone.
        let remove = Step::Remove(one.clone());
        assert_eq!(slot.due(Some(&other), start), Some(remove.clone()));
        for _ in 1..REMOVALS {
            slot.end(remove.clone(), failure(), None, now);
            assert!(!slot.is_empty() && slot.failure().is_some());
        }
        slot.end(remove, failure(), None, now);
        assert!(slot.is_empty() && slot.failure().is_none());
    }
}

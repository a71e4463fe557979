//! This node's own Node object, kept as it should be: its annotations, its condition, and the subnets that it is assigned.

use std::time::{Duration, Instant, SystemTime};

use super::Keeper;
use crate::lease::{
    Event, OwnLease,
    kube::{
        OWN_PROBLEM, absent, annotations, assigned, backoff::Backoff, condition, error::Error,
        lease, node::Node,
    },
};

/// Shortest time between two patches of annotations: somebody else may insist on his own.
const PATCH_INTERVAL: Duration = Duration::from_secs(1);

/// This node.
pub(super) struct Own {
    lease: OwnLease,
    /// The Node as it was last seen; absent while there is none.
    pub(super) node: Option<Node>,
    /// Whether the agent was ready when the Node was last seen to.
    pub(super) ready: bool,
    /// `metadata.uid` of the Node whose condition was seen to.
    announced: Option<String>,
    /// When annotations were last patched.
    patched: Option<Instant>,
    /// When a patch that has failed, or that came too soon, is tried again.
    pub(super) retry: Option<Instant>,
    backoff: Backoff,
}

impl Own {
    /// The lease that `node` says.
    pub(super) const fn new(lease: OwnLease, node: Node) -> Self {
        Self {
            lease,
            node: Some(node),
            ready: false,
            announced: None,
            patched: None,
            retry: None,
            backoff: Backoff::new(),
        }
    }
}

impl Keeper {
    /// Takes note that the Node is another.
    pub(super) async fn own_changed(&mut self, node: Node) {
        // The answer to a patch may be known before the watch tells what was so before it.
        let late = |own: &Node| own.uid == node.uid && is_older(&node.version, &own.version);
        if self.own.node.as_ref().is_some_and(late) {
            return;
        }
        self.own.node = Some(node);
        if self.own.retry.is_none() {
            self.maintain().await;
        }
    }

    /// Sees to it that this node's Node object says what it should; what fails is tried again later.
    pub(super) async fn maintain(&mut self) {
        self.own.retry = None;
        self.own.ready = self.board.ready();
        let problem = match self.own_object().await {
            Ok(problem) => {
                self.own.backoff = Backoff::new();
                problem
            }
            Err(error) => {
                let pause = self.own.backoff.next(error.retry_after());
                self.own.retry = Some(Instant::now() + pause);
                if error.is_of_the_connection() {
                    self.kube.api.reset();
                }
                Some(format!("node {}: {error}", self.kube.name))
            }
        };
        self.board.problem(OWN_PROBLEM, problem);
    }

    /// Takes over the subnets that are assigned to this node, and writes what its Node object lacks. Returns what is
    /// wrong with that.
    async fn own_object(&mut self) -> Result<Option<String>, Error> {
        let Some(node) = &self.own.node else {
            return Ok(Some(absent(&self.kube.name)));
        };
        let subnets = match assigned(node, &self.request.config) {
            Ok(subnets) => subnets,
            Err(problem) => return Ok(Some(problem)),
        };
        let changes = node.annotations.changes(&self.request.attributes);
        if subnets != self.own.lease.subnets {
            self.own.lease = lease(subnets);
            self.report(Event::Own(self.own.lease.clone())).await;
        }
        if !changes.is_empty() {
            if let Some(earliest) = self.own.patched.map(|patched| patched + PATCH_INTERVAL)
                && earliest > Instant::now()
            {
                self.own.retry = Some(earliest);
                return Ok(None);
            }
            tracing::info!(
                node = self.kube.name,
                ?changes,
                "annotations published anew"
            );
            self.patch(annotations::patch(&changes, self.kube.api.names()))
                .await?;
            self.own.patched = Some(Instant::now());
        }
        self.announce().await?;
        Ok(None)
    }

    /// Says that the network is up, once for each Node object and once it is.
    async fn announce(&mut self) -> Result<(), Error> {
        let Some(node) = &self.own.node else {
            return Ok(());
        };
        if !self.kube.options.set_network_unavailable
            || !self.own.ready
            || self.own.announced.as_ref() == Some(&node.uid)
        {
            return Ok(());
        }
        let uid = node.uid.clone();
        if let Some(patch) = condition::patch(node.condition.as_ref(), SystemTime::now()) {
            self.patch(patch).await?;
            tracing::info!(node = self.kube.name, "NetworkUnavailable = False");
        }
        self.own.announced = Some(uid);
        Ok(())
    }

    async fn patch(&mut self, patch: String) -> Result<(), Error> {
        let node = self.kube.api.patch(&self.kube.name, patch).await?;
        self.own.node = Some(node);
        Ok(())
    }
}

/// Whether a version is older than another: both are numbers that grow (`meta/v1`, ObjectMeta); if not, nobody knows.
fn is_older(version: &str, than: &str) -> bool {
    match (version.parse::<u64>(), than.parse::<u64>()) {
        (Ok(version), Ok(than)) => version < than,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(is_older("9", "10"));
        assert!(!is_older("10", "10") && !is_older("10", "9"));
        assert!(!is_older("a", "b") && !is_older("", "1"));
    }
}

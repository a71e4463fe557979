//! What goes on while the agent runs: a list, the watch that continues it, and this node's own annotations kept as they
//! should be.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::{mpsc, watch as channel};

use super::{
    Kube, OWN_PROBLEM, PROBLEM, absent, annotations, assigned, backoff::Backoff, condition,
    error::Error, lease, list::Listed, node::Node, watch::Change,
};
use crate::{
    board::Board,
    family::PerFamily,
    lease::{Attributes, Entry, Event, OwnLease, Request},
    metrics::{COUNTERS, KubeRequest},
    netconf::Backend,
};

/// After so many lines that are no events, without a change between them, the list is asked for instead.
const GARBLED_MAX: u32 = 3;
/// A watch that ends sooner than that, without a failure, was not worth much.
const WATCH_MIN: Duration = Duration::from_secs(5);
/// Shortest time between two patches of annotations: somebody else may insist on his own.
const PATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Follows the Nodes.
pub struct Keeper {
    kube: Kube,
    request: Request,
    families: PerFamily<()>,
    /// The entries as they were last reported: most changes of a Node are none of a lease.
    entries: BTreeMap<String, Entry>,
    own: Own,
    /// The version from which the watch continues; none if the list is to be asked for.
    version: Option<String>,
    /// Whether that version is a list's own: nothing was told since.
    fresh: bool,
    /// Lines without meaning since the last change.
    garbled: u32,
    events: mpsc::Sender<Event>,
    board: Board,
}

/// This node.
struct Own {
    lease: OwnLease,
    /// The Node as it was last seen; absent while there is none.
    node: Option<Node>,
    /// Whether the agent was ready when the Node was last seen to.
    ready: bool,
    /// `metadata.uid` of the Node whose condition was seen to.
    announced: Option<String>,
    /// When annotations were last patched.
    patched: Option<Instant>,
    /// When a patch that has failed, or that came too soon, is tried again.
    retry: Option<Instant>,
    backoff: Backoff,
}

impl Keeper {
    /// A keeper of the lease `own`, which `node` says.
    pub fn new(
        kube: Kube,
        request: Request,
        own: OwnLease,
        node: Node,
        events: mpsc::Sender<Event>,
        board: Board,
    ) -> Self {
        Self {
            families: request.config.pools.map(|_, _| ()),
            entries: BTreeMap::new(),
            own: Own {
                lease: own,
                node: Some(node),
                ready: false,
                announced: None,
                patched: None,
                retry: None,
                backoff: Backoff::new(),
            },
            version: None,
            fresh: false,
            garbled: 0,
            kube,
            request,
            events,
            board,
        }
    }

    /// Runs until the receiver of events is gone.
    pub async fn run(mut self, mut publish: channel::Receiver<Attributes>) {
        let events = self.events.clone();
        let follow = async {
            let mut backoff = Backoff::new();
            loop {
                if let Err(error) = self.follow(&mut publish, &mut backoff).await {
                    self.broken(&error, &mut backoff).await;
                }
            }
        };
        tokio::select! {
            () = follow => {}
            () = events.closed() => {}
        }
    }

    /// After a failure: from where, and after which pause, it goes on.
    async fn broken(&mut self, error: &Error, backoff: &mut Backoff) {
        if error.is_gone() {
            self.version = None;
            // If even the version of a list is forgotten at once, then not in a loop.
            if !self.fresh {
                tracing::info!(%error, "the API server has forgotten where the watch was; listing again");
                return;
            }
        }
        if let Error::Garbled(_) = error {
            COUNTERS.kube_unreadable.count();
            self.garbled += 1;
            if self.garbled >= GARBLED_MAX {
                (self.version, self.garbled) = (None, 0);
            }
        }
        self.kube.failed(error, backoff, &self.board).await;
    }

    /// The list, if it is needed, and the watch that continues it, until the server ends that.
    async fn follow(
        &mut self,
        publish: &mut channel::Receiver<Attributes>,
        backoff: &mut Backoff,
    ) -> Result<(), Error> {
        let own_name = self.kube.name.clone();
        let only = self.is_alloc().then_some(own_name.as_str());
        let version = match self.version.take() {
            Some(version) => version,
            None => self.list(only).await?,
        };
        let version = self.version.insert(version);
        let mut watch = self.kube.api.watch(only, version).await?;
        self.board.problem(PROBLEM, None);
        let begun = Instant::now();
        let names = self.kube.api.names().clone();
        loop {
            let unready = !self.own.ready;
            tokio::select! {
                change = watch.next(&names) => match change {
                    Ok(Some(change)) => {
                        *backoff = Backoff::new();
                        self.changed(change).await?;
                    }
                    Ok(None) => {
                        // A server that ends each watch at once is not asked in a loop.
                        if begun.elapsed() < WATCH_MIN {
                            backoff.pause(None).await;
                        }
                        return Ok(());
                    }
                    Err(error) => {
                        COUNTERS.kube(KubeRequest::Watch).failed.count();
                        return Err(error);
                    }
                },
                () = until(self.own.retry) => self.maintain().await,
                () = self.board.until_ready(), if unready => self.maintain().await,
                changed = publish.changed() => match changed {
                    Ok(()) => {
                        self.request.attributes = publish.borrow_and_update().clone();
                        self.maintain().await;
                    }
                    Err(_) => self.events.closed().await,
                },
            }
        }
    }

    /// Whether routes are somebody else's: then other nodes do not matter, however many there are.
    const fn is_alloc(&self) -> bool {
        matches!(self.request.config.backend, Backend::Alloc)
    }

    /// Lists all Nodes, or the one called `only`, and reports them. Returns the list's version.
    async fn list(&mut self, only: Option<&str>) -> Result<String, Error> {
        let (name, families) = (self.kube.name.clone(), self.families);
        let names = self.kube.api.names().clone();
        let (mut entries, mut own, mut unreadable) = (BTreeMap::new(), None, Vec::new());
        let mut take = |listed: Listed| match listed {
            Ok(node) if node.name == name => own = Some(node),
            Ok(node) => {
                if let Some(entry) = node.entry(&families, &names) {
                    entries.insert(node.name, entry);
                }
            }
            Err(known) => unreadable.push(known),
        };
        let mut next = String::new();
        let version = loop {
            let page = self.kube.api.page(only, &next, &mut take).await?;
            if page.next.is_empty() {
                break page.version;
            }
            next = page.next;
        };
        for (name, reason) in unreadable {
            let entry = self.unreadable(&name, reason);
            entries.extend(entry.map(|entry| (name, entry)));
        }
        self.fresh = true;
        self.entries = entries;
        self.report(Event::Snapshot(self.entries.clone())).await;
        self.own.node = own;
        self.maintain().await;
        Ok(version)
    }

    /// A Node that is not understood, as an entry; none if it is this node's, or if nobody knows whose it is.
    fn unreadable(&self, name: &str, reason: String) -> Option<Entry> {
        COUNTERS.kube_unreadable.count();
        if name.is_empty() || name == self.kube.name {
            tracing::error!(name, reason, "Node object skipped");
            return None;
        }
        Some(Err(reason))
    }

    /// Takes note of a change, and reports it if it concerns a lease.
    async fn changed(&mut self, change: Change) -> Result<(), Error> {
        COUNTERS.kube_watch_events.count();
        (self.garbled, self.fresh) = (0, false);
        let version = match change {
            Change::Put(node) if node.name == self.kube.name => {
                let version = node.version.clone();
                self.own_changed(*node).await;
                version
            }
            Change::Put(node) => {
                let entry = node.entry(&self.families, self.kube.api.names());
                self.entry(node.name, entry).await;
                node.version
            }
            Change::Removed { name, version } if name == self.kube.name => {
                self.own.node = None;
                self.maintain().await;
                version
            }
            Change::Removed { name, version } => {
                self.entry(name, None).await;
                version
            }
            Change::Unreadable {
                name,
                version,
                reason,
            } => {
                if let Some(entry) = self.unreadable(&name, reason) {
                    self.entry(name, Some(entry)).await;
                }
                version
            }
            Change::Bookmark(version) => version,
            Change::Ended(refusal) => {
                return Err(Error::Refused {
                    request: KubeRequest::Watch,
                    refusal,
                });
            }
        };
        if !version.is_empty() {
            self.version = Some(version);
        }
        Ok(())
    }

    /// Reports an entry, or that there is none, if that is news.
    async fn entry(&mut self, name: String, entry: Option<Entry>) {
        let event = match entry {
            Some(entry) if self.entries.get(&name) == Some(&entry) => return,
            Some(entry) => {
                self.entries.insert(name.clone(), entry.clone());
                Event::Put(name, entry)
            }
            None if self.entries.remove(&name).is_some() => Event::Removed(name),
            None => return,
        };
        self.report(event).await;
    }

    async fn own_changed(&mut self, node: Node) {
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
    async fn maintain(&mut self) {
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

    /// A receiver that is gone ends the loop in `run`.
    async fn report(&self, event: Event) {
        let _ = self.events.send(event).await;
    }
}

/// Whether a version is older than another: both are numbers that grow (`meta/v1`, ObjectMeta); if not, nobody knows.
fn is_older(version: &str, than: &str) -> bool {
    match (version.parse::<u64>(), than.parse::<u64>()) {
        (Ok(version), Ok(than)) => version < than,
        _ => false,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
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

//! What goes on while the agent runs: a list, the watch that continues it, and this node's own annotations kept as they
//! should be.

mod own;
mod rewrites;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch as channel},
    time::sleep,
};

use own::Own;

use super::{
    Kube, PROBLEM,
    backoff::Backoff,
    error::Error,
    list::{Listed, Page},
    node::Node,
    watch::Change,
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
/// Longest pause before the list that a forgotten version costs: an API server that has started anew has forgotten those
/// of all nodes at once. The data plane goes on meanwhile.
const RELIST_JITTER: Duration = Duration::from_secs(3);
/// How often a further page of a list is asked for before the list begins anew.
const PAGE_ATTEMPTS: u32 = 5;

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
    /// Whether the list was asked for again because the server has forgotten something, and nothing was told since.
    relisted: bool,
    /// Lines without meaning since the last change.
    garbled: u32,
    events: mpsc::Sender<Event>,
    board: Board,
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
            own: Own::new(own, node),
            version: None,
            relisted: false,
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
            // If what the new list says is forgotten at once, too, then not in a loop.
            if !self.relisted {
                self.relisted = true;
                tracing::info!(%error, "the API server has forgotten where the list or watch was; listing again");
                sleep(rand::random_range(Duration::ZERO..=RELIST_JITTER)).await;
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
                        self.changed(change).await?;
                        *backoff = Backoff::new();
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
                () = until(self.own.due()) => self.maintain().await,
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
            let page = self.page(only, &next, &mut take).await?;
            if page.next.is_empty() {
                break page.version;
            }
            next = page.next;
        };
        for (name, reason) in unreadable {
            let entry = self.unreadable(&name, reason);
            entries.extend(entry.map(|entry| (name, entry)));
        }
        self.entries = entries;
        self.report(Event::Snapshot(self.entries.clone())).await;
        self.own.node = own;
        self.maintain().await;
        Ok(version)
    }

    /// A page of the list. A further one that fails is asked for again, so that those before it are not read in vain.
    async fn page(
        &mut self,
        only: Option<&str>,
        next: &str,
        mut take: impl FnMut(Listed),
    ) -> Result<Page, Error> {
        let mut backoff = Backoff::new();
        let mut attempt = 1;
        loop {
            match self.kube.api.page(only, next, &mut take).await {
                Err(error) if !next.is_empty() && !error.is_gone() && attempt < PAGE_ATTEMPTS => {
                    attempt += 1;
                    self.kube.failed(&error, &mut backoff, &self.board).await;
                }
                result => return result,
            }
        }
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
    ///
    /// # Errors
    /// When it is the end of the watch, which is no sign that the server does well.
    async fn changed(&mut self, change: Change) -> Result<(), Error> {
        COUNTERS.kube_watch_events.count();
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
        (self.garbled, self.relisted) = (0, false);
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

    /// A receiver that is gone ends the loop in `run`.
    async fn report(&self, event: Event) {
        let _ = self.events.send(event).await;
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

//! A subnet manager that runs inside this process, in a node's namespace, and what it has reported so far.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use flannel_agent::{
    board::Board,
    family::PerFamily,
    lease::{Attributes, Event, Lease, Leases, OwnLease, OwnNode, Request, SubnetManager as _},
    netconf::NetworkConfig,
};
use ipnet::IpNet;
use lab::{Netns, wait};
use tokio::sync::{mpsc, oneshot, watch};

use super::store::{Entry, TestStore};
use crate::support::Outcome;

/// How long something may take that follows from a change of the store. A file must have rested, and a store that was
/// away is asked again after a pause.
pub(crate) const FOLLOWS: Duration = Duration::from_secs(20);
/// How long a manager may take to end once nobody listens.
const ENDS: Duration = Duration::from_secs(2);
/// Events that may wait.
const EVENTS: usize = 64;

/// What a manager has reported.
#[derive(Clone, Default)]
pub(crate) struct Known {
    pub(crate) config: Option<NetworkConfig>,
    pub(crate) own_node: Option<OwnNode>,
    pub(crate) own: Option<OwnLease>,
    leases: Leases,
    /// Whether the first event was a snapshot.
    pub(crate) begins_with_all: Option<bool>,
    /// Leases that were there and then were not, or said something else.
    pub(crate) withdrawn: Vec<Lease>,
}

impl Known {
    fn take(&mut self, event: Event) {
        if let Event::Own(own) = event {
            self.own = Some(own);
            return;
        }
        let is_all = matches!(event, Event::Snapshot(_));
        self.begins_with_all.get_or_insert(is_all);
        let before = self.peers();
        self.leases.apply(event);
        let after = self.peers();
        let gone = before.into_iter().filter(|lease| !after.contains(lease));
        self.withdrawn.extend(gone);
    }

    /// The leases of other nodes, by subnet.
    pub(crate) fn peers(&self) -> Vec<Lease> {
        let own = Entry::own();
        let subnets = self.own.as_ref().map(|own| own.subnets).unwrap_or_default();
        let mut peers: Vec<Lease> = self
            .leases
            .peers(&subnets, &own.attributes().addresses)
            .map(|(_, lease)| lease.clone())
            .collect();
        peers.sort_by_key(|lease| lease.subnets);
        peers
    }

    /// How many entries are not understood.
    pub(crate) fn skipped(&self) -> usize {
        self.leases.skipped().count()
    }
}

/// A running manager; ends when it is dropped.
pub(crate) struct Session {
    known: Arc<Mutex<Known>>,
    pub(crate) board: Board,
    publish: watch::Sender<Attributes>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Session {
    /// Starts the store's manager on node [`Entry::own`], which had its subnet in an earlier run.
    pub(crate) fn start<S: TestStore>(store: &Arc<S>, netns: &Netns) -> Self {
        let known = Arc::new(Mutex::new(Known::default()));
        let board = Board::default();
        let (publish, published) = watch::channel(Entry::own().attributes());
        let (end, ended) = oneshot::channel();
        let thread = thread::spawn({
            let (store, netns) = (store.clone(), netns.clone());
            let (known, board) = (known.clone(), board.clone());
            move || {
                netns.run(move || -> anyhow::Result<()> {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()?;
                    let result = runtime.block_on(run(&*store, &known, &board, published, ended));
                    runtime.shutdown_background();
                    result
                })?
            }
        });
        Self {
            known,
            board,
            publish,
            end: Some(end),
            thread: Some(thread),
        }
    }

    /// What is known now.
    pub(crate) fn known(&self) -> Known {
        lock(&self.known).clone()
    }

    /// What the node has become, for the manager to publish.
    pub(crate) fn publish(&self, entry: &Entry) {
        self.publish.send_replace(entry.attributes());
    }

    /// Waits for something that the manager reports.
    pub(crate) fn wait(&self, what: &str, condition: impl Fn(&Known) -> bool) -> Outcome {
        self.wait_for(what, FOLLOWS, condition)
    }

    fn wait_for(&self, what: &str, limit: Duration, condition: impl Fn(&Known) -> bool) -> Outcome {
        wait::until(what, limit, || {
            let known = self.known();
            let holds = condition(&known);
            Ok(holds.then_some(()).ok_or_else(|| {
                let problems = self.board.status().problems;
                let Known { own, withdrawn, .. } = &known;
                let (peers, skipped) = (known.peers(), known.skipped());
                format!(
                    "own {own:?}, peers {peers:?}, {skipped} skipped, withdrawn {withdrawn:?}, problems {problems:?}"
                )
            }))
        })?;
        Ok(())
    }

    /// Waits until exactly these peers are known.
    pub(crate) fn wait_peers(&self, what: &str, peers: &[&Entry]) -> Outcome {
        let leases: Vec<Lease> = peers.iter().map(|peer| peer.lease()).collect();
        self.wait(what, |known| known.own.is_some() && known.peers() == leases)
    }

    /// Waits until exactly these peers are known, as long as the store may take to tell of a change.
    pub(crate) fn wait_change<S: TestStore>(&self, what: &str, peers: &[&Entry]) -> Outcome {
        let leases: Vec<Lease> = peers.iter().map(|peer| peer.lease()).collect();
        self.wait_for(what, S::SEEN_WITHIN, |known| known.peers() == leases)
    }

    /// Waits until this node has its lease and the manager has reported what there is.
    pub(crate) fn wait_own(&self) -> anyhow::Result<PerFamily<IpNet>> {
        self.wait("a lease and all entries", |known| {
            known.own.is_some() && known.begins_with_all.is_some()
        })?;
        let own = self.known().own;
        Ok(own.context("no lease")?.subnets)
    }

    /// Waits for a problem that says this, or with an empty text until there is none.
    pub(crate) fn wait_problem(&self, part: &str) -> Outcome {
        self.wait(&format!("problem {part:?}"), |_| {
            let problems = self.board.status().problems;
            match part {
                "" => problems.is_empty(),
                part => problems.iter().any(|problem| problem.contains(part)),
            }
        })
    }

    /// Waits until the manager says that something is wrong.
    pub(crate) fn wait_any_problem(&self) -> Outcome {
        self.wait("any problem", |_| !self.board.status().problems.is_empty())
    }

    /// Ends the manager as the agent's end does.
    pub(crate) fn stop(mut self) -> Outcome {
        self.end.take();
        let thread = self.thread.take().context("a thread")?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take() {
            // The test has failed already, or did not ask.
            let _ = thread.join();
        }
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The agent's part, without an agent.
async fn run<S: TestStore>(
    store: &S,
    known: &Mutex<Known>,
    board: &Board,
    published: watch::Receiver<Attributes>,
    mut ended: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    let mut manager = store.manager()?;
    let acquire = async {
        let config = manager.network_config(board).await;
        lock(known).config = Some(config.clone());
        let own_node = manager.own_node(board).await;
        lock(known).own_node = Some(own_node);
        let request = Request {
            config,
            attributes: published.borrow().clone(),
            previous: PerFamily::v4(Entry::own().subnet),
        };
        let own = manager.acquire(request, board).await;
        lock(known).own = Some(own);
    };
    tokio::select! {
        () = acquire => {}
        _ = &mut ended => return Ok(()),
    }
    // As the agent says so when all is in place.
    board.update(|status| status.ready = true);
    let (sender, mut events) = mpsc::channel(EVENTS);
    let run = tokio::spawn(manager.run(sender, published, board.clone()));
    loop {
        tokio::select! {
            event = events.recv() => {
                let event = event.context("the manager has ended by itself")?;
                lock(known).take(event);
            }
            _ = &mut ended => break,
        }
    }
    drop(events);
    let ends = tokio::time::timeout(wait::patient(ENDS), run).await;
    ensure!(ends.is_ok(), "the manager goes on although nobody listens");
    Ok(())
}

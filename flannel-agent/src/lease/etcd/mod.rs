//! The etcd subnet manager: upstream's keys and values, without its unconditional writes.
//!
//! What upstream gets wrong and this must never do: write over another node's key, withdraw peers because of one bad
//! key, give up because etcd is away, or ask etcd once per lease. A renewal keeps the etcd lease alive and leaves the
//! key alone, so that it causes no event on other nodes.

mod acquire;
mod error;
mod store;
mod tls;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use etcd_client::{EventType, KeyValue, WatchResponse, WatchStream};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

use acquire::{Claim, LEASE_TTL, Outcome, Own};
use error::Error;
pub use store::Options;
use store::Store;
pub use tls::{Error as TlsError, TlsFiles};

use super::{Attributes, Entry, Event, OwnLease, Request, SubnetManager};
use crate::{board::Board, metrics::COUNTERS, netconf::NetworkConfig};

/// First pause after a failure; doubles up to `BACKOFF_MAX`.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause after a failure.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Pause before an absent config or a free subnet is looked for again.
const WAIT: Duration = Duration::from_secs(1);
/// Pause before a renewal that failed is tried again.
const RENEW_RETRY: Duration = Duration::from_secs(10);
/// Name of this module's problems on the status board.
const PROBLEM: &str = "etcd";

/// The etcd subnet manager.
pub struct Etcd {
    store: Store,
    renew_margin: Duration,
    /// What was asked for and what is held; set by `acquire`.
    held: Option<(Request, Own)>,
}

/// A pause that doubles.
struct Backoff(Duration);

impl Backoff {
    fn new() -> Self {
        Self(BACKOFF_MIN)
    }

    async fn pause(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(BACKOFF_MAX);
    }
}

impl Etcd {
    /// A manager that renews its lease `renew_margin` before it expires.
    pub fn new(options: Options, renew_margin: Duration) -> Self {
        Self {
            store: Store::new(options),
            renew_margin,
            held: None,
        }
    }

    async fn acquire_lease(&mut self, request: &Request, board: &Board) -> Own {
        let mut backoff = Backoff::new();
        loop {
            match acquire::attempt(&mut self.store, request).await {
                Ok(Outcome::Acquired(own)) => {
                    board.problem(PROBLEM, None);
                    return own;
                }
                // Each retry means that another node made progress.
                Ok(Outcome::Retry) => {}
                Ok(Outcome::Exhausted) => {
                    board.problem(PROBLEM, Some(exhausted(request)));
                    sleep(WAIT).await;
                }
                Err(error) => self.failed(&error, &mut backoff, board).await,
            }
        }
    }

    async fn failed(&mut self, error: &Error, backoff: &mut Backoff, board: &Board) {
        board.problem(
            PROBLEM,
            Some(format!("etcd at {}: {error}", self.store.endpoints())),
        );
        self.store.reset();
        backoff.pause().await;
    }

    /// When the lease is due for renewal; never for a reservation.
    fn renewal(&self, own: &Own) -> Option<Instant> {
        own.expires.map(|expires| expires - self.renew_margin)
    }
}

impl SubnetManager for Etcd {
    async fn network_config(&mut self, board: &Board) -> NetworkConfig {
        let mut backoff = Backoff::new();
        let key = self.store.config_key();
        loop {
            match self.store.get(&key).await {
                Ok((_, Some(entry))) => match NetworkConfig::parse(entry.value()) {
                    Ok(config) if config.pools.v4.is_none() => {
                        board.problem(PROBLEM, Some(format!(
                            "network config at {key}: EnableIPv4 = false: keys in etcd need an IPv4 subnet; enable it beside IPv6"
                        )));
                        sleep(WAIT).await;
                    }
                    Ok(config) => {
                        board.problem(PROBLEM, None);
                        return config;
                    }
                    Err(error) => {
                        board.problem(PROBLEM, Some(format!("network config at {key}: {error}")));
                        sleep(WAIT).await;
                    }
                },
                Ok((_, None)) => {
                    let endpoints = self.store.endpoints();
                    board.problem(PROBLEM, Some(format!(
                        "no network config at {key} in {endpoints}: waiting for it to be put there"
                    )));
                    sleep(WAIT).await;
                }
                Err(error) => self.failed(&error, &mut backoff, board).await,
            }
        }
    }

    async fn acquire(&mut self, request: Request, board: &Board) -> OwnLease {
        let own = self.acquire_lease(&request, board).await;
        let public = own.public();
        self.held = Some((request, own));
        public
    }

    async fn run(
        mut self,
        events: mpsc::Sender<Event>,
        mut publish: watch::Receiver<Attributes>,
        board: Board,
    ) {
        let Some((request, own)) = self.held.take() else {
            return;
        };
        let renewal = self.renewal(&own);
        let mut keeper = Keeper {
            etcd: self,
            published: request.attributes.to_json().into_bytes(),
            request,
            own,
            renewal,
            lost: false,
            events,
            board,
        };
        let mut backoff = Backoff::new();
        while !keeper.events.is_closed() {
            match keeper.follow(&mut publish, &mut backoff).await {
                Ok(()) => backoff = Backoff::new(),
                Err(error) => {
                    keeper
                        .etcd
                        .failed(&error, &mut backoff, &keeper.board)
                        .await
                }
            }
        }
    }
}

/// Keeps the lease and follows the others'.
struct Keeper {
    etcd: Etcd,
    request: Request,
    own: Own,
    /// The value that this node has last put.
    published: Vec<u8>,
    /// When the lease is due for renewal, or for another attempt at acquiring one; never for a reservation.
    renewal: Option<Instant>,
    /// Whether this node has no lease at the moment.
    lost: bool,
    events: mpsc::Sender<Event>,
    board: Board,
}

impl Keeper {
    /// One listing and the watch that continues it, until the watch ends or the receiver is gone.
    async fn follow(
        &mut self,
        publish: &mut watch::Receiver<Attributes>,
        backoff: &mut Backoff,
    ) -> Result<(), Error> {
        let revision = self.snapshot().await?;
        let prefix = self.etcd.store.subnets_prefix();
        let mut watch: WatchStream = self.etcd.store.watch(&prefix, revision + 1).await?;
        self.board.problem(PROBLEM, None);
        *backoff = Backoff::new();
        let mut changed_files = self.etcd.store.changed_files();
        loop {
            tokio::select! {
                message = watch.message() => match message {
                    Ok(Some(response)) if response.canceled() => {
                        if response.compact_revision() == 0 {
                            return Err(Error::Cancelled(response.cancel_reason().to_owned()));
                        }
                        tracing::info!(
                            compacted = response.compact_revision(),
                            "watch ended by a compaction; listing again"
                        );
                        return Ok(());
                    }
                    Ok(Some(response)) => self.watched(&prefix, &response).await?,
                    Ok(None) => return Ok(()),
                    Err(source) => return Err(Error::watch(source)),
                },
                () = until(self.renewal) => self.renew().await?,
                // An error means that the agent ends.
                Ok(()) = changed_files.changed() => if self.etcd.store.renew().await {
                    return Ok(());
                },
                changed = publish.changed() => match changed {
                    Ok(()) => {
                        let attributes = publish.borrow_and_update().clone();
                        self.publish(attributes).await?;
                    }
                    Err(_) => self.events.closed().await,
                },
                () = self.events.closed() => return Ok(()),
            }
        }
    }

    /// Lists all leases, reports them, and makes sure that this node's is among them. Returns the revision.
    async fn snapshot(&mut self) -> Result<i64, Error> {
        let prefix = self.etcd.store.subnets_prefix();
        let listing = self.etcd.store.list().await?;
        let held = listing
            .entries
            .iter()
            .filter_map(|entry| Claim::read(&prefix, entry))
            .find(|claim| claim.key == self.own.key);
        let entries: BTreeMap<String, Entry> = listing
            .entries
            .iter()
            .map(|entry| understand(&prefix, entry))
            .collect();
        self.report(Event::Snapshot(entries)).await;
        self.judge(held).await?;
        Ok(listing.revision)
    }

    /// Reports a batch of changes.
    async fn watched(&mut self, prefix: &str, response: &WatchResponse) -> Result<(), Error> {
        COUNTERS
            .etcd_watch_events
            .add(response.events().len() as u64);
        for event in response.events() {
            let Some(entry) = event.kv() else { continue };
            let own = entry.key() == self.own.key.as_bytes();
            let removed = event.event_type() == EventType::Delete;
            let (name, value) = understand(prefix, entry);
            self.report(if removed {
                Event::Removed(name)
            } else {
                Event::Put(name, value)
            })
            .await;
            if own {
                self.judge(Claim::read(prefix, entry).filter(|_| !removed))
                    .await?;
            }
        }
        Ok(())
    }

    /// Whether this node's key, as etcd has it now, still is this node's and says what it should; sees to it if not.
    async fn judge(&mut self, claim: Option<Claim>) -> Result<(), Error> {
        match claim {
            Some(claim) if claim.value == self.published || claim.is_of(&self.request) => {
                let wanted = self.request.attributes.to_json();
                if claim.value == wanted.as_bytes() && claim.lease == self.own.lease {
                    self.published = claim.value;
                    return Ok(());
                }
                // The lease that somebody has put the key on, or none, is respected; only the value is this node's.
                let lease = claim.lease;
                if lease == self.own.lease
                    && self
                        .etcd
                        .store
                        .replace(&claim.key, claim.revision, wanted.clone(), lease)
                        .await?
                {
                    tracing::info!(value = wanted, "lease published anew");
                    self.published = wanted.into_bytes();
                    return Ok(());
                }
            }
            Some(claim) => tracing::error!(
                key = claim.key,
                node = claim
                    .attributes
                    .map_or_else(String::new, |other| other.addresses.join()),
                "another node wrote over this node's lease; acquiring one again"
            ),
            None => {
                tracing::warn!(
                    key = self.own.key,
                    "own lease is gone from etcd; acquiring one again"
                );
            }
        }
        self.reacquire().await
    }

    /// Tries to acquire a lease again, the same subnet if it can be had. Other nodes' leases are followed meanwhile.
    async fn reacquire(&mut self) -> Result<(), Error> {
        self.request.previous = self.own.subnets;
        self.lost = true;
        match acquire::attempt(&mut self.etcd.store, &self.request).await? {
            Outcome::Acquired(own) => {
                self.lost = false;
                self.board.problem(PROBLEM, None);
                self.own = own;
                self.published = self.request.attributes.to_json().into_bytes();
                self.renewal = self.etcd.renewal(&self.own);
                self.report(Event::Own(self.own.public())).await;
            }
            // Each retry means that another node made progress.
            Outcome::Retry => self.renewal = Some(Instant::now()),
            Outcome::Exhausted => {
                self.board.problem(PROBLEM, Some(exhausted(&self.request)));
                self.renewal = Some(Instant::now() + WAIT);
            }
        }
        Ok(())
    }

    /// Keeps the etcd lease alive. The key itself is not touched.
    async fn renew(&mut self) -> Result<(), Error> {
        // Due again soon if this fails; the watch notices for itself when etcd is away.
        self.renewal = Some(Instant::now() + RENEW_RETRY);
        if self.lost {
            return self.reacquire().await;
        }
        match self.etcd.store.keep_alive(self.own.lease).await? {
            Some(granted) if granted >= LEASE_TTL => {
                self.own.expires =
                    Some(Instant::now() + Duration::from_secs(granted.unsigned_abs()));
                self.renewal = self.etcd.renewal(&self.own);
                tracing::info!(subnet = self.own.subnets.join(), "lease renewed");
                self.report(Event::Own(self.own.public())).await;
                Ok(())
            }
            _ => self.reacquire().await,
        }
    }

    /// Publishes new attributes under this node's key.
    async fn publish(&mut self, attributes: Attributes) -> Result<(), Error> {
        self.request.attributes = attributes;
        let prefix = self.etcd.store.subnets_prefix();
        let (_, entry) = self.etcd.store.get(&self.own.key).await?;
        let claim = entry.and_then(|entry| Claim::read(&prefix, &entry));
        self.judge(claim).await
    }

    /// A receiver that is gone ends the loop in `run`.
    async fn report(&self, event: Event) {
        let _ = self.events.send(event).await;
    }
}

/// What to do when there is no subnet to be had.
fn exhausted(request: &Request) -> String {
    let pools: Vec<String> = request
        .config
        .pools
        .values()
        .map(|pool| {
            let (len, min, max) = (pool.subnet_len, pool.subnet_min, pool.subnet_max);
            format!("of length {len} from {min} to {max}")
        })
        .collect();
    format!(
        "no free subnet {}: delete leases of nodes that are gone, or enlarge Network",
        pools.join(" or ")
    )
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// A listed or watched key as an entry of the store.
fn understand(prefix: &str, entry: &KeyValue) -> (String, Entry) {
    let full = String::from_utf8_lossy(entry.key());
    let name = full.strip_prefix(prefix).unwrap_or(&full).to_owned();
    let lease = super::entry(&name, entry.value());
    (name, lease)
}

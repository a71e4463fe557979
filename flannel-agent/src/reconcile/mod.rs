//! The loop that keeps the kernel and the fast path in line with the leases.
//!
//! Lease events, netlink events and a timer only say what may be out of date ([`Dirty`]); a pass of the
//! [`Reconciler`] reads that again, compares and repairs. So a lost, repeated or late event is harmless, and the
//! agent's own changes end the loop instead of feeding it: an event that says what is already known is not news.

mod blackhole;
pub mod device;
mod dirty;
mod events;
pub mod extension;
mod measure;
mod pass;
mod pods;
mod repair;
mod report;
pub mod rules;
mod topology;
mod tunnels;
mod udp;
mod uplink;

use std::time::Duration;

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

pub use dirty::Dirty;
pub use pass::{Reconciler, Settings};

use crate::{fastpath, kernel::events::Events, lease, metrics::COUNTERS};

/// All is read again at this interval, in case an event was missed; upstream's for routes.
const RESYNC: Duration = Duration::from_secs(10);

/// How many of these go by until the kernel is asked again how it reaches each peer.
const HOPS_EVERY: u32 = 6;
/// How often within its heartbeat the fast path must be shown a sign of life at least: a late one is none lost.
const BEATS: u32 = 4;
/// Passes that read the kernel's state keep this distance, so that a burst of events costs one pass.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// First pause before something that failed is tried again; doubles up to `RETRY_MAX`.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest pause before something that failed is tried again.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// A request from outside.
pub struct Call {
    /// What is to be done.
    pub wanted: Wanted,
    /// Told when it is done and the status board up to date.
    pub done: oneshot::Sender<()>,
}

/// What somebody outside wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The status board brought up to date.
    Status,
    /// The numbers of a scrape brought up to date.
    Metrics,
    /// Another mode of the fast path.
    FastPath(fastpath::Mode),
}

/// What wakes the loop.
pub struct Inputs {
    /// From the subnet manager.
    pub leases: mpsc::Receiver<lease::Event>,
    /// From the kernel.
    pub events: Events,
    /// From the rules' keeper, when its state has changed.
    pub rules: rules::Keeper,
    /// From the status socket.
    pub calls: mpsc::Receiver<Call>,
}

/// Runs until the subnet manager is gone.
///
/// # Errors
/// When netlink events cannot be received any more.
pub async fn run(mut reconciler: Reconciler, mut inputs: Inputs) -> std::io::Result<()> {
    let mut timer = interval(RESYNC.min(reconciler.heartbeat() / BEATS));
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ticks: u32 = 0;
    let mut dirty = Dirty::all();
    let mut last_read = Instant::now() - DEBOUNCE;
    let mut retry = RETRY_MIN;
    let mut retry_at: Option<Instant> = None;
    let mut pods_at: Option<Instant> = None;
    loop {
        if dirty.any() && (!dirty.reads() || last_read.elapsed() >= DEBOUNCE) {
            let reads = dirty.reads();
            let whole = dirty == Dirty::all();
            let complete = reconciler.pass(std::mem::take(&mut dirty), &inputs.rules.state());
            COUNTERS.passes.count();
            inputs.rules.want(|rules| rules.guard = reconciler.guard());
            if reads {
                last_read = Instant::now();
            }
            if !complete {
                COUNTERS.incomplete_passes.count();
            }
            // Only a look at everything makes up for what an earlier pass has left, and no small one puts that off.
            let now = Instant::now();
            if complete && whole {
                retry = RETRY_MIN;
                retry_at = None;
            } else if !complete && retry_at.is_none_or(|at| whole || at <= now) {
                retry_at = Some(now + retry);
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
        // No failure: the pass is complete, and only pods are looked at when the time has come.
        if let Some(at) = reconciler.take_pods_due() {
            pods_at = Some(Instant::from_std(at));
        }
        let due = if dirty.any() {
            Some(last_read + DEBOUNCE)
        } else {
            retry_at
        };
        tokio::select! {
            events = inputs.events.next() => {
                for event in events? {
                    reconciler.note(event, &mut dirty);
                }
            }
            event = inputs.leases.recv() => match event {
                Some(event) => {
                    reconciler.lease_event(event, &mut dirty);
                    while let Ok(event) = inputs.leases.try_recv() {
                        reconciler.lease_event(event, &mut dirty);
                    }
                    inputs.rules.want(|rules| rules.subnets = reconciler.subnets());
                }
                None => return Ok(()),
            },
            Some(Call { wanted, done }) = inputs.calls.recv() => {
                if let Wanted::FastPath(mode) = wanted {
                    reconciler.change_fast_path(mode);
                    if !reconciler.pass(Dirty::all(), &inputs.rules.state()) {
                        retry_at.get_or_insert(Instant::now() + retry);
                    }
                    inputs.rules.want(|rules| rules.guard = reconciler.guard());
                }
                match wanted {
                    Wanted::Metrics => reconciler.measure(&inputs.rules.state()),
                    Wanted::Status | Wanted::FastPath(_) => reconciler.report(&inputs.rules.state()),
                }
                // Whoever asked may have given up.
                let _ = done.send(());
            }
            () = inputs.rules.changed() => dirty.status = true,
            _ = timer.tick() => {
                ticks += 1;
                dirty = dirty.or(Dirty::resync(ticks.is_multiple_of(HOPS_EVERY)));
            }
            () = wait(pods_at) => {
                pods_at = None;
                dirty.pods = true;
            }
            () = wait(due) => if !dirty.any() {
                dirty = Dirty::all();
            },
        }
    }
}

async fn wait(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

//! What leases cost an agent that has all in place: many changes in a row, a list that is read anew, a restart.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use flannel_agent::kernel::events::{Event, Events};
use lab::lease::Subnet;
use tokio::time::{MissedTickBehavior, interval};

use super::{kube::Nodes, peers::Peer, spent, store::Store};
use crate::testbed::{Error, Result};

/// Changes in a second, of leases in etcd.
pub const ETCD_RATE: u32 = 2_000;
/// The same of Node objects: thirty times what kubelets of 5 000 nodes make, which report every five minutes.
pub const KUBE_RATE: u32 = 500;
/// For so long.
const DURATION: Duration = Duration::from_secs(3);
/// So often a batch is written: changes come one by one, the writer must not be what is measured.
const BATCH: Duration = Duration::from_millis(10);
/// What is left to do when the last change is written may take so long.
const SETTLE: Duration = Duration::from_secs(5);
/// Nanoseconds in a second.
const SECOND: f64 = 1e9;

/// What many changes in a row cost.
#[derive(Clone, Copy, Debug)]
pub struct Sustained {
    /// CPU time of the agent in percent of one processor.
    pub cpu: f64,
    /// Until the last change was in the maps, from the store's answer on, in milliseconds.
    pub behind: f64,
}

/// Changes in a second by this store.
pub const fn rate(store: &Store<'_>) -> u32 {
    match store {
        Store::Etcd(_) => ETCD_RATE,
        Store::Kube(_) => KUBE_RATE,
    }
}

/// Changes leases at the store's rate, over all nodes; `in_place` says whether a change has arrived. Of Node objects only
/// the last of each batch changes its lease: the others have heartbeats, as most changes of Node objects are.
///
/// # Errors
/// If the agent does not follow.
pub async fn sustain(
    store: &mut Store<'_>,
    pid: u32,
    leases: u32,
    changed: impl Fn(u32) -> u32,
    in_place: impl Fn(Peer) -> Result<bool>,
) -> Result<Sustained> {
    let rate = rate(store);
    let per_batch = rate * BATCH.as_millis() as u32 / 1_000;
    let batches = DURATION.as_millis() / BATCH.as_millis();
    let mut ticks = interval(BATCH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (start, before) = (Instant::now(), spent::cpu_time(pid)?);
    let mut last = None;
    let mut number = 0;
    for batch in 0..batches as u32 {
        ticks.tick().await;
        let peers: Vec<Peer> = (0..per_batch)
            .map(|offset| Peer {
                number: (number + offset) % leases,
                changed: changed(batch),
            })
            .collect();
        number += per_batch;
        match (&mut *store, peers.split_last()) {
            (Store::Kube(nodes), Some((changed, others))) => {
                others.iter().try_for_each(|peer| nodes.beat(*peer))?;
                nodes.put(*changed);
            }
            _ => store.put_all(&peers).await?,
        }
        last = peers.last().copied();
    }
    let written = Instant::now();
    let last = last.ok_or_else(|| Error::Control("no change was made".into()))?;
    while !in_place(last)? {
        if written.elapsed() > SETTLE {
            return Err(Error::Control(format!(
                "{rate} changes in a second: the last one is not in place after {} s",
                SETTLE.as_secs()
            )));
        }
        tokio::task::yield_now().await;
    }
    let spent = spent::cpu_time(pid)? - before;
    Ok(Sustained {
        cpu: 100.0 * spent as f64 / SECOND / start.elapsed().as_secs_f64(),
        behind: written.elapsed().as_secs_f64() * 1e3,
    })
}

/// What it costs to list all Nodes anew.
#[derive(Clone, Copy, Debug)]
pub struct Relist {
    /// The most memory of the agent meanwhile, in KiB.
    pub memory: f64,
    /// Its CPU time, in milliseconds.
    pub cpu: f64,
}

/// Has the agent list all Nodes anew, and changes `peer` then, so that the agent is seen to follow.
///
/// # Errors
/// If it does not.
pub async fn list_anew(
    nodes: &Nodes<'_>,
    pid: u32,
    peer: Peer,
    in_place: impl Fn(Peer) -> Result<bool>,
) -> Result<Relist> {
    spent::forget_peak(pid)?;
    let before = spent::cpu_time(pid)?;
    nodes.list_anew()?;
    nodes.put(peer);
    let written = Instant::now();
    while !in_place(peer)? {
        if written.elapsed() > SETTLE {
            return Err(Error::Control(format!(
                "a change behind a new list is not in place after {} s",
                SETTLE.as_secs()
            )));
        }
        tokio::time::sleep(BATCH).await;
    }
    /// Nanoseconds in a millisecond.
    const MILLISECOND: f64 = 1e6;
    Ok(Relist {
        memory: spent::peak_memory(pid)?,
        cpu: (spent::cpu_time(pid)? - before) as f64 / MILLISECOND,
    })
}

/// Netlink changes of what is flannel's that are heard while `action` runs.
///
/// # Errors
/// That of the action, or if events cannot be heard.
pub async fn changes_during(
    network: &Subnet,
    action: impl AsyncFnOnce() -> Result<()>,
) -> Result<usize> {
    let failed = |error| Error::Control(format!("netlink events: {error}"));
    let mut events = Events::open().map_err(failed)?;
    action().await?;
    let mut count = 0;
    // All that there is has come before the action was over: what the kernel changes it tells at once.
    while let Ok(heard) = tokio::time::timeout(BATCH, events.next()).await {
        let heard = heard.map_err(failed)?;
        count += heard
            .iter()
            .filter(|event| match event {
                Event::Route(net, ..) => match net.addr() {
                    IpAddr::V4(address) => network.contains(address),
                    IpAddr::V6(_) => false,
                },
                Event::Neighbour(..) | Event::Lost => true,
                _ => false,
            })
            .count();
    }
    Ok(count)
}

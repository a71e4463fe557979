//! Traffic that never pauses while nodes change hands: what each flow has lost, and how long it was silent, step by
//! step.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lab::{
    Netns,
    counters::Protocols,
    traffic::{
        Host,
        tcp::{TcpFlow, TcpPlan},
    },
};

use super::laps::{Counts, Laps, Row};
use crate::support::Outcome;

/// Bytes per second of a stream.
const STREAM_RATE: u64 = 5_000_000;
/// How often the watcher looks whether something has arrived: how exactly silences are known.
const LOOK: Duration = Duration::from_millis(2);

/// What a flow has counted so far.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    arrived: AtomicU64,
    lost: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl Gauge {
    /// A datagram, an answer or a whole connection.
    pub(crate) fn arrived(&self) {
        self.arrived.fetch_add(1, Ordering::Relaxed);
    }

    /// So many have been lost in all.
    pub(crate) fn lost(&self, count: u64) {
        self.lost.store(count, Ordering::Relaxed);
    }

    /// What has ended the flow, or must not be; the first is kept.
    pub(crate) fn failed(&self, why: impl Into<String>) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(why.into());
    }
}

/// Who knows what a flow has counted.
enum Source {
    Gauge(Arc<Gauge>),
    Stream(TcpFlow),
}

/// A flow, or connections of one kind.
struct Flow {
    name: String,
    source: Source,
}

impl Flow {
    /// What has arrived, in a unit of the flow's own.
    fn arrived(&self) -> u64 {
        match &self.source {
            Source::Gauge(gauge) => gauge.arrived.load(Ordering::Relaxed),
            Source::Stream(stream) => stream.received(),
        }
    }
}

/// All flows, running.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    flows: Arc<Vec<Flow>>,
    workers: Vec<JoinHandle<()>>,
    watcher: JoinHandle<()>,
    silences: Arc<Mutex<Vec<Silence>>>,
    /// Where TCP's ends are.
    ends: Vec<Netns>,
    before: Counts,
    since: Instant,
    laps: Laps,
}

/// Collects flows before they are watched.
pub(crate) struct Builder {
    pub(crate) stop: Arc<AtomicBool>,
    flows: Vec<Flow>,
    workers: Vec<JoinHandle<()>>,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            stop: Arc::default(),
            flows: Vec::new(),
            workers: Vec::new(),
        }
    }

    /// A flow of one-way TCP with known content.
    pub(crate) fn stream(&mut self, name: String, from: &dyn Host, to: &dyn Host) -> Outcome {
        let plan = TcpPlan {
            bytes: u64::MAX,
            rate: Some(STREAM_RATE),
        };
        let source = Source::Stream(TcpFlow::start(from, to, plan)?);
        self.flows.push(Flow { name, source });
        Ok(())
    }

    /// A flow that counts by itself.
    pub(crate) fn gauge(&mut self, name: String) -> Arc<Gauge> {
        let gauge = Arc::new(Gauge::default());
        let source = Source::Gauge(gauge.clone());
        self.flows.push(Flow { name, source });
        gauge
    }

    /// Repeats `work` every `pause` until the traffic is stopped, or `work` says that it is over.
    pub(crate) fn repeat(
        &mut self,
        pause: Duration,
        mut work: impl FnMut() -> bool + Send + 'static,
    ) {
        let stop = self.stop.clone();
        self.workers.push(thread::spawn(move || {
            let mut due = Instant::now();
            while !stop.load(Ordering::Relaxed) && work() {
                due += pause;
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }));
    }

    /// Begins to watch; TCP's ends are in these namespaces.
    pub(crate) fn watch(self, ends: Vec<Netns>) -> anyhow::Result<Traffic> {
        let flows = Arc::new(self.flows);
        let silences = Arc::new(Mutex::new(vec![Silence::new(); flows.len()]));
        let watcher = {
            let (flows, silences, stop) = (flows.clone(), silences.clone(), self.stop.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let mut silences = silences.lock().unwrap_or_else(PoisonError::into_inner);
                    for (flow, silence) in flows.iter().zip(&mut *silences) {
                        silence.look(flow.arrived());
                    }
                    drop(silences);
                    thread::sleep(LOOK);
                }
            })
        };
        Ok(Traffic {
            stop: self.stop,
            before: Counts::of(&flows, &ends)?,
            ends,
            flows,
            workers: self.workers,
            watcher,
            silences,
            since: Instant::now(),
            laps: Laps::default(),
        })
    }
}

/// How long a flow has been silent.
#[derive(Clone, Copy)]
struct Silence {
    arrived: u64,
    since: Instant,
    longest: Duration,
}

impl Silence {
    fn new() -> Self {
        Self {
            arrived: 0,
            since: Instant::now(),
            longest: Duration::ZERO,
        }
    }

    fn look(&mut self, arrived: u64) {
        let now = Instant::now();
        self.longest = self.longest.max(now - self.since);
        if arrived != self.arrived {
            (self.arrived, self.since) = (arrived, now);
        }
    }
}

impl Counts {
    /// Of all flows, whose ends are in these namespaces.
    fn of(flows: &[Flow], ends: &[Netns]) -> anyhow::Result<Self> {
        let mut counts = Self::default();
        for flow in flows {
            if let Source::Gauge(gauge) = &flow.source {
                counts.messages += flow.arrived();
                counts.lost += gauge.lost.load(Ordering::Relaxed);
            }
        }
        for end in ends {
            let counters = Protocols::read(end)?;
            counts.again += counters.get("Tcp.RetransSegs");
            counts.in_vain += counters.get("TcpExt.TCPDSACKRecvSegs");
        }
        Ok(counts)
    }
}

impl Traffic {
    /// Ends a step: what has happened since the one before is noted under its name. Fails if a flow has.
    pub(crate) fn lap(&mut self, step: &str) -> Outcome {
        let (now, before) = (Counts::of(&self.flows, &self.ends)?, self.before);
        let mut row = Row {
            step: step.to_owned(),
            time: self.since.elapsed(),
            counted: Counts {
                messages: now.messages - before.messages,
                lost: now.lost - before.lost,
                again: now.again - before.again,
                in_vain: now.in_vain - before.in_vain,
            },
            ..Row::default()
        };
        let mut silences = self.silences.lock().unwrap_or_else(PoisonError::into_inner);
        for (flow, silence) in self.flows.iter().zip(&mut *silences) {
            silence.look(flow.arrived());
            if silence.longest > row.silence {
                (row.silence, row.silent) = (silence.longest, flow.name.clone());
            }
            silence.longest = Duration::ZERO;
        }
        drop(silences);
        self.laps.0.push(row);
        self.before = now;
        self.since = Instant::now();
        self.failures().with_context(|| step.to_owned())
    }

    fn failures(&self) -> Outcome {
        for flow in self.flows.iter() {
            if let Source::Gauge(gauge) = &flow.source {
                let failure = gauge.failure.lock().unwrap_or_else(PoisonError::into_inner);
                ensure!(failure.is_none(), "{}: {:?}", flow.name, *failure);
            }
            if let Source::Stream(stream) = &flow.source {
                let running = !stream.is_over() || self.stop.load(Ordering::Relaxed);
                ensure!(running, "{}: the connection has broken", flow.name);
            }
        }
        Ok(())
    }

    /// Ends all flows; each must have been whole.
    pub(crate) fn stop(self) -> anyhow::Result<Laps> {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.into_iter().chain([self.watcher]) {
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        let flows = Arc::into_inner(self.flows).context("a flow is still watched")?;
        for Flow { name, source } in flows {
            match source {
                Source::Gauge(gauge) => {
                    let failure = gauge.failure.lock().unwrap_or_else(PoisonError::into_inner);
                    ensure!(failure.is_none(), "{name}: {:?}", *failure);
                    let arrived = gauge.arrived.load(Ordering::Relaxed);
                    ensure!(arrived > 0, "{name}: nothing has arrived");
                }
                Source::Stream(stream) => {
                    let report = stream.stop();
                    ensure!(
                        report.is_intact() && report.received > 0,
                        "{name}: {report:?}"
                    );
                }
            }
        }
        Ok(self.laps)
    }
}

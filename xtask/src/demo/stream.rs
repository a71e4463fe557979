//! The live screen's TCP stream: paced, checked, and begun again whenever it breaks.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lab::{
    Pod,
    traffic::tcp::{TcpFlow, TcpPlan},
};
use serde::Serialize;

use crate::demo::observe::LEAST_INTERVAL;

/// The stream's pace in bytes per second: 1 Gbit/s, which leaves the machine usable.
const STREAM_RATE: u64 = 125_000_000;
/// How long a broken stream rests before it is tried again.
const STREAM_REST: Duration = Duration::from_millis(500);

/// The stream between two nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct StreamView {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) gbit_per_second: f64,
    pub(super) retransmits: u32,
    /// Why there is none at the moment.
    pub(super) failure: Option<String>,
}

/// A paced stream that is begun again whenever it breaks.
pub(super) struct Stream {
    view: StreamView,
    current: Arc<Mutex<Current>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    last: (u64, Instant),
}

/// Bytes of all streams so far, and the state of the present one.
#[derive(Default)]
struct Current {
    bytes: u64,
    retransmits: u32,
    failure: Option<String>,
}

impl Stream {
    /// Begins to stream from one pod to another.
    pub(super) fn start(from: Pod, to: Pod) -> Self {
        let view = StreamView {
            from: from.name().to_owned(),
            to: to.name().to_owned(),
            ..StreamView::default()
        };
        let current = Arc::new(Mutex::new(Current::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (current.clone(), stop.clone());
        let thread = thread::spawn(move || keep_streaming(&from, &to, &shared, &stopped));
        Self {
            view,
            current,
            stop,
            thread: Some(thread),
            last: (0, Instant::now()),
        }
    }

    /// What has become of it since the last look.
    pub(super) fn view(&mut self) -> StreamView {
        let (bytes, retransmits, failure) = {
            let current = self
                .current
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            (current.bytes, current.retransmits, current.failure.clone())
        };
        let now = Instant::now();
        let time = now - self.last.1;
        if time >= LEAST_INTERVAL {
            self.view.gbit_per_second = (bytes - self.last.0) as f64 * 8e-9 / time.as_secs_f64();
            self.last = (bytes, now);
        }
        StreamView {
            retransmits,
            failure,
            ..self.view.clone()
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

fn keep_streaming(from: &Pod, to: &Pod, shared: &Mutex<Current>, stop: &AtomicBool) {
    const TICK: Duration = Duration::from_millis(50);
    let lock = || {
        shared
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    };
    let plan = TcpPlan {
        bytes: u64::MAX,
        rate: Some(STREAM_RATE),
    };
    let mut before = Current::default();
    while !stop.load(Ordering::Relaxed) {
        match TcpFlow::start(from, to, plan) {
            Ok(flow) => {
                lock().failure = None;
                while !flow.is_over() && !stop.load(Ordering::Relaxed) {
                    thread::sleep(TICK);
                    let mut current = lock();
                    current.bytes = before.bytes + flow.received();
                    current.retransmits = before.retransmits + flow.retransmits();
                }
                let report = flow.stop();
                before.bytes += report.received;
                before.retransmits += report.retransmits;
                let wrong = report
                    .corrupted_at
                    .map(|position| format!("byte {position} is wrong"));
                lock().failure = report.failure.or(wrong);
            }
            Err(error) => lock().failure = Some(error.to_string()),
        }
        if !stop.load(Ordering::Relaxed) {
            thread::sleep(STREAM_REST);
        }
    }
}

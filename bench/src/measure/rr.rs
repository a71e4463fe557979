//! Round trips: how long they take.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use lab::traffic::rtt::{RoundTrips, Transport};

use super::{Context, Effort, Figure, Measure, Unit};
use crate::{
    path::Expected,
    sockets::{self, Cpus, Pair},
    testbed::{Result, STREAM_AGE, STREAM_KEPT, Testbed},
    variants::Carrier,
};

/// Flows at the same time, and bytes each way.
const KINDS: [Kind; 2] = [Kind::new(1, 1), Kind::new(32, 1)];
/// Those of a full run.
const MORE_KINDS: [Kind; 6] = [
    KINDS[0],
    Kind::new(8, 1),
    KINDS[1],
    Kind::new(1, 1024),
    Kind::new(8, 1024),
    Kind::new(32, 1024),
];
/// The most flows.
const MOST: usize = 32;
/// Requests of a run in all flows together, and in the quick one: enough for one in a thousand to be several.
const REQUESTS: usize = 6_400;
const QUICK_REQUESTS: usize = 3_200;
/// Requests of each flow that go before.
const WARM_UP: usize = 64;
/// Requests of which one may take the kernel's path.
const ONE_SLOW_OF: u64 = 20;

/// Flows at the same time, and what they carry.
#[derive(Clone, Copy)]
struct Kind {
    flows: usize,
    bytes: usize,
}

impl Kind {
    const fn new(flows: usize, bytes: usize) -> Self {
        Self { flows, bytes }
    }

    fn name(self) -> String {
        let plural = if self.flows == 1 { "flow" } else { "flows" };
        match self.bytes {
            1 => format!("{} {plural}", self.flows),
            bytes => format!("{} {plural} of {bytes} bytes", self.flows),
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct Rr {
    /// Opened once per cluster: UDP is permitted two seconds later.
    flows: BTreeMap<Carrier, Flows>,
}

/// The flows of one cluster.
struct Flows {
    tcp: Vec<Pair>,
    udp: Vec<Pair>,
    used: Instant,
}

impl Flows {
    fn open(bed: &Testbed, cpus: Cpus) -> Result<Self> {
        let open = |transport| {
            let pairs = (0..MOST).map(|_| Pair::open(bed.ends(), transport));
            pairs.collect::<Result<Vec<_>>>()
        };
        let mut flows = Self {
            tcp: open(Transport::Tcp)?,
            udp: open(Transport::Udp)?,
            used: Instant::now(),
        };
        sockets::round_trips(&flows.udp, 1, 1, cpus)?;
        if bed.carrier().asks_the_kernel() {
            thread::sleep(STREAM_AGE);
        }
        flows.used = Instant::now();
        Ok(flows)
    }
}

impl Measure for Rr {
    fn name(&self) -> &'static str {
        "rr"
    }

    fn title(&self, effort: &Effort) -> String {
        format!(
            "Round trips of 1 byte each way unless another size is said, {} of each kind, by one thread per flow and end, \
             both ends on one CPU or each on its own",
            requests(effort)
        )
    }

    fn carriers(&self) -> &'static [Carrier] {
        &[
            Carrier::Kernel,
            Carrier::KernelAgain,
            Carrier::Flow,
            Carrier::Native,
        ]
    }

    fn run(&mut self, context: &mut Context<'_, '_>, carrier: Carrier) -> Result<Vec<Figure>> {
        let one = Cpus {
            client: context.means.cpu,
            server: context.means.cpu,
        };
        let two = context.means.other_cpu.map(|server| Cpus { server, ..one });
        let requests = requests(&context.effort);
        let kinds: &[Kind] = if context.effort.full {
            &MORE_KINDS
        } else {
            &KINDS
        };
        let bed = context.beds.get(carrier)?;
        // Gone if anything fails: an answer may still be under way.
        let kept = self.flows.remove(&carrier);
        let flows = match kept.filter(|flows| flows.used.elapsed() < STREAM_KEPT) {
            Some(flows) => flows,
            None => Flows::open(bed, one)?,
        };
        let mut figures = Vec::new();
        let places = [("one CPU", Some(one)), ("two CPUs", two)];
        for (place, cpus) in places {
            let Some(cpus) = cpus else { continue };
            for (transport, pairs) in [("TCP", &flows.tcp), ("UDP", &flows.udp)] {
                for &kind in kinds {
                    let pairs = &pairs[..kind.flows];
                    let name = format!("{transport}, {}, {place}", kind.name());
                    let times = measure(bed, pairs, kind, requests / kind.flows, cpus)?;
                    figures.extend(figures_of(&name, times));
                }
            }
        }
        let used = Instant::now();
        self.flows.insert(carrier, Flows { used, ..flows });
        Ok(figures)
    }
}

fn requests(effort: &Effort) -> usize {
    if effort.quick {
        QUICK_REQUESTS
    } else {
        REQUESTS
    }
}

fn measure(
    bed: &mut Testbed,
    pairs: &[Pair],
    kind: Kind,
    count: usize,
    cpus: Cpus,
) -> Result<(RoundTrips, Duration)> {
    sockets::round_trips(pairs, WARM_UP, kind.bytes, cpus)?;
    let sent = (pairs.len() * count) as u64;
    let expected = if bed.carrier().is_fast() {
        Expected::AtLeast(sent - sent / ONE_SLOW_OF)
    } else {
        Expected::Exactly(0)
    };
    bed.watch(expected, |_| {
        let start = Instant::now();
        let times = sockets::round_trips(pairs, count, kind.bytes, cpus)?;
        Ok((RoundTrips(times), start.elapsed()))
    })
}

/// The median for all to see; the slow ones repeat too badly, and the rate says the same as they all together.
fn figures_of(name: &str, (mut times, taken): (RoundTrips, Duration)) -> Vec<Figure> {
    times.0.sort();
    let figure = |percent: f64| {
        let value = times.percentile(percent).as_secs_f64() * 1e6;
        let name = format!("{name}, p{percent}");
        match percent {
            50.0 | 99.0 => Figure::new(name, Unit::Microseconds, value),
            _ => Figure::detail(name, Unit::Microseconds, value),
        }
    };
    let rate = times.0.len() as f64 / taken.as_secs_f64();
    [50.0, 90.0, 99.0, 99.9]
        .map(figure)
        .into_iter()
        .chain([Figure::detail(
            format!("{name}, rate"),
            Unit::PerSecond,
            rate,
        )])
        .collect()
}

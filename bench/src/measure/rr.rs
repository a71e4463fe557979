//! Round trips of one byte each way: how long they take.

use std::{collections::BTreeMap, thread, time::Instant};

use lab::traffic::rtt::{RoundTrips, Transport};

use super::{Context, Effort, Figure, Measure, Unit};
use crate::{
    path::Expected,
    sockets::{self, Cpus, Pair},
    testbed::{Result, STREAM_AGE, STREAM_KEPT, Testbed},
    variants::Carrier,
};

/// Flows at the same time.
const FLOWS: [usize; 2] = [1, 32];
/// Requests of a run in all flows together, and in the quick one: enough for one in a thousand to be several.
const REQUESTS: usize = 8_000;
const QUICK_REQUESTS: usize = 3_200;
/// Requests of each flow that go before.
const WARM_UP: usize = 64;
/// Requests of which one may take the kernel's path.
const ONE_SLOW_OF: u64 = 20;

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
        let most = FLOWS[FLOWS.len() - 1];
        let open = |transport| {
            let pairs = (0..most).map(|_| Pair::open(bed.ends(), transport));
            pairs.collect::<Result<Vec<_>>>()
        };
        let mut flows = Self {
            tcp: open(Transport::Tcp)?,
            udp: open(Transport::Udp)?,
            used: Instant::now(),
        };
        sockets::round_trips(&flows.udp, 1, cpus)?;
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
            "Round trips of 1 byte each way, {} of each kind, by one thread per flow and end, both ends on one CPU or \
             each on its own",
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
                for number in FLOWS {
                    let pairs = &pairs[..number];
                    let times = measure(bed, pairs, requests / number, cpus)?;
                    let plural = if number == 1 { "flow" } else { "flows" };
                    figures.extend(percentiles(
                        &format!("{transport}, {number} {plural}, {place}"),
                        times,
                    ));
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

fn measure(bed: &mut Testbed, pairs: &[Pair], count: usize, cpus: Cpus) -> Result<RoundTrips> {
    sockets::round_trips(pairs, WARM_UP, cpus)?;
    let sent = (pairs.len() * count) as u64;
    let expected = if bed.carrier().is_fast() {
        Expected::AtLeast(sent - sent / ONE_SLOW_OF)
    } else {
        Expected::Exactly(0)
    };
    let times = bed.watch(expected, |_| sockets::round_trips(pairs, count, cpus))?;
    Ok(RoundTrips(times))
}

/// The median for all to see; the slow ones repeat too badly.
fn percentiles(name: &str, mut times: RoundTrips) -> Vec<Figure> {
    times.0.sort();
    let figure = |percent: f64| {
        let value = times.percentile(percent).as_secs_f64() * 1e6;
        let name = format!("{name}, p{percent}");
        match percent {
            50.0 | 99.0 => Figure::new(name, Unit::Microseconds, value),
            _ => Figure::detail(name, Unit::Microseconds, value),
        }
    };
    [50.0, 90.0, 99.0, 99.9].map(figure).into()
}

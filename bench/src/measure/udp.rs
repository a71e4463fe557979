//! Datagrams in one direction between sockets: what one costs at a steady rate, and what arrives when the sender does
//! nothing else.

use std::{
    collections::BTreeMap,
    slice, thread,
    time::{Duration, Instant},
};

use lab::traffic::rtt::Transport;

use super::{Context, Effort, Figure, Measure, Unit};
use crate::{
    meter::{Meter, Spent},
    path::{Expected, Reading},
    sockets::{self, Cpus, Flood, Offer, Pair},
    testbed::{Result, STREAM_AGE, STREAM_KEPT},
    variants::{Carrier, Setting},
};

/// Datagrams per second of the steady rate: what the slowest path carries on one CPU beside both ends.
const RATE: u32 = 20_000;
/// How long is sent, and in a quick run.
const TIME: Duration = Duration::from_millis(500);
const QUICK_TIME: Duration = Duration::from_millis(250);
/// Bytes of a datagram: few, and as many as fit into a packet on any path here.
const SIZES: [usize; 2] = [64, 1_400];
/// Requests and answers that go before: UDP is permitted when it has been answered.
const WARM_UP: usize = 64;
/// Datagrams of which one may take the kernel's path.
const ONE_SLOW_OF: u64 = 20;

/// See the module.
#[derive(Default)]
pub struct Udp {
    /// Opened once per cluster, and when it was last used: a flow is permitted two seconds later.
    flows: BTreeMap<Carrier, (Pair, Instant)>,
}

impl Measure for Udp {
    fn name(&self) -> &'static str {
        "udp"
    }

    fn title(&self, effort: &Effort) -> String {
        format!(
            "Datagrams of one answered flow, sent for {} ms: at {RATE}/s with both ends on one CPU, and as fast as the \
             sender can with each on its own",
            time(effort).as_millis()
        )
    }

    fn applies(&self, setting: Setting, effort: &Effort) -> bool {
        setting.services > 0 || effort.full
    }

    fn is_quick(&self) -> bool {
        false
    }

    fn carriers(&self) -> &'static [Carrier] {
        &[Carrier::Kernel, Carrier::KernelAgain, Carrier::Flow]
    }

    fn run(&mut self, context: &mut Context<'_, '_>, carrier: Carrier) -> Result<Vec<Figure>> {
        let time = time(&context.effort);
        let one = Cpus {
            client: context.means.cpu,
            server: context.means.cpu,
        };
        let two = context.means.other_cpu.map(|server| Cpus { server, ..one });
        let bed = context.beds.get(carrier)?;
        // Gone if anything fails.
        let kept = self.flows.remove(&carrier);
        let pair = match kept.filter(|(_, used)| used.elapsed() < STREAM_KEPT) {
            Some((pair, _)) => pair,
            None => {
                let pair = Pair::open(bed.ends(), Transport::Udp)?;
                sockets::round_trips(slice::from_ref(&pair), 1, 1, one)?;
                if carrier.asks_the_kernel() {
                    thread::sleep(STREAM_AGE);
                }
                pair
            }
        };
        let mut figures = Vec::new();
        for size in SIZES {
            sockets::round_trips(slice::from_ref(&pair), WARM_UP, 1, one)?;
            let steady = Offer {
                rate: Some(RATE),
                time,
                bytes: size,
            };
            let expected = |datagrams: u64| {
                if carrier.is_fast() {
                    Expected::AtLeast(datagrams - datagrams / ONE_SLOW_OF)
                } else {
                    Expected::Exactly(0)
                }
            };
            let name = format!("{size} bytes, {RATE}/s");
            let before = Reading::take(bed.cluster())?;
            let ((flood, spent), unit) = metered(&pair, &steady, one)?;
            let after = Reading::take(bed.cluster())?;
            after.check(&before, [expected(flood.received); 2])?;
            figures.extend([
                Figure::new(
                    format!("{name}, cost"),
                    unit,
                    spent.cost as f64 / flood.received.max(1) as f64,
                ),
                Figure::new(format!("{name}, lost"), Unit::Count, flood.lost() as f64),
            ]);
            let Some(two) = two else { continue };
            let flat_out = Offer {
                rate: None,
                ..steady
            };
            let name = format!("{size} bytes, flat out");
            let flood = sockets::flood(&pair, &flat_out, two)?;
            Reading::take(bed.cluster())?.check(&after, [expected(flood.received); 2])?;
            // What is to be less in the report's ratios, and what people ask for.
            let rate = flood.received as f64 / time.as_secs_f64();
            let each = 1e6 / rate.max(1.0);
            figures.extend([
                Figure::new(format!("{name}, per arrival"), Unit::Microseconds, each),
                Figure::detail(format!("{name}, arrivals"), Unit::PerSecond, rate),
                Figure::detail(format!("{name}, lost"), Unit::Count, flood.lost() as f64),
            ]);
        }
        self.flows.insert(carrier, (pair, Instant::now()));
        Ok(figures)
    }
}

/// On a thread of its own, which is pinned to the CPU that is metered.
fn metered(pair: &Pair, offer: &Offer, cpus: Cpus) -> Result<((Flood, Spent), Unit)> {
    thread::scope(|scope| {
        let metered = scope.spawn(|| {
            sockets::pin(cpus.client)?;
            let meter = Meter::open(cpus.client)?;
            let (flood, spent) = meter.measure(|| sockets::flood(pair, offer, cpus))?;
            Ok(((flood?, spent), meter.unit().into()))
        });
        metered
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn time(effort: &Effort) -> Duration {
    if effort.quick { QUICK_TIME } else { TIME }
}

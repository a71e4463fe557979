//! Generated packets through a cluster: flows that conntrack knows and the fast path permits, and that every packet of
//! theirs took the path it was to take.

use std::{
    thread,
    time::{Duration, Instant},
};

use flannel_common::generator::Plan;
use lab::Netns;

use super::{Error, POD_DEVICE, Result, Testbed, WIRE};
use crate::{
    generator::{Generator, Ingress, Run},
    packets::{self, Way},
    path::Expected,
};

/// How often each of many destinations is sent to beforehand, on average.
const VISITS: u32 = 3;

/// Packets of each flow, at least, that go before a measurement.
const WARM_UP_EACH: u32 = 2;
/// Packets, at least, that go before a measurement, so that neighbours are known and flows attested.
pub const WARM_UP: u32 = 1024;
/// How long it may take until all packets of a warm-up take the path they are to take.
const WARM_UP_LIMIT: Duration = Duration::from_secs(10);
const WARM_UP_PAUSE: Duration = Duration::from_millis(50);
/// Packets of which one may be slow where they are spread over a long time.
const ONE_SLOW_OF: u64 = 100;
/// Parts in which flows are attested one after the other.
const SLICES: u32 = 20;
/// Age from which conntrack takes UDP that is answered for a stream, and assures it (`nf_conntrack_udp_packet` in
/// net/netfilter/nf_conntrack_proto_udp.c: two seconds and a timer tick).
pub const STREAM_AGE: Duration = Duration::from_millis(2_100);
/// How long conntrack surely remembers a stream without packets (`nf_conntrack_udp_timeout_stream` is 120 s).
pub const STREAM_KEPT: Duration = Duration::from_secs(60);

/// A generator at one pod and a sink in the other.
pub struct Lane {
    pub generator: Generator,
    pub netns: Netns,
    pub device: String,
}

impl Lane {
    /// Sends packets the whole way. That some do not arrive is an error.
    fn run(&mut self, packets: u32) -> Result<Run> {
        let at = Ingress {
            netns: &self.netns,
            device: &self.device,
        };
        all_arrive(&mut self.generator, at, packets)
    }
}

/// How packets are spread over time.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Packets that follow each other at once.
    pub packets: u32,
    /// Time from one such pass to the next. None is left out, whatever the one before took.
    pub interval: Duration,
    /// Passes of a window.
    pub passes: u32,
    /// Windows.
    pub windows: u32,
    /// Time over which the flows are spread beforehand, so that they are not all revalidated at once.
    pub spread: Duration,
}

/// The flows that generated packets are of.
#[derive(Clone, Copy, Debug)]
pub struct Flows {
    number: u32,
    /// When their packets were last seen in both directions.
    used: Option<Instant>,
}

impl Default for Flows {
    fn default() -> Self {
        Self {
            number: 1,
            used: None,
        }
    }
}

impl Testbed {
    /// Sends packets of permitted flows along the whole way.
    ///
    /// # Errors
    /// If not every single one arrived, or not every single one took the path that this cluster is for.
    pub fn send(&mut self, flows: u32, packets: u32) -> Result<Run> {
        self.prime(flows, Duration::ZERO)?;
        let expected = self.all_of(packets);
        self.warm_up()?;
        let run = self.watch(expected, |bed| bed.lane(Way::There).run(packets))?;
        self.flows.used = Some(Instant::now());
        Ok(run)
    }

    /// Sends packets of permitted flows as far as the wire reaches the second node.
    ///
    /// # Errors
    /// As for [`Testbed::send`].
    pub fn send_out(&mut self, flows: u32, packets: u32) -> Result<Run> {
        self.prime(flows, Duration::ZERO)?;
        self.warm_up()?;
        let netns = self.cluster.node(2).netns().clone();
        let at = Ingress {
            netns: &netns,
            device: WIRE,
        };
        self.lane(Way::There).generator.attach_wire_sink(at)?;
        let expected = [self.all_of(packets), Expected::Exactly(0)];
        let send =
            |bed: &mut Self| bed.watch_each(expected, |bed| bed.lane(Way::There).run(packets));
        // Whatever else comes along the wire counts too, so a few tries.
        let run = retry(|| send(self));
        self.lane(Way::There).generator.detach_wire_sink()?;
        run
    }

    /// Makes packets of another size, and so many at a time, from now on.
    ///
    /// # Errors
    /// If the kernel does not take the plan.
    pub fn reshape(&mut self, payload: usize, batch: u32) -> Result<()> {
        for lane in &mut self.lanes {
            lane.generator.reshape(payload, batch)?;
        }
        Ok(())
    }

    /// Sends packets of permitted flows again and again, each flow equally often; what each window cost.
    ///
    /// # Errors
    /// As for [`Testbed::send`].
    pub fn send_paced(&mut self, flows: u32, pace: &Pace) -> Result<Vec<Run>> {
        self.prime(flows, pace.spread)?;
        let passes = pace.windows * pace.passes;
        let packets = u64::from(passes) * u64::from(pace.packets);
        // A machine that pauses in between lets attestations become stale.
        let expected = if self.carrier.is_fast() {
            Expected::AtLeast(packets - packets / ONE_SLOW_OF)
        } else {
            Expected::Exactly(0)
        };
        self.warm_up()?;
        let runs = self.watch(expected, |bed| {
            let start = Instant::now();
            (0..passes)
                .map(|pass| {
                    let due = pace.interval * pass;
                    thread::sleep(due.saturating_sub(start.elapsed()));
                    bed.lane(Way::There).run(pace.packets)
                })
                .collect::<Result<Vec<_>>>()
        })?;
        self.flows.used = Some(Instant::now());
        let windows = runs.chunks(pace.passes as usize);
        Ok(windows
            .filter_map(|runs| runs.iter().copied().reduce(Run::add))
            .collect())
    }

    /// Sends packets that are never to be fast, as `change` makes them of the usual ones.
    ///
    /// # Errors
    /// If not every single one arrived, or BPF carried any.
    pub fn send_slow(
        &mut self,
        flows: u32,
        packets: u32,
        change: impl FnOnce(&mut Plan),
    ) -> Result<Run> {
        self.set_flows(flows)?;
        let usual = self.lane(Way::There).generator.plan();
        let none = Expected::Exactly(0);
        self.lane(Way::There).generator.change(change)?;
        let send =
            |bed: &mut Self, packets| bed.watch(none, |bed| bed.lane(Way::There).run(packets));
        let run = retry(|| send(self, WARM_UP)).and_then(|_| send(self, packets));
        self.lane(Way::There)
            .generator
            .change(|plan| *plan = usual)?;
        run
    }

    /// Stops the agents, which leaves everything as it is, and ends all packets where the wire reaches the second node.
    ///
    /// # Errors
    /// If the sink cannot be attached.
    pub fn end_at_wire(&mut self) -> Result<()> {
        for node in self.cluster.nodes() {
            node.agent().stop()?;
        }
        let netns = self.cluster.node(2).netns().clone();
        let at = Ingress {
            netns: &netns,
            device: WIRE,
        };
        Ok(self.lane(Way::There).generator.attach_wire_sink(at)?)
    }

    /// Sends packets to random ones of `subnets` subnets from `first` on, which are 2^`shift` addresses apart. No route
    /// of the kernel leads there: what arrives at the wire has been carried by BPF.
    ///
    /// # Errors
    /// If not every single one arrived.
    pub fn send_to_wire(
        &mut self,
        first: u32,
        subnets: u32,
        shift: u32,
        packets: u32,
    ) -> Result<Run> {
        let lane = self.lane(Way::There);
        lane.generator.change(|plan| {
            (plan.subnets, plan.subnet_shift) = (subnets, shift);
            // The second address of the subnet.
            packets::send_to(plan, first + 2);
        })?;
        // Destinations that were never sent to cost more than those that were.
        let all_seen = subnets.saturating_mul(VISITS);
        retry(|| lane.run(WARM_UP.max(all_seen)))?;
        lane.run(packets)
    }

    /// Makes packets that the sink takes at once.
    ///
    /// # Errors
    /// If it did not see every single one.
    pub fn send_nowhere(&mut self, flows: u32, packets: u32) -> Result<Run> {
        self.set_flows(flows)?;
        let netns = self.ends[1].netns.clone();
        let at = Ingress {
            netns: &netns,
            device: POD_DEVICE,
        };
        let generator = &mut self.lane(Way::There).generator;
        all_arrive(generator, at, WARM_UP)?;
        all_arrive(generator, at, packets)
    }

    /// Makes conntrack know the flows of generated packets, as streams that are answered, and the fast path by and by.
    fn prime(&mut self, flows: u32, spread: Duration) -> Result<()> {
        let kept = self
            .flows
            .used
            .is_some_and(|used| used.elapsed() < STREAM_KEPT);
        if self.flows.number == flows && kept {
            return Ok(());
        }
        self.set_flows(flows)?;
        self.exchange()?;
        if self.carrier.asks_the_kernel() {
            thread::sleep(STREAM_AGE);
            retry(|| self.lane(Way::Back).run(flows))?;
            let slices = if flows < SLICES { 1 } else { SLICES };
            let start = Instant::now();
            for slice in 0..slices {
                let due = spread * slice / slices;
                thread::sleep(due.saturating_sub(start.elapsed()));
                retry(|| self.lane(Way::There).run(flows.div_ceil(slices)))?;
            }
        }
        self.flows.used = Some(Instant::now());
        Ok(())
    }

    /// One packet of each flow and its answer.
    fn exchange(&mut self) -> Result<()> {
        let flows = self.flows.number;
        for way in [Way::There, Way::Back] {
            retry(|| self.lane(way).run(flows))?;
        }
        Ok(())
    }

    /// Until neighbours are resolved and, for BPF, pods are known and flows attested.
    fn warm_up(&mut self) -> Result<()> {
        let packets = WARM_UP.max(WARM_UP_EACH * self.flows.number);
        let expected = self.all_of(packets);
        retry(|| self.watch(expected, |bed| bed.lane(Way::There).run(packets))).map(drop)
    }

    /// What BPF is to carry of packets that may be fast.
    fn all_of(&self, packets: u32) -> Expected {
        let fast = self.carrier.is_fast();
        Expected::Exactly(if fast { packets.into() } else { 0 })
    }

    fn set_flows(&mut self, flows: u32) -> Result<()> {
        if self.flows.number != flows {
            self.flows = Flows {
                number: flows,
                used: None,
            };
            for lane in &mut self.lanes {
                lane.generator
                    .change(|plan: &mut Plan| plan.flows = flows)?;
            }
        }
        Ok(())
    }

    /// # Panics
    /// Without pods: no measure sends generated packets there.
    fn lane(&mut self, way: Way) -> &mut Lane {
        &mut self.lanes[way as usize]
    }
}

/// Tries until packets arrive, and on the path that they are to take.
fn retry(mut attempt: impl FnMut() -> Result<Run>) -> Result<Run> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(Error::Lost { .. } | Error::Path { .. }) if start.elapsed() < WARM_UP_LIMIT => {
                thread::sleep(WARM_UP_PAUSE);
            }
            done => return done,
        }
    }
}

fn all_arrive(generator: &mut Generator, at: Ingress<'_>, packets: u32) -> Result<Run> {
    let run = generator.run(at, packets)?;
    if run.arrived == u64::from(packets) {
        return Ok(run);
    }
    Err(Error::Lost {
        sent: packets,
        arrived: run.arrived,
    })
}

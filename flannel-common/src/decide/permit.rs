//! Whether a packet that the topology allows may take the fast path: only if the kernel has lately passed this leg of
//! its flow.
//!
//! Called with packets that the topology has accepted, in front of the kernel's forwarding. What the kernel itself
//! forwards is looked at in [`super::attest`].

use super::transport::Transport;
use super::{Topology, alive};
use crate::family::Family;
use crate::flow::{Clock, Flows, Leg, SharedFlow};
use crate::maps::{CARRIED_PROBE, CARRIED_QUEUE, Config, FLAG_BOTH_LEGS, FLAG_FLOWS, FLAG_TCP};
use crate::outcome::Outcome;
use crate::wire::{Packet, tcp};

/// Pause between two probes of one leg, in nanoseconds. Short against any grace, so that one lost probe is not yet a
/// slow flow.
pub const PROBE_INTERVAL: u64 = 50_000_000;

/// Time in nanoseconds after which a queue of this machine has surely been worked off, if nothing tells earlier.
pub const QUIET: u64 = 10_000_000;

/// How a packet is carried that may be fast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permit {
    /// A copy goes through the kernel first, to ask whether it still passes the flow.
    pub probe: bool,
    /// Earlier packets wait in the veth's queue: this one must queue up behind them instead of overtaking.
    pub queue: bool,
}

impl Permit {
    /// As XDP tells it to the hook behind it.
    #[inline(always)]
    pub const fn carried(self) -> u8 {
        let probe = if self.probe { CARRIED_PROBE } else { 0 };
        let queue = if self.queue { CARRIED_QUEUE } else { 0 };
        probe | queue
    }

    /// The inverse of [`Self::carried`].
    #[inline(always)]
    pub const fn from_carried(bits: u8) -> Self {
        Self {
            probe: bits & CARRIED_PROBE != 0,
            queue: bits & CARRIED_QUEUE != 0,
        }
    }
}

/// Asks for the packet of `leg` whose IP header `ip` is at `offset`; also returns what is remembered of its flow, where
/// flows need permission.
///
/// `source` checks the source address against `from`, the interface or the node that the packet came from, and says since
/// when the address is theirs; it is asked once per flow and generation of the maps. The other end is what it is since
/// `since`. `kernel_queues`: whether slow packets of this leg wait in a queue that lies between this hook and the one that
/// attests, as those do that the VXLAN device decapsulates, seen from the node's interface.
///
/// # Errors
/// The reason why the kernel must handle it.
#[expect(
    clippy::too_many_arguments,
    reason = "in BPF a structure of them would cost a copy on the stack"
)]
#[inline(always)]
pub fn permit<'a, A: Family, P: Packet + ?Sized, T: Topology, F: Flows<A::Key>>(
    packet: &P,
    offset: usize,
    ip: &A::Header,
    leg: Leg,
    from: u32,
    source: impl FnOnce() -> Result<u64, Outcome>,
    since: u64,
    kernel_queues: bool,
    topology: &T,
    flows: &'a F,
) -> Result<(Permit, Option<&'a SharedFlow>), Outcome> {
    let config = topology.config();
    if config.flags & FLAG_FLOWS == 0 {
        source()?;
        alive(topology.expires(), flows.tick())?;
        return Ok((Permit::default(), None));
    }
    let transport = Transport::read::<A, P>(packet, offset, ip)?;
    let key = transport.flow::<A>(ip, leg);
    let flow = flows.find(&key);
    let sight = u64::from(topology.generation()) << u32::BITS | u64::from(from);
    let is_checked = flow.is_some_and(|flow| flow.checked(leg) == sight);
    let since = if is_checked {
        since
    } else {
        since.max(source()?)
    };
    let terms = Terms {
        config,
        expires: topology.expires(),
        since,
        kernel_queues,
    };
    let (permit, flow) = permit_flow(flows, &key, flow, leg, &transport, &terms)?;
    if !is_checked {
        flow.set_checked(leg, sight);
    }
    Ok((permit, Some(flow)))
}

/// What permission depends on beside the flow itself.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// The node's config.
    pub config: &'a Config,
    /// Until when all this may be believed, in nanoseconds of `CLOCK_MONOTONIC`.
    pub expires: u64,
    /// Since when the pod and the peer are what they are.
    pub since: u64,
    /// As for [`permit`].
    pub kernel_queues: bool,
}

/// Asks for a packet of `leg` of the flow `key`, of which `flow` is remembered, and whose ends have been checked.
///
/// # Errors
/// The reason why the kernel must handle it.
#[inline(always)]
pub fn permit_flow<'a, K, F: Flows<K>>(
    flows: &F,
    key: &K,
    flow: Option<&'a SharedFlow>,
    leg: Leg,
    transport: &Transport,
    terms: &Terms<'_>,
) -> Result<(Permit, &'a SharedFlow), Outcome> {
    let is_strict = terms.config.flags & FLAG_TCP == 0 && !cfg!(feature = "broken-no-be-liberal");
    if transport.tcp && is_strict {
        return Err(Outcome::TcpStrict);
    }
    let flow = flow.ok_or(if transport.is_control() {
        Outcome::TcpControl
    } else {
        Outcome::NoFlow
    })?;
    if transport.tcp && transport.flags & (tcp::SYN | tcp::RST) != 0 {
        flows.forget(key);
        return Err(Outcome::TcpControl);
    }
    if leg == Leg::Out && transport.tcp && flow.queued() != 0 {
        flow.set_acknowledged(transport.acknowledgment);
    }
    let result = known(flows, flow, leg, transport, terms);
    let queues = leg == Leg::In && !matches!(result, Ok(Permit { queue: false, .. }));
    if queues && !cfg!(feature = "broken-probes-reorder") {
        flow.set_queued(flows.now(), transport.end, result.is_err());
    }
    result.map(|permit| (permit, flow))
}

/// Asks for a packet of a flow that has an entry.
#[inline(always)]
fn known<F: Clock>(
    flows: &F,
    flow: &SharedFlow,
    leg: Leg,
    transport: &Transport,
    terms: &Terms<'_>,
) -> Result<Permit, Outcome> {
    let config = terms.config;
    if transport.tcp && transport.flags & tcp::FIN != 0 {
        flow.set_closing(leg);
        return Err(Outcome::TcpControl);
    }
    if flow.closing(leg) {
        return Err(Outcome::Closing);
    }
    let since = config.since.max(terms.since);
    let attested = flow.attested(leg);
    if attested <= since
        || (config.flags & FLAG_BOTH_LEGS != 0 && flow.attested(leg.other()) <= since)
    {
        return Err(Outcome::NoFlow);
    }
    let now = flows.tick();
    alive(terms.expires, now)?;
    // The tick may lie before an attestation of the same millisecond.
    let age = now.saturating_sub(attested);
    if age > config.stale_after {
        return Err(Outcome::Stale);
    }
    let queue = leg == Leg::In && must_queue(flows, flow, attested, terms.kernel_queues)?;
    let probe = age > config.revalidate_after && may_probe(flow, leg, transport, attested, now);
    if probe {
        flow.set_probed(leg, now);
        if cfg!(feature = "broken-probes-reorder") {
            return Err(Outcome::Probe);
        }
    }
    Ok(Permit { probe, queue })
}

/// Whether it is time for a probe.
///
/// One is repeated until it is answered, as it may be lost. Not so that of a datagram to a pod: behind the hook that
/// drops it is nothing but the pod, so if somebody has taken the hook away, the pod gets one datagram twice, not many.
#[inline(always)]
fn may_probe(flow: &SharedFlow, leg: Leg, transport: &Transport, attested: u64, now: u64) -> bool {
    let probed = flow.probed(leg);
    let unanswered = probed > attested;
    let once = leg == Leg::In && !transport.tcp;
    !(once && unanswered) && now.saturating_sub(probed) >= PROBE_INTERVAL
}

/// Whether packets that went to the pod earlier may still wait at the veth; fails if they may wait in the kernel's path
/// in front of that.
///
/// A flow that turns fast must not overtake itself. Slow packets pass up to two queues, the VXLAN device's and the
/// veth's. The first is empty again when the hook behind it has seen a packet later than the last one that went in,
/// since a processor works off one queue before it turns to the other. The second is when the pod has acknowledged what
/// went in, or after some time.
#[inline(always)]
fn must_queue<F: Clock>(
    flows: &F,
    flow: &SharedFlow,
    attested: u64,
    kernel_queues: bool,
) -> Result<bool, Outcome> {
    let queued = flow.queued();
    if queued == 0 {
        return Ok(false);
    }
    if flow.all_acknowledged() || flows.now().saturating_sub(queued) > QUIET {
        flow.set_drained();
        return Ok(false);
    }
    if kernel_queues && flow.in_kernel() && attested < queued {
        return Err(Outcome::Draining);
    }
    Ok(true)
}

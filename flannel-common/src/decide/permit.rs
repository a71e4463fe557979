//! Whether a packet that the topology allows may take the fast path: only if the kernel has lately passed this leg of
//! its flow.
//!
//! Called with packets that the topology has accepted, in front of the kernel's forwarding. What the kernel itself
//! forwards is looked at in [`super::attest`].

use super::transport::Transport;
use crate::flow::{FlowKey, Flows, Leg, SharedFlow};
use crate::maps::{Config, FLAG_BOTH_LEGS, FLAG_FLOWS, FLAG_TCP};
use crate::outcome::Outcome;
use crate::wire::tcp;

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

/// What permission depends on beside the flow itself.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// The node's config.
    pub config: &'a Config,
    /// Since when the pod and the peer are what they are.
    pub since: u64,
    /// Whether slow packets of this leg wait in a queue that lies between this hook and the one that attests: those
    /// that the VXLAN device decapsulates, seen from the node's interface.
    pub kernel_queues: bool,
}

/// Asks for a packet of `leg`.
///
/// # Errors
/// The reason why the kernel must handle it.
#[inline(always)]
pub fn permit<F: Flows>(
    flows: &F,
    key: &FlowKey,
    leg: Leg,
    transport: &Transport,
    terms: &Terms<'_>,
) -> Result<Permit, Outcome> {
    if terms.config.flags & FLAG_FLOWS == 0 {
        return Ok(Permit::default());
    }
    let needs_liberal = transport.tcp && !cfg!(feature = "broken-no-be-liberal");
    if needs_liberal && terms.config.flags & FLAG_TCP == 0 {
        return Err(Outcome::TcpStrict);
    }
    let flow = flows.find(key).ok_or(if transport.is_control() {
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
    result
}

/// Asks for a packet of a flow that has an entry.
#[inline(always)]
fn known<F: Flows>(
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
    // The tick may lie before an attestation of the same millisecond.
    let age = now.saturating_sub(attested);
    if age > config.stale_after {
        return Err(Outcome::Stale);
    }
    let queue = leg == Leg::In && must_queue(flows, flow, attested, terms)?;
    let probe =
        age > config.revalidate_after && now.saturating_sub(flow.probed(leg)) >= PROBE_INTERVAL;
    if probe {
        flow.set_probed(leg, now);
        if cfg!(feature = "broken-probes-reorder") {
            return Err(Outcome::Probe);
        }
    }
    Ok(Permit { probe, queue })
}

/// Whether packets that went to the pod earlier may still wait at the veth; fails if they may wait in the kernel's path
/// in front of that.
///
/// A flow that turns fast must not overtake itself. Slow packets pass up to two queues, the VXLAN device's and the
/// veth's. The first is empty again when the hook behind it has seen a packet later than the last one that went in,
/// since a processor works off one queue before it turns to the other. The second is when the pod has acknowledged what
/// went in, or after some time.
#[inline(always)]
fn must_queue<F: Flows>(
    flows: &F,
    flow: &SharedFlow,
    attested: u64,
    terms: &Terms<'_>,
) -> Result<bool, Outcome> {
    let queued = flow.queued();
    if queued == 0 {
        return Ok(false);
    }
    if flow.all_acknowledged() || flows.now().saturating_sub(queued) > QUIET {
        flow.set_drained();
        return Ok(false);
    }
    if terms.kernel_queues && flow.in_kernel() && attested < queued {
        return Err(Outcome::Draining);
    }
    Ok(true)
}

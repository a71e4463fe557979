//! Decisions about IPv6 packets, as hooks ask for them.

use crate::decide::attest::{self, Verdict};
use crate::decide::egress::{self, Forward, Port};
use crate::decide::ingress::{self, Deliver};
use crate::decide::{self, L3, Meta};
use crate::family::Family;
pub(super) use crate::flow::FlowKey6 as Key;
use crate::flow::Leg;
use crate::outcome::Outcome;
use crate::testing::memory::Memory;
use crate::testing::node::Tables;
use crate::testing::node6::{
    NODE_IP6 as NODE, OUTSIDE6 as OUTSIDE, POD6 as POD, POD6_VIA as POD_VIA, VTEP6 as VTEP,
    VXLAN6 as REMOTE,
};
use crate::wire::ethernet::Ethernet;
use crate::wire::{Be128, ipv6};

#[expect(
    clippy::duplicate_mod,
    reason = "one source of tests, for both families"
)]
#[path = "../life.rs"]
pub(super) mod life;

/// Offset of the transport header in a frame.
const L4: usize = L3 + ipv6::LEN;
/// Offset of the hops that are left.
const TTL: usize = L3 + 7;

/// Dates the pods and peers of a node, or takes them away.
struct Members {
    pods: fn(&mut Tables, Option<u64>),
    peers: fn(&mut Tables, Option<u64>),
}

const MEMBERS: Members = Members {
    pods: |tables, since| match since {
        Some(since) => tables
            .v6
            .pods
            .values_mut()
            .for_each(|pod| pod.since = since),
        None => tables.v6.pods.clear(),
    },
    peers: |tables, since| match since {
        Some(since) => tables
            .v6
            .subnets
            .values_mut()
            .for_each(|peer| peer.since = since),
        None => tables.v6.subnets.clear(),
    },
};

/// A flow between addresses of the node's.
fn key(
    pod: impl Into<Be128>,
    remote: impl Into<Be128>,
    pod_port: crate::wire::Be16,
    remote_port: crate::wire::Be16,
    protocol: u8,
) -> Key {
    <Be128 as Family>::key(pod.into(), remote.into(), pod_port, remote_port, protocol)
}

/// The header that hooks look at first.
fn ethernet(frame: &[u8], meta: &Meta, tables: &Tables) -> Result<Ethernet, Outcome> {
    match decide::frame(frame, meta, tables)? {
        decide::Frame::V6(ethernet) => Ok(ethernet),
        other => panic!("{other:?} is of the other family"),
    }
}

pub(super) fn egress<'a>(
    frame: &[u8],
    meta: &Meta,
    port: Port,
    tables: &'a Tables,
    flows: &'a Memory<Key>,
) -> Result<Forward<'a, Be128>, Outcome> {
    let ethernet = ethernet(frame, meta, tables)?;
    egress::decide(frame, meta, &ethernet, port, tables, flows)
}

pub(super) fn from_vtep<'a>(
    frame: &[u8],
    meta: &Meta,
    tables: &'a Tables,
    flows: &Memory<Key>,
) -> Result<Deliver<'a, Be128>, Outcome> {
    let ethernet = ethernet(frame, meta, tables)?;
    ingress::from_vtep(frame, meta, &ethernet, tables, flows)
}

pub(super) fn attest(
    frame: &[u8],
    meta: &Meta,
    leg: Leg,
    tables: &Tables,
    flows: &Memory<Key>,
    attested: impl FnOnce() -> bool,
) -> (Verdict, Outcome) {
    attest::attest::<Be128, _, _, _>(frame, meta, leg, tables, flows, attested)
}

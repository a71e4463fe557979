//! What the kernel has forwarded between pods and other nodes: TC egress at the VXLAN device or the node's interface, and
//! at the host side of each pod's veth.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use flannel_common::decide::attest::{self, Verdict};
use flannel_common::decide::{L3, Routes, Tag, Topology as _};
use flannel_common::family::Family;
use flannel_common::flow::{Flows, Leg};
use flannel_common::outcome::{Hook, Outcome};
use flannel_common::wire::ethernet::{self, Ethernet};
use flannel_common::wire::{Be32, Be128, Packet as _, ipv4, ipv6, tcp};

use crate::maps::{Remembered, Topology, count};
use crate::skb::{DROP, Skb};

/// Bytes that are looked at.
const HEADERS: usize = L3 + ipv4::LEN + tcp::MIN_LEN;
const HEADERS_V6: usize = L3 + ipv6::LEN + tcp::MIN_LEN;

/// TC egress, VXLAN device or node's interface.
#[classifier]
pub fn attest_out(ctx: TcContext) -> i32 {
    run(&ctx, Hook::AttestOut, Leg::Out)
}

/// TC egress, host side of a pod's veth.
#[classifier]
pub fn attest_in(ctx: TcContext) -> i32 {
    run(&ctx, Hook::AttestIn, Leg::In)
}

#[inline(always)]
fn run(ctx: &TcContext, hook: Hook, leg: Leg) -> i32 {
    let mut skb = Skb::as_it_is(ctx);
    // The decision says the same, later: every fast packet between nodes without a tunnel comes by here.
    if skb.tag() == Tag::Fast {
        skb.set_tag(Tag::None);
        count(hook, Outcome::Redirected);
        return TC_ACT_UNSPEC;
    }
    skb.pull(HEADERS);
    let ethernet: Option<Ethernet> = skb.read(0);
    if ethernet.is_some_and(|ethernet| ethernet.ethertype == ethernet::IPV6) {
        return run_v6(ctx.skb.skb, hook, leg);
    }
    run_v4(ctx.skb.skb, hook, leg)
}

/// Functions of their own, since both together need more than all of the stack.
#[inline(never)]
fn run_v4(raw: *mut __sk_buff, hook: Hook, leg: Leg) -> i32 {
    learn::<Be32>(&mut Skb::as_it_is(&TcContext::new(raw)), hook, leg)
}

#[inline(never)]
fn run_v6(raw: *mut __sk_buff, hook: Hook, leg: Leg) -> i32 {
    let mut skb = Skb::new(&TcContext::new(raw), HEADERS_V6);
    learn::<Be128>(&mut skb, hook, leg)
}

#[inline(always)]
fn learn<A: Family>(skb: &mut Skb, hook: Hook, leg: Leg) -> i32
where
    Topology: Routes<A>,
    Remembered: Flows<A::Key>,
{
    let Some(topology) = Topology::load() else {
        return TC_ACT_UNSPEC;
    };
    let meta = skb.meta();
    let marked = skb.take_mark(topology.config().mark);
    let attested = || {
        if crate::kernel::nfct() == 0 {
            marked
        } else {
            skb.attested_by_conntrack()
        }
    };
    let (verdict, outcome) =
        attest::attest::<A, _, _, _>(&*skb, &meta, leg, &topology, &Remembered, attested);
    count(hook, outcome);
    if verdict == Verdict::Drop {
        return DROP;
    }
    TC_ACT_UNSPEC
}

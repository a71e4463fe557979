//! What the kernel has forwarded between pods and other nodes: TC egress at the VXLAN device or the node's interface, and
//! at the host side of each pod's veth.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use flannel_common::decide::attest::{self, Verdict};
use flannel_common::decide::{L3, Tag, Topology as _};
use flannel_common::flow::Leg;
use flannel_common::outcome::{Hook, Outcome};
use flannel_common::wire::{ipv4, tcp};

use crate::maps::{Remembered, Topology, count};
use crate::skb::{DROP, Skb};

/// Bytes that are looked at.
const HEADERS: usize = L3 + ipv4::LEN + tcp::MIN_LEN;

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
    let Some(topology) = Topology::load() else {
        return TC_ACT_UNSPEC;
    };
    skb.pull(HEADERS);
    let meta = skb.meta();
    let marked = skb.take_mark(topology.config().mark);
    let (verdict, outcome) = attest::attest(&skb, &meta, leg, &topology, &Remembered, || {
        if crate::kernel::nfct() == 0 {
            marked
        } else {
            skb.attested_by_conntrack()
        }
    });
    count(hook, outcome);
    if verdict == Verdict::Drop {
        return DROP;
    }
    TC_ACT_UNSPEC
}

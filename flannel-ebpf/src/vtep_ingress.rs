//! From other nodes, after the kernel's own decapsulation: TC ingress at the VXLAN device.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use flannel_common::decide::{L3, ingress};
use flannel_common::outcome::{Hook, Outcome};
use flannel_common::wire::{ipv4, tcp};

use crate::deliver::deliver;
use crate::maps::{Remembered, Topology, verdict};
use crate::skb::Skb;

/// Bytes that the decision reads.
const HEADERS: usize = L3 + ipv4::LEN + tcp::MIN_LEN;

/// TC ingress, VXLAN device.
#[classifier]
pub fn vtep_ingress(ctx: TcContext) -> i32 {
    verdict(&ctx, Hook::VtepIngress, receive(&ctx))
}

#[inline(always)]
fn receive(ctx: &TcContext) -> Result<i32, Outcome> {
    let topology = Topology::load().ok_or(Outcome::Inactive)?;
    let mut skb = Skb::new(ctx, HEADERS);
    let decision = ingress::from_vtep(&skb, &skb.meta(), &topology, &Remembered)?;
    deliver(&mut skb, &topology, &decision)
}

//! From other nodes: TC ingress at the node's interface.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use flannel_common::decide::{L3, Topology as _, ingress};
use flannel_common::outcome::{Hook, Outcome};
use flannel_common::wire::{ethernet, ipv4, tcp, udp, vxlan};

use crate::deliver::deliver;
use crate::maps::{Remembered, Topology, verdict};
use crate::skb::Skb;

/// Bytes that the decision reads at most.
const HEADERS: usize = L3 + vxlan::OVERHEAD + ipv4::LEN + tcp::MIN_LEN;

const _: () = assert!(vxlan::OVERHEAD == ipv4::LEN + udp::LEN + vxlan::LEN + ethernet::LEN);

/// TC ingress, node's interface.
#[classifier]
pub fn nic_ingress(ctx: TcContext) -> i32 {
    verdict(&ctx, Hook::NicIngress, receive(&ctx))
}

#[inline(always)]
fn receive(ctx: &TcContext) -> Result<i32, Outcome> {
    let topology = Topology::load().ok_or(Outcome::Inactive)?;
    let mut skb = Skb::new(ctx, HEADERS);
    let decision = ingress::from_wire(&skb, &skb.meta(), &topology, &Remembered)?;
    deliver(&mut skb, topology.config(), &decision)
}

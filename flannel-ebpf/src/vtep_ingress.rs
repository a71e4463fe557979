//! From other nodes, after the kernel's own decapsulation: TC ingress at the VXLAN device.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use flannel_common::decide::{self, Frame, L3, Topology as _, ingress};
use flannel_common::outcome::{Hook, Outcome};
use flannel_common::wire::ethernet::Ethernet;
use flannel_common::wire::{Be32, Be128, Packet as _, ipv4, ipv6, tcp};

use crate::deliver::hand_over;
use crate::maps::{Remembered, Topology, verdict};
use crate::skb::Skb;

/// Bytes that the decision reads.
const HEADERS: usize = L3 + ipv4::LEN + tcp::MIN_LEN;
const HEADERS_V6: usize = L3 + ipv6::LEN + tcp::MIN_LEN;

/// TC ingress, VXLAN device.
#[classifier]
pub fn vtep_ingress(ctx: TcContext) -> i32 {
    let Some(topology) = Topology::load() else {
        return verdict(&ctx, Hook::VtepIngress, Err(Outcome::Inactive));
    };
    let mut skb = Skb::new(&ctx, HEADERS);
    let meta = skb.meta();
    let result = match decide::frame(&skb, &meta, &topology) {
        Ok(Frame::V4(ethernet)) => {
            let decision =
                ingress::from_vtep::<Be32, _, _, _>(&skb, &meta, &ethernet, &topology, &Remembered);
            decision.map(|decision| hand_over(&mut skb, topology.config(), &decision))
        }
        Ok(Frame::V6(_)) => return run_v6(ctx.skb.skb),
        Err(outcome) => Err(outcome),
    };
    verdict(&ctx, Hook::VtepIngress, result)
}

/// A function of its own, so that IPv4 has all registers and all of the stack to itself.
#[inline(never)]
fn run_v6(raw: *mut __sk_buff) -> i32 {
    let ctx = TcContext::new(raw);
    verdict(&ctx, Hook::VtepIngress, receive_v6(&ctx))
}

#[inline(always)]
fn receive_v6(ctx: &TcContext) -> Result<i32, Outcome> {
    let topology = Topology::load().ok_or(Outcome::Inactive)?;
    let mut skb = Skb::new(ctx, HEADERS_V6);
    let ethernet: Ethernet = skb.read(0).ok_or(Outcome::Malformed)?;
    let decision =
        ingress::from_vtep::<Be128, _, _, _>(&skb, &skb.meta(), &ethernet, &topology, &Remembered)?;
    Ok(hand_over(&mut skb, topology.config(), &decision))
}

//! From other nodes: TC ingress at the node's interface.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use bytemuck::{Pod, Zeroable};
use flannel_common::addr::Mac;
use flannel_common::decide::{self, Frame, L3, Topology as _, ingress};
use flannel_common::maps::Config;
use flannel_common::outcome::{Hook, Outcome};
use flannel_common::wire::ethernet::{self, Ethernet};
use flannel_common::wire::ip::IpHeader as _;
use flannel_common::wire::ipv4::{self, Ipv4};
use flannel_common::wire::{Be128, Packet as _, ipv6, tcp, udp, vxlan};

use crate::deliver::{deliver, hand_over};
use crate::maps::{Remembered, Topology, verdict};
use crate::skb::{Skb, to_ingress};

/// Bytes that the decision reads at most.
const HEADERS: usize = L3 + vxlan::OVERHEAD + ipv4::LEN + tcp::MIN_LEN;

const _: () = assert!(HEADERS >= L3 + ipv6::LEN + tcp::MIN_LEN);

const _: () = assert!(vxlan::OVERHEAD == ipv4::LEN + udp::LEN + vxlan::LEN + ethernet::LEN);

/// The headers that tell where a packet goes.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Headers {
    ethernet: Ethernet,
    ip: Ipv4,
}

/// TC ingress, node's interface.
#[classifier]
pub fn nic_ingress(ctx: TcContext) -> i32 {
    let Some(topology) = Topology::load() else {
        return verdict(&ctx, Hook::NicIngress, Err(Outcome::Inactive));
    };
    let mut skb = Skb::new(&ctx, HEADERS);
    let meta = skb.meta();
    let result = match decide::frame(&skb, &meta, &topology) {
        Ok(Frame::V4(ethernet)) => {
            ingress::from_wire(&skb, &meta, &ethernet, &topology, &Remembered)
                .and_then(|decision| deliver(&mut skb, &topology, &decision))
        }
        Ok(Frame::V6(_)) => return run_v6(ctx.skb.skb),
        Err(outcome) => Err(outcome),
    };
    let verdict = verdict(&ctx, Hook::NicIngress, result);
    if verdict == TC_ACT_UNSPEC && topology.config().xdp_mac != Mac::default() {
        return give_back(&mut skb, topology.config());
    }
    verdict
}

/// A function of its own, so that IPv4 has all registers and all of the stack to itself.
#[inline(never)]
fn run_v6(raw: *mut __sk_buff) -> i32 {
    let ctx = TcContext::new(raw);
    verdict(&ctx, Hook::NicIngress, receive_v6(&ctx))
}

#[inline(always)]
fn receive_v6(ctx: &TcContext) -> Result<i32, Outcome> {
    let topology = Topology::load().ok_or(Outcome::Inactive)?;
    let mut skb = Skb::as_it_is(ctx);
    let meta = skb.meta();
    let decision =
        ingress::from_wire_routed::<Be128, _, _, _>(&skb, &meta, &topology, &Remembered)?;
    Ok(hand_over(&mut skb, topology.config(), &decision))
}

/// What XDP has taken out of its tunnel, and is the kernel's after all, goes on where the kernel's own tunnel would have
/// put it.
#[inline(always)]
fn give_back(skb: &mut Skb, config: &Config) -> i32 {
    // One reading: of two, the compiler leaves out the smaller one's check, and the verifier misses it.
    let Some(headers) = skb.read::<Headers>(0) else {
        return TC_ACT_UNSPEC;
    };
    if ingress::carried_by_xdp(&headers.ethernet, config).is_none() {
        return TC_ACT_UNSPEC;
    }
    let headers = Headers {
        ethernet: Ethernet {
            destination: config.vtep_mac,
            ..headers.ethernet
        },
        // The hop that XDP has counted is the kernel's to count.
        ip: headers.ip.with_ttl({ headers.ip }.ttl.wrapping_add(1)),
    };
    if skb.write(0, headers) {
        to_ingress(config.vtep_index)
    } else {
        TC_ACT_UNSPEC
    }
}

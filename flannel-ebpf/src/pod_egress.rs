//! From pods: TC ingress at the host side of each pod's veth, and at the bridge for ports that have no program.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use flannel_common::decide::egress::{self, Forward, Port, Via};
use flannel_common::decide::{self, Frame, L3, Meta, Topology as _, encap};
use flannel_common::family::Family;
use flannel_common::maps::{Config, PeerEntry as _};
use flannel_common::outcome::{Hook, Outcome};
use flannel_common::wire::ethernet::Ethernet;
use flannel_common::wire::ipv4::{self, Ipv4};
use flannel_common::wire::ipv6::{self, Ipv6};
use flannel_common::wire::{Be32, Be128, Packet as _, tcp, vxlan};

use crate::maps::{Remembered, Topology, verdict};
use crate::skb::{DROP, NextHop, Skb, to_device, to_neighbour};

/// Bytes that the decision reads.
const HEADERS: usize = L3 + ipv4::LEN + tcp::MIN_LEN;
const HEADERS_V6: usize = L3 + ipv6::LEN + tcp::MIN_LEN;

/// TC ingress, host side of a pod's veth.
#[classifier]
pub fn pod_egress(ctx: TcContext) -> i32 {
    run(&ctx, Hook::PodEgress, Port::Pod)
}

/// TC ingress, bridge.
#[classifier]
pub fn bridge_egress(ctx: TcContext) -> i32 {
    run(&ctx, Hook::BridgeEgress, Port::Bridge)
}

#[inline(always)]
fn run(ctx: &TcContext, hook: Hook, port: Port) -> i32 {
    let Some(topology) = Topology::load() else {
        return verdict(ctx, hook, Err(Outcome::Inactive));
    };
    let mut skb = Skb::new(ctx, HEADERS);
    let meta = skb.meta();
    let result = match decide::frame(&skb, &meta, &topology) {
        Ok(Frame::V4(ethernet)) => forward(&mut skb, &meta, &ethernet, port, &topology),
        Ok(Frame::V6(_)) => return run_v6(ctx.skb.skb, hook, port),
        Err(outcome) => Err(outcome),
    };
    verdict(ctx, hook, result)
}

/// A function of its own, so that IPv4 has all registers and all of the stack to itself.
#[inline(never)]
fn run_v6(raw: *mut __sk_buff, hook: Hook, port: Port) -> i32 {
    let ctx = TcContext::new(raw);
    verdict(&ctx, hook, forward_v6(&ctx, port))
}

#[inline(always)]
fn forward(
    skb: &mut Skb,
    meta: &Meta,
    ethernet: &Ethernet,
    port: Port,
    topology: &Topology,
) -> Result<i32, Outcome> {
    let decision =
        egress::decide::<Be32, _, _, _>(skb, meta, ethernet, port, topology, &Remembered)?;
    let config = topology.config();
    if decision.permit.probe {
        skb.probe::<Ipv4>(L3);
    }
    if decision.via != Via::Encap {
        return Ok(leave(skb, config, &decision));
    }
    // The hash is the inner flow's only until the headers change.
    let hash = skb.flow_hash(decision.flow);
    // SAFETY: no pointer is involved.
    let id = unsafe { bpf_get_prandom_u32() } as u16;
    let headers = encap::headers(config, decision.peer, &decision.ip, hash, id);
    skb.grow()?;
    let written = skb.write(L3, headers) && skb.write(L3 + vxlan::OVERHEAD, decision.ip);
    let verdict = to_neighbour(config.uplink_index, decision.peer.next_hop);
    // The decision has read what is written here, so this cannot fail; the verifier cannot know.
    Ok(if written { verdict } else { DROP })
}

#[inline(always)]
fn forward_v6(ctx: &TcContext, port: Port) -> Result<i32, Outcome> {
    let topology = Topology::load().ok_or(Outcome::Inactive)?;
    let mut skb = Skb::new(ctx, HEADERS_V6);
    let ethernet: Ethernet = skb.read(0).ok_or(Outcome::Malformed)?;
    let decision = egress::decide::<Be128, _, _, _>(
        &skb,
        &skb.meta(),
        &ethernet,
        port,
        &topology,
        &Remembered,
    )?;
    if decision.permit.probe {
        skb.probe::<Ipv6>(L3);
    }
    Ok(leave(&mut skb, topology.config(), &decision))
}

/// Sends a packet that is encapsulated by the VXLAN device, or not at all.
#[inline(always)]
fn leave<A: Family + NextHop>(skb: &mut Skb, config: &Config, forward: &Forward<'_, A>) -> i32 {
    skb.set_fast(config);
    let mut written = true;
    let verdict = if forward.via == Via::Device {
        let ethernet = Ethernet {
            destination: forward.peer.vtep_mac(),
            source: A::vtep_mac(config),
            ethertype: A::ETHERTYPE,
        };
        written = skb.write(0, ethernet);
        to_device(A::vtep_index(config))
    } else {
        to_neighbour(config.uplink_index, forward.peer.next_hop())
    };
    // The decision has read what is written here, so this cannot fail; the verifier cannot know.
    if written && skb.advance(L3, &forward.ip) {
        verdict
    } else {
        DROP
    }
}

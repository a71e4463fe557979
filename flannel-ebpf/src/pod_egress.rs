//! From pods: TC ingress at the host side of each pod's veth, and at the bridge for ports that have no program.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use flannel_common::decide::egress::{self, Port, Via};
use flannel_common::decide::{L3, Topology as _, encap};
use flannel_common::outcome::{Hook, Outcome};
use flannel_common::wire::ethernet::{self, Ethernet};
use flannel_common::wire::{ipv4, tcp, vxlan};

use crate::maps::{Remembered, Topology, verdict};
use crate::skb::{DROP, Skb, to_device, to_neighbour};

/// Bytes that the decision reads.
const HEADERS: usize = L3 + ipv4::LEN + tcp::MIN_LEN;

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
    verdict(ctx, hook, forward(ctx, port))
}

#[inline(always)]
fn forward(ctx: &TcContext, port: Port) -> Result<i32, Outcome> {
    let topology = Topology::load().ok_or(Outcome::Inactive)?;
    let mut skb = Skb::new(ctx, HEADERS);
    let forward = egress::decide(&skb, &skb.meta(), port, &topology, &Remembered)?;
    let config = topology.config();
    if forward.permit.probe {
        skb.probe(L3);
    }
    let (written, verdict) = match forward.via {
        Via::Encap => {
            // The hash is the inner flow's only until the headers change.
            let hash = skb.flow_hash(forward.flow);
            // SAFETY: no pointer is involved.
            let id = unsafe { bpf_get_prandom_u32() } as u16;
            let headers = encap::headers(config, forward.peer, &forward.ip, hash, id);
            skb.grow()?;
            let written = skb.write(L3, headers) && skb.write(L3 + vxlan::OVERHEAD, forward.ip);
            (
                written,
                to_neighbour(config.uplink_index, forward.peer.next_hop),
            )
        }
        Via::Device => {
            let ethernet = Ethernet {
                destination: forward.peer.vtep_mac,
                source: config.vtep_mac,
                ethertype: ethernet::IPV4,
            };
            skb.set_fast(config);
            let written = skb.write(0, ethernet) && skb.write(L3, forward.ip);
            (written, to_device(config.vtep_index))
        }
        Via::Direct => {
            skb.set_fast(config);
            let written = skb.write(L3, forward.ip);
            (
                written,
                to_neighbour(config.uplink_index, forward.peer.next_hop),
            )
        }
    };
    // The decision has read what is written here, so this cannot fail; the verifier cannot know.
    Ok(if written { verdict } else { DROP })
}

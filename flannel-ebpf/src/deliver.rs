//! The last step of both receive tiers: a plain inner packet into its pod.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use flannel_common::decide::ingress::Deliver;
use flannel_common::decide::{L3, Routes as _, Topology as _, encap};
use flannel_common::family::Family;
use flannel_common::maps::{Config, POD_VIA_HOST, PodEntry as _};
use flannel_common::outcome::Outcome;
use flannel_common::wire::ethernet::Ethernet;
use flannel_common::wire::{Be32, Packet as _, ipv4, vxlan};

use crate::maps::Topology;
use crate::skb::{DROP, Skb, to_device, to_veth_peer};

/// Takes the packet out of its tunnel, if it is in one, rewrites it as the kernel's forwarding would, and hands it over.
///
/// # Errors
/// The packet is unchanged and the kernel must handle it.
#[inline(always)]
pub fn deliver(
    skb: &mut Skb,
    topology: &Topology,
    deliver: &Deliver<'_, Be32>,
) -> Result<i32, Outcome> {
    let config = topology.config();
    if deliver.permit.probe && !deliver.decapsulated {
        skb.probe::<ipv4::Ipv4>(deliver.offset());
    }
    if deliver.permit.probe && deliver.decapsulated && !probe_in_tunnel(skb, topology, deliver) {
        return Ok(DROP);
    }
    if deliver.tunnelled {
        skb.shrink()?;
    }
    Ok(into_pod(skb, config, deliver))
}

/// Sends the probe of a packet without a tunnel if one is due, rewrites it as the kernel's forwarding would, and hands it
/// over.
#[inline(always)]
pub fn hand_over<A: Family>(skb: &mut Skb, config: &Config, deliver: &Deliver<'_, A>) -> i32 {
    if deliver.permit.probe {
        skb.probe::<A::Header>(L3);
    }
    into_pod(skb, config, deliver)
}

#[inline(always)]
fn into_pod<A: Family>(skb: &mut Skb, config: &Config, deliver: &Deliver<'_, A>) -> i32 {
    let ethernet = Ethernet {
        destination: deliver.pod.mac(),
        source: config.bridge_mac,
        ethertype: A::ETHERTYPE,
    };
    // The decision has read what is written here, so this cannot fail; the verifier cannot know.
    if !(skb.write(0, ethernet) && skb.advance(L3, &deliver.ip)) {
        return DROP;
    }
    if deliver.pod.flags() & POD_VIA_HOST == 0 && !deliver.permit.queue {
        // Kernels before 6.6.91 and 6.1.139 (commit c43272299488) take nothing of the host's off a packet on this way. It
        // has no conntrack entry: at a node's interface not yet, behind the VXLAN device not any more.
        skb.clear_mark();
        return to_veth_peer(deliver.pod.host_index());
    }
    skb.set_fast(config);
    to_device(deliver.pod.host_index())
}

/// Sends a probe of a packet that XDP has taken out of its tunnel: in a tunnel, since rules in front of the tunnel's end are
/// to be asked too. `false` if the packet is not whole any more, which only a want of memory can cause.
#[inline(always)]
fn probe_in_tunnel(skb: &mut Skb, topology: &Topology, deliver: &Deliver<'_, Be32>) -> bool {
    let (Some(peer), Some(ethernet)) = (topology.peer(deliver.ip.source), skb.read::<Ethernet>(0))
    else {
        return true;
    };
    // Datagrams that GRO has merged would be told apart wrongly afterwards, as in `Outcome::Datagrams`.
    if deliver.ip.protocol != ipv4::TCP && skb.meta().gso_size != 0 {
        return true;
    }
    // SAFETY: no pointer is involved.
    let id = unsafe { bpf_get_prandom_u32() } as u16;
    let headers = encap::received(topology.config(), peer, &deliver.ip, id);
    if skb.grow().is_err() {
        return true;
    }
    // What is known by its source address is not let through to the kernel.
    let from_peer = Ethernet {
        source: peer.vtep_mac,
        ..ethernet
    };
    if skb.write(0, from_peer) && skb.write(L3, headers) {
        skb.probe::<ipv4::Ipv4>(L3 + vxlan::OVERHEAD);
    }
    skb.shrink().is_ok() && skb.write(0, ethernet)
}

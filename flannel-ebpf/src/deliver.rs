//! The last step of both receive tiers: a plain inner packet into its pod.

use flannel_common::decide::L3;
use flannel_common::decide::ingress::Deliver;
use flannel_common::maps::{Config, POD_VIA_HOST};
use flannel_common::outcome::Outcome;
use flannel_common::wire::ethernet::{self, Ethernet};

use crate::skb::{DROP, Skb, to_device, to_veth_peer};

/// Rewrites the packet as the kernel's forwarding would, and hands it over.
///
/// # Errors
/// The packet is unchanged and the kernel must handle it.
#[inline(always)]
pub fn deliver(skb: &mut Skb, config: &Config, deliver: &Deliver<'_>) -> Result<i32, Outcome> {
    if deliver.permit.probe {
        if deliver.decapsulated {
            skb.probe_decapsulated(config);
        } else {
            skb.probe(deliver.offset());
        }
    }
    if deliver.tunnelled {
        skb.shrink()?;
    }
    let ethernet = Ethernet {
        destination: deliver.pod.mac,
        source: config.bridge_mac,
        ethertype: ethernet::IPV4,
    };
    // The decision has read what is written here, so this cannot fail; the verifier cannot know.
    if !(skb.write(0, ethernet) && skb.write(L3, deliver.ip)) {
        return Ok(DROP);
    }
    if deliver.pod.flags & POD_VIA_HOST == 0 && !deliver.permit.queue {
        // A mark of this node's rules, as a veth takes it off: the helper does so from 6.15 on, and in some older kernels'
        // late updates (commit c43272299488).
        skb.clear_mark();
        return Ok(to_veth_peer(deliver.pod.host_index));
    }
    skb.set_fast(config);
    Ok(to_device(deliver.pod.host_index))
}

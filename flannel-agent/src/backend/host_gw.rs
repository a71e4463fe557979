//! The host-gw backend: per peer one route to the peer's address on the uplink. Nodes must share a link.

use super::{Facts, Reach};
use crate::lease::{Lease, value::BackendData};

/// How `lease`'s subnet is reached.
pub(super) fn reach(facts: &Facts<'_>, lease: &Lease) -> Result<Reach, String> {
    if lease.attributes.backend != BackendData::HostGw {
        return Err(format!(
            "its BackendType is \"{}\", this node's is host-gw",
            lease.attributes.backend.kind()
        ));
    }
    let node = lease.attributes.public_ip;
    match facts.hops.get(&node).copied().flatten() {
        Some(hop) if hop.device != facts.uplink.index || hop.local => Err(format!(
            "{node} is not reached through {}: choose the interface of the nodes' common link with --iface",
            facts.uplink.name
        )),
        Some(hop) => match hop.gateway {
            Some(gateway) => Err(format!(
                "{node} is behind the router {gateway}: host-gw needs a common link; the vxlan backend with DirectRouting does not"
            )),
            None => Ok(Reach::Direct),
        },
        // Not known at the moment: leave the decision to the kernel, which refuses an unreachable gateway.
        None => Ok(Reach::Direct),
    }
}

//! The host-gw backend: per peer one route to the peer's address on the uplink. Nodes must share a link.

use std::net::IpAddr;

use super::{Facts, Reach};
use crate::lease::value::BackendData;

/// How a peer is reached.
pub(super) fn reach(
    facts: &Facts<'_>,
    backend: &BackendData,
    node: IpAddr,
) -> Result<Reach, String> {
    if *backend != BackendData::HostGw {
        return Err(format!(
            "its BackendType is \"{}\", this node's is host-gw",
            backend.kind()
        ));
    }
    match facts.hop(node) {
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

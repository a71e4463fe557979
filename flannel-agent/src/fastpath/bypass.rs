//! What the fast path would lead packets past: filters, shapers and programs of others. Decides who is not served, or
//! served in another way; touches nothing.
//!
//! A program that TCX runs before ours has had its say; `hooks` sees to it that ours is the last. Filters of clsact run
//! after all of TCX, and what sits on the way that packets no longer take never runs.

use std::io;

use aya::programs::TcAttachType;

use super::hooks::Hooks;
use super::{Device, Error, Pod, Topology};

/// How a pod is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serve {
    /// In the usual way.
    Straight,
    /// Packets to it go through the host side of its veth.
    ViaHost(&'static str),
    /// Not at all.
    Kernel(&'static str),
}

/// How `pod` may be served.
///
/// # Errors
/// When the kernel does not say what is attached.
pub fn pod(hooks: &Hooks, topology: &Topology, pod: &Pod) -> io::Result<Serve> {
    let others = topology
        .traffic_control
        .get(&pod.host_index)
        .copied()
        .unwrap_or_default();
    Ok(if others.ingress {
        Serve::Kernel("a traffic control filter on its veth sees what it sends")
    } else if others.egress {
        Serve::ViaHost("a shaper or traffic control filter on its veth sees what it receives")
    } else if hooks.foreign(pod.host_index, TcAttachType::Egress)? {
        Serve::ViaHost("a TCX program on its veth sees what it receives")
    } else if pod.xdp {
        Serve::ViaHost("an XDP program on its interface sees what it receives")
    } else {
        Serve::Straight
    })
}

/// Whether anybody else stands where all pods' packets pass.
///
/// # Errors
/// [`Error::Bypass`] if so: nothing may be fast on this node.
pub fn node(hooks: &Hooks, topology: &Topology) -> Result<(), Error> {
    let by = |device: &Device| {
        let of = topology.traffic_control.get(&device.index);
        of.copied().unwrap_or_default()
    };
    let found = |device: &Device, what| {
        Err(Error::Bypass {
            device: device.name.clone(),
            what,
        })
    };
    if by(&topology.uplink).ingress {
        return found(&topology.uplink, "a traffic control filter");
    }
    let vteps = topology.vtep.values().map(|vtep| &vtep.device);
    for device in vteps.chain(topology.bridge.as_ref()) {
        if by(device).ingress || by(device).egress {
            return found(device, "a traffic control filter or shaper");
        }
        for side in [TcAttachType::Ingress, TcAttachType::Egress] {
            if hooks.foreign(device.index, side).unwrap_or(true) {
                return found(device, "a TCX program of somebody else");
            }
        }
    }
    Ok(())
}

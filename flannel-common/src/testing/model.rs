//! What a hook does with a packet, on the host: asks [`crate::decide`] and writes the answer into a copy of the packet.
//!
//! The BPF programs do the same with helpers of the kernel; that both do is what program runs of the fixtures show.

use std::net::Ipv4Addr;

use bytemuck::{Pod, bytes_of};

use crate::addr::Mac;
use crate::decide::egress::{self, Forward, Port, Via};
use crate::decide::ingress::{self, Deliver};
use crate::decide::{L3, Meta, encap};
use crate::maps::{Config, POD_VIA_HOST};
use crate::outcome::{Hook, Outcome};
use crate::testing::memory::Memory;
use crate::testing::node::Tables;
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::vxlan;

/// Where a fast packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// To a neighbour on the node's interface; the neighbour layer writes the link-layer addresses.
    Neighbour(Ipv4Addr),
    /// Out of an interface, by index.
    Device(u32),
    /// Into the other end of a veth, by the index of this end.
    VethPeer(u32),
    /// Up the stack, where another hook delivers it.
    Stack,
}

/// Runs `hook` on `frame`.
///
/// # Errors
/// The reason why the kernel must handle the packet.
pub fn run(
    tables: &Tables,
    hook: Hook,
    frame: &[u8],
    meta: &Meta,
) -> Result<(To, Vec<u8>), Outcome> {
    let config = &tables.config;
    let flows = Memory::new(&tables.flows);
    match hook {
        Hook::PodEgress => Ok(forward(
            config,
            frame,
            &egress::decide(frame, meta, Port::Pod, tables, &flows)?,
        )),
        Hook::BridgeEgress => Ok(forward(
            config,
            frame,
            &egress::decide(frame, meta, Port::Bridge, tables, &flows)?,
        )),
        Hook::NicIngress => Ok(deliver(
            config,
            frame,
            &ingress::from_wire(frame, meta, tables, &flows)?,
        )),
        Hook::VtepIngress => Ok(deliver(
            config,
            frame,
            &ingress::from_vtep(frame, meta, tables, &flows)?,
        )),
        Hook::NicXdp => {
            let decision = ingress::from_driver(frame, meta, tables, &flows)?;
            let (_, mut out) = deliver(config, frame, &decision);
            let source = ingress::xdp_source(config, decision.permit);
            write(&mut out, 0, link(source, config.uplink_mac));
            Ok((To::Stack, out))
        }
        Hook::AttestIn | Hook::AttestOut => unreachable!("these hooks forward nothing"),
    }
}

/// Flow hash and IPv4 identification of encapsulated packets: any, since the kernel's differ on every run.
const HASH: u32 = 0x9e37_79b9;
const ID: u16 = 0x4242;

fn forward(config: &Config, frame: &[u8], forward: &Forward<'_>) -> (To, Vec<u8>) {
    let mut out = frame.to_vec();
    let neighbour = To::Neighbour(forward.peer.next_hop.into());
    match forward.via {
        Via::Encap => {
            let headers = encap::headers(config, forward.peer, &forward.ip, HASH, ID);
            out.splice(L3..L3, bytes_of(&headers).iter().copied());
            write(&mut out, L3 + vxlan::OVERHEAD, forward.ip);
            (neighbour, out)
        }
        Via::Device => {
            write(&mut out, 0, link(config.vtep_mac, forward.peer.vtep_mac));
            write(&mut out, L3, forward.ip);
            (To::Device(config.vtep_index), out)
        }
        Via::Direct => {
            write(&mut out, L3, forward.ip);
            (neighbour, out)
        }
    }
}

fn deliver(config: &Config, frame: &[u8], deliver: &Deliver<'_>) -> (To, Vec<u8>) {
    let mut out = frame.to_vec();
    if deliver.tunnelled {
        out.drain(L3..L3 + vxlan::OVERHEAD);
    }
    write(&mut out, 0, link(config.bridge_mac, deliver.pod.mac));
    write(&mut out, L3, deliver.ip);
    let to = if deliver.pod.flags & POD_VIA_HOST == 0 && !deliver.permit.queue {
        To::VethPeer
    } else {
        To::Device
    };
    (to(deliver.pod.host_index), out)
}

fn link(source: Mac, destination: Mac) -> Ethernet {
    Ethernet {
        source,
        destination,
        ethertype: ethernet::IPV4,
    }
}

fn write<T: Pod>(frame: &mut [u8], offset: usize, value: T) {
    frame[offset..offset + size_of::<T>()].copy_from_slice(bytes_of(&value));
}

//! What a hook does with a packet, on the host: asks [`crate::decide`] and writes the answer into a copy of the packet.
//!
//! The BPF programs do the same with helpers of the kernel; that both do is what program runs of the fixtures show.

use std::net::IpAddr;

use bytemuck::{Pod, bytes_of};

use crate::addr::Mac;
use crate::decide::egress::{self, Forward, Port, Via};
use crate::decide::ingress::{self, Deliver};
use crate::decide::{self, L3, Meta, encap};
use crate::family::Family;
use crate::maps::{Config, POD_VIA_HOST, PeerEntry as _, PodEntry as _};
use crate::outcome::{Hook, Outcome};
use crate::testing::memory::Memory;
use crate::testing::node::Tables;
use crate::wire::ethernet::Ethernet;
use crate::wire::{Be32, Be128, vxlan};

/// Where a fast packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// To a neighbour on the node's interface; the neighbour layer writes the link-layer addresses.
    Neighbour(IpAddr),
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
    match decide::frame(frame, meta, tables)? {
        decide::Frame::V4(ethernet) => run_v4(tables, hook, frame, meta, &ethernet),
        decide::Frame::V6(ethernet) => run_v6(tables, hook, frame, meta, &ethernet),
    }
}

fn run_v4(
    tables: &Tables,
    hook: Hook,
    frame: &[u8],
    meta: &Meta,
    ethernet: &Ethernet,
) -> Result<(To, Vec<u8>), Outcome> {
    let config = &tables.config;
    let flows = Memory::new(&tables.flows);
    let port = match hook {
        Hook::PodEgress => Port::Pod,
        Hook::BridgeEgress => Port::Bridge,
        Hook::NicIngress => {
            let decision = ingress::from_wire(frame, meta, ethernet, tables, &flows)?;
            return Ok(deliver(config, frame, &decision));
        }
        Hook::VtepIngress => {
            let decision =
                ingress::from_vtep::<Be32, _, _, _>(frame, meta, ethernet, tables, &flows)?;
            return Ok(deliver(config, frame, &decision));
        }
        Hook::NicXdp => {
            let decision = ingress::from_driver(frame, meta, ethernet, tables, &flows)?;
            let (_, mut out) = deliver(config, frame, &decision);
            let source = ingress::xdp_source(config, decision.permit);
            write(&mut out, 0, link::<Be32>(source, config.uplink_mac));
            return Ok((To::Stack, out));
        }
        Hook::AttestIn | Hook::AttestOut => unreachable!("these hooks forward nothing"),
    };
    let decision = egress::decide::<Be32, _, _, _>(frame, meta, ethernet, port, tables, &flows)?;
    if decision.via == Via::Encap {
        let mut out = frame.to_vec();
        let headers = encap::headers(config, decision.peer, &decision.ip, HASH, ID);
        out.splice(L3..L3, bytes_of(&headers).iter().copied());
        write(&mut out, L3 + vxlan::OVERHEAD, decision.ip);
        let next_hop: std::net::Ipv4Addr = decision.peer.next_hop.into();
        return Ok((To::Neighbour(next_hop.into()), out));
    }
    Ok(leave(config, frame, &decision))
}

fn run_v6(
    tables: &Tables,
    hook: Hook,
    frame: &[u8],
    meta: &Meta,
    ethernet: &Ethernet,
) -> Result<(To, Vec<u8>), Outcome> {
    let config = &tables.config;
    let flows = Memory::new(&tables.v6.flows);
    let port = match hook {
        Hook::PodEgress => Port::Pod,
        Hook::BridgeEgress => Port::Bridge,
        Hook::NicIngress => {
            let decision =
                ingress::from_wire_routed::<Be128, _, _, _>(frame, meta, tables, &flows)?;
            return Ok(deliver(config, frame, &decision));
        }
        Hook::VtepIngress => {
            let decision =
                ingress::from_vtep::<Be128, _, _, _>(frame, meta, ethernet, tables, &flows)?;
            return Ok(deliver(config, frame, &decision));
        }
        Hook::NicXdp => return Err(Outcome::NotIp),
        Hook::AttestIn | Hook::AttestOut => unreachable!("these hooks forward nothing"),
    };
    let decision = egress::decide::<Be128, _, _, _>(frame, meta, ethernet, port, tables, &flows)?;
    Ok(leave(config, frame, &decision))
}

/// Flow hash and IPv4 identification of encapsulated packets: any, since the kernel's differ on every run.
const HASH: u32 = 0x9e37_79b9;
const ID: u16 = 0x4242;

/// An address of any family.
trait Addressed: Family {
    fn address(self) -> IpAddr;
}

impl Addressed for Be32 {
    fn address(self) -> IpAddr {
        IpAddr::V4(self.into())
    }
}

impl Addressed for Be128 {
    fn address(self) -> IpAddr {
        IpAddr::V6(self.into())
    }
}

fn leave<A: Addressed>(config: &Config, frame: &[u8], forward: &Forward<'_, A>) -> (To, Vec<u8>) {
    let mut out = frame.to_vec();
    write(&mut out, L3, forward.ip);
    let to = if forward.via == Via::Device {
        let addresses = link::<A>(A::vtep_mac(config), forward.peer.vtep_mac());
        write(&mut out, 0, addresses);
        To::Device(A::vtep_index(config))
    } else {
        To::Neighbour(forward.peer.next_hop().address())
    };
    (to, out)
}

fn deliver<A: Family>(config: &Config, frame: &[u8], deliver: &Deliver<'_, A>) -> (To, Vec<u8>) {
    let mut out = frame.to_vec();
    if deliver.tunnelled {
        out.drain(L3..L3 + vxlan::OVERHEAD);
    }
    write(&mut out, 0, link::<A>(config.bridge_mac, deliver.pod.mac()));
    write(&mut out, L3, deliver.ip);
    let to = if deliver.pod.flags() & POD_VIA_HOST == 0 && !deliver.permit.queue {
        To::VethPeer
    } else {
        To::Device
    };
    (to(deliver.pod.host_index()), out)
}

fn link<A: Family>(source: Mac, destination: Mac) -> Ethernet {
    Ethernet {
        source,
        destination,
        ethertype: A::ETHERTYPE,
    }
}

fn write<T: Pod>(frame: &mut [u8], offset: usize, value: T) {
    frame[offset..offset + size_of::<T>()].copy_from_slice(bytes_of(&value));
}

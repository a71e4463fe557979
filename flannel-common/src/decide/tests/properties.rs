//! What holds for any packet: nothing panics, and nothing unsafe is fast.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::{ipv6, meta};
use crate::decide::Routes as _;
use crate::decide::{L3, Meta, encap};
use crate::maps::{Config, FLAG_FLOWS, PeerEntry as _};
use crate::outcome::Hook;
use crate::testing::fixtures::{self, Expected, Fixture};
use crate::testing::frame::{Frame, INNER, L4, ip_at, ip_checksum_is_right};
use crate::testing::model::{self, To};
use crate::testing::node::{
    BRIDGE, DIRECT, NODE_IP, POD, POD_MAC, PORT, REMOTES, Tables, UPLINK, VNI, VTEP, VXLAN,
    VXLAN_PORT,
};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::vxlan::{self, Vxlan};
use crate::wire::{Be16, Be32, Packet, ethernet, udp};

fn hooks() -> impl Strategy<Value = Hook> {
    select(Hook::FORWARDING.to_vec())
}

fn metas() -> impl Strategy<Value = Meta> {
    (
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(len, gso_size, ifindex, vlan, to_us)| Meta {
            len,
            gso_size,
            ifindex,
            vlan,
            to_us,
            ..Meta::default()
        })
}

fn any_fixture() -> impl Strategy<Value = Fixture> {
    // The largest would make each case slow, and no smaller one differs from it in what is read.
    const LARGEST: usize = 4_096;
    let mut small = fixtures::all();
    small.retain(|fixture| fixture.frame.len() <= LARGEST);
    // The others forward nothing.
    small.retain(|fixture| Hook::FORWARDING.contains(&fixture.hook));
    select(small)
}

fn fast_fixtures() -> Vec<Fixture> {
    let fast: Vec<_> = fixtures::all()
        .into_iter()
        .filter(|fixture| matches!(fixture.expected, Expected::Fast { .. }))
        .filter(|fixture| !ipv6::is_ipv6(&fixture.frame))
        .collect();
    assert!(!fast.is_empty());
    fast
}

fn is_fast(fixture: &Fixture, frame: &[u8]) -> bool {
    let meta = Meta {
        len: frame.len() as u32,
        ..fixture.meta()
    };
    model::run(&fixture.tables, fixture.hook, frame, &meta).is_ok()
}

/// Offset of the IPv4 header that a fast packet is forwarded by.
fn forwarded_by(tables: &Tables, hook: Hook, frame: &[u8]) -> usize {
    let outer = ip_at(frame, L3);
    let at_nic = matches!(hook, Hook::NicIngress | Hook::NicXdp);
    let tunnelled = at_nic && { outer.destination } == tables.config.node_ip;
    if tunnelled { L3 + vxlan::OVERHEAD } else { L3 }
}

/// What must be true of any packet that is fast.
fn assert_forwardable(tables: &Tables, hook: Hook, frame: &[u8], meta: &Meta) {
    assert!(!meta.vlan);
    if ipv6::is_ipv6(frame) {
        return ipv6::assert_forwardable(tables, hook, frame, meta);
    }
    let offset = forwarded_by(tables, hook, frame);
    assert_eq!(frame[offset - 2..offset], [8, 0], "not IPv4");
    let ip = ip_at(frame, offset);
    assert_eq!(ip.version_ihl, ipv4::VERSION_IHL);
    assert_eq!({ ip.fragment }.get() & 0x3fff, 0, "a fragment");
    assert!(ip.ttl > 1);
    assert!([ipv4::TCP, ipv4::UDP].contains(&ip.protocol));
    let total_len = usize::from(ip.total_len.get());
    assert!(total_len >= ipv4::LEN);
    assert!(offset + total_len <= meta.len as usize);
    match hook {
        Hook::PodEgress | Hook::BridgeEgress => {
            assert_eq!(frame[..6], tables.config.bridge_mac.0);
            let pod = tables.pod(ip.source).expect("the source is a pod");
            assert!(hook == Hook::BridgeEgress || pod.host_index == meta.ifindex);
            assert!(tables.peer(ip.destination).is_some());
        }
        Hook::NicIngress | Hook::VtepIngress | Hook::NicXdp => {
            assert!(tables.pod(ip.destination).is_some());
            let peer = tables.peer(ip.source).expect("the source is a peer's");
            if offset != L3 {
                let outer = ip_at(frame, L3);
                assert_eq!({ peer.node_ip }, { outer.source });
                let header: Vxlan = frame.read(L4 + udp::LEN).unwrap();
                assert!(header.is(VNI));
            }
        }
        Hook::AttestIn | Hook::AttestOut => unreachable!("these hooks forward nothing"),
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        frame in prop::collection::vec(any::<u8>(), 0..256),
        hook in hooks(),
        meta in metas(),
        flags: u32,
    ) {
        let mut tables = Tables::node();
        tables.config.flags = flags;
        is_taken(&tables, hook, &frame, &meta);
    }

    #[test]
    fn arbitrary_changes_never_panic_and_what_is_fast_may_be(
        fixture in any_fixture(),
        changes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..4),
        cut in prop::option::weighted(0.2, any::<Index>()),
        gso_size in prop_oneof![3 => Just(0u32), 1 => 0u32..3_000, 1 => any::<u32>()],
        lying_len in prop::option::weighted(0.1, any::<u32>()),
        flags in prop::option::weighted(0.3, any::<u32>()),
    ) {
        let Fixture { mut frame, mut tables, hook, .. } = fixture.clone();
        // Behind the headers there is nothing that a decision reads.
        let headers = frame.len().min(L3 + vxlan::OVERHEAD + 60);
        for (index, byte) in changes {
            frame[index.index(headers)] = byte;
        }
        if let Some(cut) = cut {
            frame.truncate(cut.index(headers + 1));
        }
        if let Some(flags) = flags {
            tables.config.flags = flags;
        }
        let len = lying_len.unwrap_or(frame.len() as u32);
        let meta = Meta { len, gso_size, ..fixture.meta() };
        if is_taken(&tables, hook, &frame, &meta) {
            assert_forwardable(&tables, hook, &frame, &meta);
        }
    }

    #[test]
    fn encapsulation_is_right_for_any_inner_header(
        tos: u8,
        total_len in ipv4::LEN as u16..=u16::MAX - vxlan::OVERHEAD as u16,
        hash: u32,
        id: u16,
        vni in 0u32..1 << 24,
        (min, max) in (1u16..u16::MAX).prop_flat_map(|min| (Just(min), min + 1..=u16::MAX)),
        remote in select(REMOTES.to_vec()),
    ) {
        let inner = Ipv4 { tos, total_len: Be16::new(total_len), ..Ipv4::default() };
        let config = Config {
            vni,
            source_port_min: min,
            source_port_max: max,
            ..Tables::node().config
        };
        let headers = encap::headers(&config, &remote.peer(), &inner, hash, id);
        let bytes = bytemuck::bytes_of(&headers);
        prop_assert!(ip_checksum_is_right(bytes, 0));
        prop_assert_eq!(headers.ip.total_len.get() as usize, usize::from(total_len) + bytes.len());
        prop_assert_eq!(headers.udp.len.get() as usize, usize::from(total_len) + bytes.len() - ipv4::LEN);
        prop_assert_eq!({ headers.ip.source }, NODE_IP.into());
        prop_assert_eq!({ headers.ip.destination }, remote.node_ip.into());
        prop_assert!((min..max).contains(&headers.udp.source.get()));
        prop_assert_eq!(headers.udp.destination.get(), VXLAN_PORT);
        prop_assert_eq!(headers.udp.checksum.get(), 0);
        prop_assert!(headers.vxlan.is(vni));
        prop_assert_eq!(headers.ethernet.destination, remote.vtep_mac);
        prop_assert_eq!(headers.ethernet.source, VTEP.mac);
        prop_assert_eq!(headers.ethernet.ethertype, ethernet::IPV4);
    }

    #[test]
    fn what_one_node_encapsulates_the_other_delivers(
        tcp: bool,
        tos: u8,
        ttl in 3u8..,
        id: u16,
        payload in 0usize..1_400,
    ) {
        let build = if tcp { Frame::tcp } else { Frame::udp };
        let sent = build(POD, VXLAN.pod).tos(tos).ttl(ttl).id(id).payload(payload);
        let frame = sent.clone().link(POD_MAC, BRIDGE.mac).build();
        let here = Tables::node();
        let (to, mut frame) = model::run(&here, Hook::PodEgress, &frame, &meta(&frame, PORT.index)).unwrap();
        prop_assert_eq!(to, To::Neighbour(VXLAN.next_hop.into()));
        frame[..6].copy_from_slice(&UPLINK.mac.0); // the neighbour layer's part
        let there = Tables::remote_node();
        let (_, delivered) = model::run(&there, Hook::NicIngress, &frame, &meta(&frame, UPLINK.index)).unwrap();
        let expected = sent.ttl(ttl - 2).link(BRIDGE.mac, there.pod(Be32::from(VXLAN.pod)).unwrap().mac).build();
        prop_assert_eq!(delivered, expected);
    }
}

/// Whether the packet is fast, in which case it has been written too.
fn is_taken(tables: &Tables, hook: Hook, frame: &[u8], meta: &Meta) -> bool {
    model::run(tables, hook, frame, meta).is_ok()
}

#[test]
fn truncated_packets_are_not_fast() {
    // Fewer bytes than the longest headers, for each packet; beyond them only lengths are read.
    const HEADERS: usize = 120;
    for fixture in fast_fixtures() {
        // What a network card appends may be cut off without harm to the packet.
        let ip = ip_at(&fixture.frame, L3);
        let end = L3 + usize::from(ip.total_len.get());
        for len in (0..end.min(HEADERS)).chain([end - 1]) {
            assert!(
                !is_fast(&fixture, &fixture.frame[..len]),
                "{} at {len} bytes",
                fixture.name
            );
        }
    }
}

#[test]
fn flipped_bits_in_protected_fields_are_not_fast() {
    const ETHERTYPE: std::ops::Range<usize> = 12..14;
    const VERSION_IHL: usize = 0;
    const TOTAL_LEN: std::ops::Range<usize> = 2..4;
    const ADDRESSES: std::ops::Range<usize> = 12..20;
    const SOURCE: std::ops::Range<usize> = 12..16;
    let at = |base: usize, range: std::ops::Range<usize>| base + range.start..base + range.end;
    for fixture in fast_fixtures() {
        let mut protected = vec![ETHERTYPE, at(L3, VERSION_IHL..VERSION_IHL + 1)];
        let frame = &fixture.frame;
        let inner = forwarded_by(&fixture.tables, fixture.hook, frame);
        if inner != L3 {
            protected.extend([
                at(L3, TOTAL_LEN),
                at(L3, ADDRESSES),    // of the nodes
                L4 + 2..L4 + 6,       // UDP destination port and length
                L4 + udp::LEN..INNER, // VXLAN header
                INNER..INNER + 6,     // inner destination address
                at(INNER, ETHERTYPE),
                at(inner, VERSION_IHL..VERSION_IHL + 1),
                at(inner, TOTAL_LEN),
            ]);
        }
        match fixture.hook {
            // A flip in the host part of the destination is another pod of the same node.
            Hook::PodEgress | Hook::BridgeEgress => {
                protected.extend([0..6, at(L3, TOTAL_LEN), at(L3, SOURCE)])
            }
            Hook::VtepIngress => protected.extend([0..6, at(L3, TOTAL_LEN)]),
            // A packet that ends before its frame may be padded: a shorter length is no contradiction.
            Hook::NicIngress | Hook::NicXdp => {}
            Hook::AttestIn | Hook::AttestOut => unreachable!("these hooks forward nothing"),
        }
        for byte in protected.into_iter().flatten() {
            for bit in 0..8 {
                let mut frame = frame.clone();
                frame[byte] ^= 1 << bit;
                let fast = is_fast(&fixture, &frame);
                // POD and POD_VIA differ in one bit: at the bridge both may send, though not on the same flow.
                let other_pod = fixture.hook == Hook::BridgeEgress
                    && fixture.tables.config.flags & FLAG_FLOWS == 0
                    && byte == L3 + SOURCE.end - 1
                    && bit == 0;
                assert_eq!(
                    fast,
                    other_pod,
                    "{} {}: byte {byte} bit {bit}",
                    fixture.hook.name(),
                    fixture.name
                );
            }
        }
    }
}

#[test]
fn a_routed_peer_is_reached_without_a_tunnel() {
    assert!(DIRECT.peer().is_direct());
    assert!(!VXLAN.peer().is_direct());
}

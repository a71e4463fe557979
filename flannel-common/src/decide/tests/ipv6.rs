//! What holds for any IPv6 packet.

use proptest::prelude::*;
use proptest::sample::select;

use super::meta;
use crate::decide::{L3, Meta, Routes as _};
use crate::maps::FLAG_FLOWS;
use crate::outcome::{Hook, Outcome};
use crate::testing::fixtures::{self, Expected, Fixture};
use crate::testing::frame::{Frame, ipv6_at};
use crate::testing::model;
use crate::testing::node::{
    BRIDGE, NEIGHBOUR_MAC, POD_MAC, PORT, TUNNEL_MTU, Tables, UPLINK, UPLINK_MTU,
};
use crate::testing::node6::{DIRECT6, POD6, TUNNEL6_MTU, VTEP6, VXLAN6};
use crate::wire::ip::{self, IpHeader as _};
use crate::wire::{Be128, ipv6, tcp, udp};

/// Bytes of link-layer addresses.
const ADDRESSES: usize = 12;
/// Offset of the hop limit in a frame.
const HOP_LIMIT: usize = L3 + 7;

/// Whether a frame says that it carries IPv6.
pub(super) fn is_ipv6(frame: &[u8]) -> bool {
    frame.get(L3 - 2..L3) == Some(&[0x86, 0xdd])
}

/// What must be true of any IPv6 packet that is fast.
pub(super) fn assert_forwardable(tables: &Tables, hook: Hook, frame: &[u8], meta: &Meta) {
    let ip = ipv6_at(frame, L3);
    assert!(ip.is_version_6());
    assert!(ip.hop_limit > 1);
    assert!([ip::TCP, ip::UDP].contains(&ip.next_header));
    assert!({ ip.payload_len }.get() > 0);
    assert!(L3 as u32 + ip.total_len() <= meta.len);
    match hook {
        Hook::PodEgress | Hook::BridgeEgress => {
            assert_eq!(frame[..6], tables.config.bridge_mac.0);
            let pod = tables.pod(ip.source()).expect("the source is a pod");
            assert!(hook == Hook::BridgeEgress || pod.host_index == meta.ifindex);
            assert!(tables.peer(ip.destination()).is_some());
        }
        Hook::NicIngress | Hook::VtepIngress => {
            assert!(tables.pod(ip.destination()).is_some());
            let peer = tables.peer(ip.source()).expect("the source is a peer's");
            let routed = peer.vtep_mac == crate::addr::Mac::default();
            assert!(hook == Hook::VtepIngress || routed);
        }
        Hook::NicXdp | Hook::AttestIn | Hook::AttestOut => {
            unreachable!("these hooks forward no IPv6")
        }
    }
}

fn fast_fixtures() -> Vec<Fixture> {
    let mut fast = fixtures::all();
    fast.retain(|fixture| matches!(fixture.expected, Expected::Fast { .. }));
    fast.retain(|fixture| is_ipv6(&fixture.frame));
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

#[test]
fn truncated_packets_are_not_fast() {
    const HEADERS: usize = 120;
    for fixture in fast_fixtures() {
        let end = fixture.frame.len();
        for len in (0..end.min(HEADERS)).chain([end - 1]) {
            let cut = &fixture.frame[..len];
            assert!(!is_fast(&fixture, cut), "{} at {len}", fixture.name);
        }
    }
}

#[test]
fn flipped_bits_in_protected_fields_are_not_fast() {
    const ETHERTYPE: std::ops::Range<usize> = 12..14;
    const VERSION: std::ops::Range<u8> = 4..8;
    const SOURCE: std::ops::Range<usize> = L3 + 8..L3 + 24;
    for fixture in fast_fixtures() {
        let mut protected: Vec<_> = ETHERTYPE.flat_map(all_bits).collect();
        protected.extend(VERSION.map(|bit| (L3, bit)));
        protected.extend(all_bits(L3 + 6));
        if fixture.hook != Hook::NicIngress {
            protected.extend((0..6).chain(L3 + 4..L3 + 6).flat_map(all_bits));
        }
        if fixture.hook == Hook::PodEgress {
            protected.extend(SOURCE.flat_map(all_bits));
        }
        // Without flows, UDP and TCP differ in what is read of them alone.
        let both = |mask: u8| [ip::TCP, ip::UDP].contains(&(fixture.frame[L3 + 6] ^ mask));
        for (byte, bit) in protected {
            if byte == L3 + 6 && both(1 << bit) {
                continue;
            }
            let mut frame = fixture.frame.clone();
            frame[byte] ^= 1 << bit;
            assert!(
                !is_fast(&fixture, &frame),
                "{} {}: byte {byte} bit {bit}",
                fixture.hook.name(),
                fixture.name
            );
        }
    }
}

fn all_bits(byte: usize) -> impl Iterator<Item = (usize, u8)> {
    (0..8).map(move |bit| (byte, bit))
}

/// A way through the node: its hook, its smallest MTU, and a frame on it.
#[derive(Clone, Copy, Debug)]
enum Way {
    Assist,
    Direct,
    FromRouted,
    FromVtep,
}

impl Way {
    fn mtu(self) -> usize {
        usize::from(match self {
            Self::Assist => TUNNEL6_MTU,
            Self::Direct => UPLINK_MTU,
            Self::FromRouted | Self::FromVtep => TUNNEL_MTU,
        })
    }

    fn run(
        self,
        build: impl Fn(std::net::Ipv6Addr, std::net::Ipv6Addr) -> Frame,
        gso_size: u32,
    ) -> (Vec<u8>, Result<Vec<u8>, Outcome>) {
        let (hook, device, frame) = match self {
            Self::Assist => (Hook::PodEgress, PORT, build(POD6, VXLAN6.pod)),
            Self::Direct => (Hook::PodEgress, PORT, build(POD6, DIRECT6.pod)),
            Self::FromRouted => (Hook::NicIngress, UPLINK, build(DIRECT6.pod, POD6)),
            Self::FromVtep => (Hook::VtepIngress, VTEP6, build(VXLAN6.pod, POD6)),
        };
        let frame = match hook {
            Hook::PodEgress => frame.link(POD_MAC, BRIDGE.mac),
            _ => frame.link(NEIGHBOUR_MAC, device.mac),
        }
        .build();
        let meta = Meta {
            gso_size,
            ..meta(&frame, device.index)
        };
        let tables = Tables::node();
        assert_eq!(tables.config.flags & FLAG_FLOWS, 0);
        let result = model::run(&tables, hook, &frame, &meta);
        (frame, result.map(|(_, out)| out))
    }
}

fn ways() -> impl Strategy<Value = Way> {
    select(vec![
        Way::Assist,
        Way::Direct,
        Way::FromRouted,
        Way::FromVtep,
    ])
}

proptest! {
    #[test]
    fn only_link_addresses_and_one_hop_change(
        way in ways(),
        tcp: bool,
        class: u8,
        hop_limit: u8,
        payload in 0usize..1_300,
    ) {
        let (before, after) = way.run(
            |source, destination| {
                let frame = if tcp {
                    Frame::tcp(source, destination)
                } else {
                    Frame::udp(source, destination)
                };
                frame.tos(class).ttl(hop_limit).payload(payload)
            },
            0,
        );
        if hop_limit <= 1 {
            prop_assert_eq!(after, Err(Outcome::Ttl));
            return Ok(());
        }
        let mut expected = before;
        expected[HOP_LIMIT] -= 1;
        let after = after.expect("it may be fast");
        prop_assert_eq!(&after[ADDRESSES..], &expected[ADDRESSES..]);
    }

    #[test]
    fn any_other_next_header_is_the_kernels(way in ways(), next_header: u8) {
        let (_, end) = way.run(
            |source, destination| Frame::other(source, destination, next_header),
            0,
        );
        let expected = match next_header {
            ip::TCP | ip::UDP => None,
            ipv6::FRAGMENT => Some(Outcome::Fragment),
            ipv6::HOP_BY_HOP | ipv6::ROUTING | ipv6::AUTHENTICATION | ipv6::DESTINATION_OPTIONS
            | ipv6::MOBILITY | ipv6::HOST_IDENTITY | ipv6::SHIM6 => Some(Outcome::Options),
            _ => Some(Outcome::Protocol),
        };
        prop_assert_eq!(end.err(), expected);
    }

    #[test]
    fn packets_and_segments_fit_or_are_declined(
        way in ways(),
        tcp: bool,
        words in 0usize..=10,
        near in -3isize..=3,
        segments in prop::option::of(2usize..=4),
    ) {
        let options = if tcp { words * 4 } else { 0 };
        let headers = ipv6::LEN + if tcp { tcp::MIN_LEN + options } else { udp::LEN };
        let segment = (way.mtu() - headers).strict_add_signed(near);
        let (_, end) = way.run(
            |source, destination| {
                let frame = if tcp {
                    Frame::tcp(source, destination).tcp_options(&vec![1; options])
                } else {
                    Frame::udp(source, destination)
                };
                frame.payload(segment * segments.unwrap_or(1))
            },
            segments.map_or(0, |_| segment as u32),
        );
        prop_assert_eq!(end.err(), (near > 0).then_some(Outcome::Mtu));
    }
}

#[test]
fn addresses_are_compared_whole() {
    let tables = Tables::node();
    for bit in 0..u128::BITS {
        let other = Be128::new(u128::from(POD6) ^ 1 << bit);
        let found = tables.pod(other).map(|pod| pod.address);
        assert!(found.is_none_or(|address| address == other), "bit {bit}");
    }
}

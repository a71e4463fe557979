//! The parts that decisions are made of: reading headers, checksums, encapsulation, the key of a flow.

use divan::{Bencher, black_box};
use flannel_common::checksum;
use flannel_common::decide::conntrack::{self, Tuple, Tuples};
use flannel_common::decide::transport::Transport;
use flannel_common::decide::{L3, encap};
use flannel_common::flow::Leg;
use flannel_common::testing::frame::Frame;
use flannel_common::testing::node::{POD, VXLAN, config};
use flannel_common::wire::ethernet::Ethernet;
use flannel_common::wire::ip::IpHeader as _;
use flannel_common::wire::ipv4::Ipv4;
use flannel_common::wire::udp::flow_source_port;
use flannel_common::wire::{Be16, Be32, Packet as _};

use crate::maps;

/// Any flow's hash, as the kernel would compute it, and any IPv4 identification.
const HASH: u32 = 0x9e37_79b9;
const ID: u16 = 0x4242;

/// The IPv4 header of a datagram from a pod.
fn header() -> Ipv4 {
    let frame = Frame::udp(POD, VXLAN.pod).build();
    maps::headers(&frame, L3, Leg::Out).0
}

#[divan::bench]
fn checksum_of_a_header(bencher: Bencher<'_, '_>) {
    let ip = header();
    assert_eq!(checksum::ipv4_header(&ip), { ip.checksum });
    bencher.bench_local(|| checksum::ipv4_header(black_box(&ip)));
}

#[divan::bench]
fn checksum_of_a_change(bencher: Bencher<'_, '_>) {
    let ip = header();
    let (checksum, old) = (ip.checksum, ip.id);
    bencher.bench_local(|| {
        checksum::replace(
            black_box(checksum),
            black_box(old),
            black_box(Be16::new(ID)),
        )
    });
}

#[divan::bench]
fn one_hop_further(bencher: Bencher<'_, '_>) {
    let ip = header();
    let run = || {
        let mut ip = *black_box(&ip);
        ip.decrement_ttl();
        ip
    };
    assert_eq!(run().ttl, ip.ttl - 1);
    bencher.bench_local(run);
}

#[divan::bench]
fn congestion_taken_over(bencher: Bencher<'_, '_>) {
    const ECT_0: u8 = 0b10;
    const CE: u8 = 0b11;
    let frame = Frame::udp(POD, VXLAN.pod).tos(ECT_0).build();
    let (ip, ..) = maps::headers(&frame, L3, Leg::Out);
    let run = || {
        let mut ip = *black_box(&ip);
        let delivered = ip.merge_outer_ecn(black_box(CE));
        (ip, delivered)
    };
    assert!(run().1 && run().0.tos == CE);
    bencher.bench_local(run);
}

#[divan::bench]
fn source_port_of_a_tunnel(bencher: Bencher<'_, '_>) {
    let config = config();
    let (min, max) = (config.source_port_min, config.source_port_max);
    bencher.bench_local(|| flow_source_port(black_box(HASH), black_box(min), black_box(max)));
}

#[divan::bench]
fn outer_headers(bencher: Bencher<'_, '_>) {
    let (config, peer, inner) = (config(), VXLAN.peer(), header());
    let run = || {
        let (config, peer, inner) = (black_box(&config), black_box(&peer), black_box(&inner));
        encap::headers(config, peer, inner, black_box(HASH), black_box(ID))
    };
    let encap::Headers { ip, .. } = run();
    assert_eq!(checksum::ipv4_header(&ip), { ip.checksum });
    bencher.bench_local(run);
}

#[divan::bench]
fn reading_ethernet_and_ipv4(bencher: Bencher<'_, '_>) {
    let frame = Frame::udp(POD, VXLAN.pod).build();
    let run = || {
        let frame = black_box(&frame[..]);
        Some((frame.read::<Ethernet>(0)?, frame.read::<Ipv4>(L3)?))
    };
    assert!(run().is_some());
    bencher.bench_local(run);
}

fn key(bencher: Bencher<'_, '_>, frame: &Frame) {
    let frame = frame.build();
    let (ip, _, key) = maps::headers(&frame, L3, Leg::Out);
    let run = || {
        let ip = black_box(&ip);
        Transport::read::<Be32, _>(black_box(&frame[..]), L3, ip)
            .map(|transport| transport.flow::<Be32>(ip, Leg::Out))
    };
    assert_eq!(run(), Ok(key));
    bencher.bench_local(run);
}

#[divan::bench]
fn key_of_a_tcp_flow(bencher: Bencher<'_, '_>) {
    key(bencher, &Frame::tcp(POD, VXLAN.pod));
}

#[divan::bench]
fn key_of_a_udp_flow(bencher: Bencher<'_, '_>) {
    key(bencher, &Frame::udp(POD, VXLAN.pod));
}

#[divan::bench]
fn what_conntrack_says(bencher: Bencher<'_, '_>) {
    /// `IP_CT_ESTABLISHED`, and the bits of `IPS_ASSURED` and `IPS_CONFIRMED`.
    const ESTABLISHED: u8 = 0;
    const STATUS: u64 = 1 << 2 | 1 << 3;
    let original = Tuple {
        source: [u32::from(POD), 0, 0, 0],
        destination: [u32::from(VXLAN.pod), 0, 0, 0],
        source_port: 1,
        destination_port: 2,
        ..Tuple::default()
    };
    let reply = Tuple {
        source: original.destination,
        destination: original.source,
        source_port: original.destination_port,
        destination_port: original.source_port,
        direction: 1,
        ..original
    };
    let mut tuples = Tuples::default();
    (tuples.original, tuples.reply) = (original, reply);
    let run = || {
        conntrack::attests(
            black_box(ESTABLISHED),
            black_box(STATUS),
            black_box(&tuples),
        )
    };
    assert!(run());
    bencher.bench_local(run);
}

//! Random packets between two pods, from a seed: most of them of flows that may be fast, some of every kind that may
//! not.

use std::{collections::BTreeMap, net::Ipv4Addr};

use flannel_common::{
    addr::Mac,
    testing::frame::{Frame, L4, Tunnel},
    wire::{ethernet, ipv4, tcp},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// One end: a pod and its node.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) address: Ipv4Addr,
    pub(super) mac: Mac,
    /// The bridge, which the pod sends to.
    pub(super) gateway: Mac,
    pub(super) node: Ipv4Addr,
    pub(super) node_mac: Mac,
    /// Of the VXLAN device, if there is one.
    pub(super) vtep: Option<Mac>,
}

/// A flow between the ends, by the ports at each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    tcp: bool,
    ports: [u16; 2],
}

/// Where a frame is put in.
#[derive(Clone, Copy, Debug)]
pub(super) enum At {
    /// Sent by the pod of an end.
    Pod(usize),
    /// Put on the wire by the node of an end.
    Wire(usize),
}

/// A frame to be sent.
#[derive(Clone, Debug)]
pub(super) struct Shot {
    pub(super) at: At,
    pub(super) kind: &'static str,
    pub(super) bytes: Vec<u8>,
}

/// Kinds of packets by their identification.
pub(super) type Kinds = BTreeMap<[u8; 2], &'static str>;

/// The kind of packets that are put on the wire.
pub(super) const IN_TUNNEL: &str = "in tunnel";

/// Makes packets.
pub(super) struct Generator {
    random: StdRng,
    ends: [End; 2],
    /// Of the pods' path, in bytes; pods may send more.
    mtu: usize,
    flows: Vec<Flow>,
    /// Identifications, so that each packet is unlike any other.
    next_id: u16,
    /// VXLAN packets so far: they go through all combinations of congestion marks.
    tunnelled: u8,
}

/// The VXLAN network and port of flannel.
const VNI: u32 = 1;
const VXLAN_PORT: u16 = 8472;
/// How much larger than the path's MTU packets may be, in bytes.
pub(super) const EXCESS: usize = 100;
/// Flows of each protocol.
const FLOWS: usize = 12;
/// Ports that somebody may think special of.
const SPECIAL_PORTS: [u16; 10] = [1, 22, 53, 80, 443, 2379, 4789, VXLAN_PORT, 10_250, 65_535];
/// IPv4 flag "don't fragment", flag "more fragments".
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
/// IPv4 options: record route with room for two; no operation four times; timestamps without room, since they differ.
const OPTIONS: [&[u8]; 3] = [
    &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    &[1, 1, 1, 1],
    &[68, 8, 9, 0, 1, 2, 3, 4],
];
/// TCP control bits of data in mid-flow: with PSH, URG, ECE and CWR or without.
const ACK: u8 = 0x10;
const DATA_FLAGS: [u8; 5] = [ACK, ACK | 0x08, ACK | 0x20, ACK | 0x40, ACK | 0x80];

impl Generator {
    /// The same seed gives the same packets.
    pub(super) fn new(seed: u64, ends: [End; 2], mtu: usize) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut special = SPECIAL_PORTS.into_iter();
        let flows = (0..2 * FLOWS)
            .map(|index| {
                let server = special
                    .next()
                    .unwrap_or_else(|| random.random_range(1024..=u16::MAX));
                // Ports of clients differ, so no flow is twice there.
                let client = 20_000 + 1000 * index as u16 + random.random_range(0..1000);
                Flow {
                    tcp: index % 2 == 0,
                    ports: [client, server],
                }
            })
            .collect();
        Self {
            random,
            ends,
            mtu,
            flows,
            next_id: 0,
            tunnelled: 0,
        }
    }

    /// What makes all flows known to conntrack, in three steps: a beginning, an answer, more of both.
    pub(super) fn handshakes(&mut self) -> [Vec<Shot>; 4] {
        let flows = self.flows.clone();
        let mut step = |from: usize, flags: u8, number: u32| {
            let shot = |flow: &Flow| {
                let flags = if flow.tcp { flags } else { 0 };
                let frame = self.frame(flow, from);
                let frame = if flow.tcp {
                    frame.segment(flags, number, 1000).payload(0)
                } else {
                    frame
                };
                self.sent_by(from, "handshake", &frame)
            };
            flows.iter().map(shot).collect::<Vec<_>>()
        };
        [
            step(0, tcp::SYN, 999),
            step(1, tcp::SYN | ACK, 999),
            step(0, ACK, 1000),
            step(1, ACK, 1000),
        ]
    }

    /// A random packet; several if they are fragments of one.
    pub(super) fn next(&mut self) -> Vec<Shot> {
        let from = self.random.random_range(0..2);
        let flow = *self
            .flows
            .choose(&mut self.random)
            .expect("there are flows");
        let tunnels = self.ends[0].vtep.is_some();
        match self.random.random_range(0..100) {
            0..60 => vec![self.plain(&flow, from)],
            60..70 if tunnels => vec![self.in_tunnel(&flow, from)],
            60..70 => vec![self.plain(&flow, from)],
            70..73 => vec![self.wrong_checksum(&flow, from)],
            73..75 => vec![self.wrong_length(&flow, from)],
            75..78 => vec![self.with_options(&flow, from)],
            78..81 => self.fragments(&flow, from),
            81..85 => vec![self.other_protocol(from)],
            85..88 => vec![self.false_source(&flow, from)],
            88..90 => vec![self.stranger(from)],
            90..92 => vec![self.control(&flow, from)],
            92..94 => vec![self.for_many(from)],
            94..98 => vec![self.too_large(&flow, from)],
            _ => vec![self.not_to_gateway(&flow, from)],
        }
    }

    /// A packet of a flow, from one of its ends.
    fn frame(&mut self, flow: &Flow, from: usize) -> Frame {
        let (source, target) = (self.ends[from], self.ends[1 - from]);
        let frame = if flow.tcp {
            let (sequence, acknowledgment) = (self.random.random(), self.random.random());
            let flags = *DATA_FLAGS.choose(&mut self.random).expect("some");
            Frame::tcp(source.address, target.address).segment(flags, sequence, acknowledgment)
        } else {
            Frame::udp(source.address, target.address)
        };
        self.next_id = self.next_id.wrapping_add(1);
        frame
            .ports(flow.ports[from], flow.ports[1 - from])
            .link(source.mac, source.gateway)
            .id(self.next_id)
    }

    /// With a random length within `limit` (of the IPv4 packet), TOS, TTL and DF flag.
    fn vary(&mut self, frame: Frame, headers: usize, limit: usize) -> Frame {
        let room = limit - headers;
        let length = match self.random.random_range(0..4) {
            0 => room,
            1 => self.random.random_range(0..32),
            _ => self.random.random_range(0..=room),
        };
        let ttl = *[1, 2, 3, 4, 255, 64, 64, 64, 64, 64]
            .choose(&mut self.random)
            .expect("some");
        let fragment = *[0, DONT_FRAGMENT].choose(&mut self.random).expect("some");
        let tos = self.random.random();
        frame.payload(length).ttl(ttl).tos(tos).fragment(fragment)
    }

    fn varied(&mut self, flow: &Flow, from: usize) -> Frame {
        let frame = self.frame(flow, from);
        let frame = if !flow.tcp && self.random.random_ratio(1, 8) {
            frame.no_udp_checksum()
        } else {
            frame
        };
        self.vary(frame, headers(flow), self.mtu)
    }

    fn sent_by(&self, from: usize, kind: &'static str, frame: &Frame) -> Shot {
        Shot {
            at: At::Pod(from),
            kind,
            bytes: frame.build(),
        }
    }

    fn plain(&mut self, flow: &Flow, from: usize) -> Shot {
        let frame = self.varied(flow, from);
        let padding = if self.random.random_ratio(1, 20) {
            7
        } else {
            0
        };
        self.sent_by(from, "plain", &frame.padding(padding))
    }

    /// VXLAN as the other node sends it, with outer congestion marks as routers on its way set them.
    fn in_tunnel(&mut self, flow: &Flow, from: usize) -> Shot {
        let (source, target) = (self.ends[from], self.ends[1 - from]);
        let combination = self.tunnelled;
        self.tunnelled = self.tunnelled.wrapping_add(1);
        let (outer_ecn, inner_ecn) = (combination & 3, combination >> 2 & 3);
        let dscp: u8 = self.random.random();
        let stray = self.random.random_ratio(1, 12);
        let wrong = self.random.random_range(0..2);
        let vtep = target.vtep.unwrap_or_default();
        let inner = self
            .varied(flow, from)
            .tos(dscp & !3 | inner_ecn)
            .ttl(self.random.random_range(1..=255))
            .link(
                source.vtep.unwrap_or_default(),
                if stray && wrong == 0 {
                    source.mac
                } else {
                    vtep
                },
            );
        let tunnel = Tunnel {
            source: source.node,
            destination: target.node,
            source_port: self.random.random_range(32_768..61_000),
            destination_port: VXLAN_PORT,
            vni: if stray && wrong == 1 { VNI + 1 } else { VNI },
        };
        let outer = inner
            .vxlan(&tunnel)
            .link(source.node_mac, target.node_mac)
            .tos(self.random.random::<u8>() & !3 | outer_ecn)
            .ttl(self.random.random_range(1..=255))
            .id(self.next_id);
        let outer = if self.random.random_ratio(1, 5) {
            outer.udp_checksum()
        } else {
            outer
        };
        Shot {
            at: At::Wire(from),
            kind: IN_TUNNEL,
            bytes: outer.build(),
        }
    }

    fn wrong_checksum(&mut self, flow: &Flow, from: usize) -> Shot {
        let frame = self.varied(flow, from);
        let mut shot = self.sent_by(from, "wrong checksum", &frame);
        let last = shot.bytes.len() - 1;
        shot.bytes[last] ^= 0x10;
        shot
    }

    /// The length in the IPv4 or in the UDP header is not that of the packet.
    fn wrong_length(&mut self, flow: &Flow, from: usize) -> Shot {
        let frame = self.varied(flow, from);
        let mut shot = self.sent_by(from, "wrong length", &frame);
        let change = self.random.random_range(1..40_u8);
        if self.random.random() || flow.tcp {
            const TOTAL_LEN: usize = ethernet::LEN + 2;
            shot.bytes[TOTAL_LEN + 1] = shot.bytes[TOTAL_LEN + 1].wrapping_add(change);
            correct_header(&mut shot.bytes);
        } else {
            const UDP_LEN: usize = L4 + 4;
            shot.bytes[UDP_LEN + 1] = shot.bytes[UDP_LEN + 1].wrapping_add(change);
        }
        shot
    }

    fn with_options(&mut self, flow: &Flow, from: usize) -> Shot {
        let options = *OPTIONS.choose(&mut self.random).expect("some");
        let frame = self.frame(flow, from).options(options);
        let frame = self.vary(frame, headers(flow) + options.len(), self.mtu);
        self.sent_by(from, "options", &frame)
    }

    /// All fragments of a packet, or all but one.
    fn fragments(&mut self, flow: &Flow, from: usize) -> Vec<Shot> {
        const FIRST: usize = 256;
        let whole = self.frame(flow, from).payload(FIRST + 300).build();
        let (source, target) = (self.ends[from], self.ends[1 - from]);
        let id = self.next_id;
        let protocol = if flow.tcp { ipv4::TCP } else { ipv4::UDP };
        let piece = |offset: usize, bytes: &[u8], fragment: u16| {
            let frame = Frame::other(source.address, target.address, protocol)
                .link(source.mac, source.gateway)
                .id(id)
                .fragment(fragment)
                .payload(bytes.len());
            let mut shot = self.sent_by(from, "fragment", &frame);
            shot.bytes[L4..].copy_from_slice(bytes);
            debug_assert!(offset.is_multiple_of(8));
            shot
        };
        let (first, rest) = whole[L4..].split_at(FIRST);
        let mut pieces = vec![
            piece(0, first, MORE_FRAGMENTS),
            piece(FIRST, rest, (FIRST / 8) as u16),
        ];
        if self.random.random_ratio(1, 4) {
            pieces.remove(self.random.random_range(0..2));
        }
        pieces
    }

    /// ICMP, SCTP, GRE, IP in IP, ESP, or a number for experiments.
    fn other_protocol(&mut self, from: usize) -> Shot {
        const ICMP: u8 = 1;
        const PROTOCOLS: [u8; 6] = [ICMP, 132, 47, 4, 50, 253];
        let protocol = *PROTOCOLS.choose(&mut self.random).expect("some");
        let (source, target) = (self.ends[from], self.ends[1 - from]);
        self.next_id = self.next_id.wrapping_add(1);
        let frame = Frame::other(source.address, target.address, protocol)
            .link(source.mac, source.gateway)
            .id(self.next_id);
        let frame = self.vary(frame, ipv4::LEN + 64, self.mtu);
        let mut shot = self.sent_by(from, "other protocol", &frame);
        if protocol == ICMP && shot.bytes.len() >= L4 + 8 {
            // An echo request with a right checksum, of a payload that is all zero.
            shot.bytes[L4..].fill(0);
            shot.bytes[L4] = 8;
            shot.bytes[L4 + 2] = 0xf7;
            shot.bytes[L4 + 3] = 0xff;
        }
        shot
    }

    /// From an address that is not the pod's: the other pod's, a neighbour's, one of a subnet that nobody has, or one
    /// outside of the network.
    fn false_source(&mut self, flow: &Flow, from: usize) -> Shot {
        let source = self.ends[from];
        let [a, b, c, _] = source.address.octets();
        let addresses = [
            self.ends[1 - from].address,
            Ipv4Addr::new(a, b, c, 200),
            Ipv4Addr::new(a, b, 255, 7),
        ];
        let address = *addresses.choose(&mut self.random).expect("some");
        let mut shot = self.plain(flow, from);
        shot.bytes[ethernet::LEN + 12..ethernet::LEN + 16].copy_from_slice(&address.octets());
        correct_header(&mut shot.bytes);
        shot.kind = "false source";
        shot
    }

    /// Of a flow that nobody knows, mostly to a port that nobody has opened.
    fn stranger(&mut self, from: usize) -> Shot {
        let flow = Flow {
            tcp: self.random.random(),
            ports: [self.random.random(), self.random.random()],
        };
        let mut shot = self.plain(&flow, from);
        shot.kind = "stranger";
        shot
    }

    /// The end of a flow, or a second beginning.
    fn control(&mut self, flow: &Flow, from: usize) -> Shot {
        const FLAGS: [u8; 4] = [tcp::FIN | ACK, tcp::RST, tcp::SYN, tcp::SYN | ACK];
        let flags = *FLAGS.choose(&mut self.random).expect("some");
        let frame = self.varied(flow, from);
        let frame = if flow.tcp {
            frame.segment(flags, 2000, 2000)
        } else {
            frame
        };
        self.sent_by(from, "control", &frame)
    }

    /// Multicast and broadcast, of which nothing crosses.
    fn for_many(&mut self, from: usize) -> Shot {
        let source = self.ends[from];
        let [a, b, c, _] = self.ends[1 - from].address.octets();
        let (address, mac) = *[
            (Ipv4Addr::new(224, 0, 0, 251), Mac([1, 0, 0x5e, 0, 0, 251])),
            (Ipv4Addr::new(239, 1, 2, 3), Mac([1, 0, 0x5e, 1, 2, 3])),
            (Ipv4Addr::BROADCAST, Mac([0xff; 6])),
            (Ipv4Addr::new(a, b, c, 255), source.gateway),
            (self.ends[1 - from].address, Mac([0xff; 6])),
        ]
        .choose(&mut self.random)
        .expect("some");
        self.next_id = self.next_id.wrapping_add(1);
        let frame = Frame::udp(source.address, address)
            .link(source.mac, mac)
            .id(self.next_id);
        let frame = self.vary(frame, L4, self.mtu);
        self.sent_by(from, "to many", &frame)
    }

    fn too_large(&mut self, flow: &Flow, from: usize) -> Shot {
        let frame = self.varied(flow, from);
        let excess = self.random.random_range(1..=EXCESS);
        let frame = frame.payload(self.mtu + excess - headers(flow));
        self.sent_by(from, "too large", &frame)
    }

    /// To a link-layer address that is not the bridge's.
    fn not_to_gateway(&mut self, flow: &Flow, from: usize) -> Shot {
        let source = self.ends[from];
        let frame = self
            .varied(flow, from)
            .link(source.mac, Mac([2, 0, 0, 0, 0, 99]));
        self.sent_by(from, "not to the gateway", &frame)
    }
}

/// Length in bytes of IPv4 and transport header.
fn headers(flow: &Flow) -> usize {
    ipv4::LEN + if flow.tcp { tcp::MIN_LEN } else { 8 }
}

/// Makes the IPv4 header's checksum right again after a change.
fn correct_header(frame: &mut [u8]) {
    let header = &mut frame[ethernet::LEN..L4];
    header[10..12].fill(0);
    let sum = !(flannel_common::checksum::sum(header, 0) as u16);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

//! Builds frames whose lengths and checksums are right, unless a test asks for a wrong one.

use std::net::{IpAddr, Ipv4Addr};

use bytemuck::{bytes_of, pod_read_unaligned};

use crate::addr::Mac;
use crate::checksum;
use crate::family::Family;
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::ip::IpHeader;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::tcp::{self, Tcp};
use crate::wire::udp::{self, Udp};
use crate::wire::vxlan::{self, Vxlan};
use crate::wire::{Be16, Be32};

/// Offset in bytes of the transport header behind an IPv4 header without options.
pub const L4: usize = ethernet::LEN + ipv4::LEN;

/// Offset in bytes of the inner Ethernet header of a VXLAN frame.
pub const INNER: usize = L4 + udp::LEN + vxlan::LEN;

/// `ACK` and `PSH` of the TCP control bits (RFC 9293, section 3.1).
const ACK_PSH: u8 = 0x18;

/// Offsets in bytes of the checksum in the TCP and UDP headers.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

/// Flow label of IPv6 packets: any.
const FLOW_LABEL: u32 = 0x1_2345;

/// Port numbers of inner packets, source and destination: any, as long as neither is that of VXLAN.
pub const CLIENT_PORT: u16 = 40_000;
/// The other of the two.
pub const SERVER_PORT: u16 = 8_080;

/// The network header.
#[derive(Clone, Debug)]
enum Ip {
    /// IPv4, with its options.
    V4(Ipv4, Vec<u8>),
    /// IPv6, with the kinds and bytes of its extension headers, whose first byte is the kind of what follows.
    V6(Ipv6, Vec<(u8, Vec<u8>)>),
}

/// What follows the network header.
#[derive(Clone, Debug)]
enum Transport {
    Udp(Udp),
    Tcp(Tcp),
    /// Of another protocol, or a later fragment: payload alone.
    None,
}

/// A frame in the making.
#[derive(Clone, Debug)]
pub struct Frame {
    ethernet: Ethernet,
    ip: Ip,
    transport: Transport,
    transport_options: Vec<u8>,
    transport_checksum: bool,
    payload: Vec<u8>,
    padding: usize,
}

impl Frame {
    fn new(source: IpAddr, destination: IpAddr, protocol: u8, transport: Transport) -> Self {
        let (ethertype, ip) = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let ip = Ipv4 {
                    version_ihl: ipv4::VERSION_IHL,
                    id: Be16::new(0x1234),
                    ttl: 64,
                    protocol,
                    source: source.into(),
                    destination: destination.into(),
                    ..Ipv4::default()
                };
                (ethernet::IPV4, Ip::V4(ip, Vec::new()))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let ip = Ipv6 {
                    version_class_flow: Ipv6::version_class_flow(0, FLOW_LABEL),
                    next_header: protocol,
                    hop_limit: 64,
                    source: source.into(),
                    destination: destination.into(),
                    ..Ipv6::default()
                };
                (ethernet::IPV6, Ip::V6(ip, Vec::new()))
            }
            _ => panic!("{source} and {destination} are of two families"),
        };
        Self {
            ethernet: Ethernet {
                ethertype,
                ..Ethernet::default()
            },
            ip,
            transport,
            transport_options: Vec::new(),
            transport_checksum: true,
            payload: pattern(32),
            padding: 0,
        }
    }

    /// A UDP datagram with 32 bytes of payload.
    pub fn udp(source: impl Into<IpAddr>, destination: impl Into<IpAddr>) -> Self {
        let udp = Udp {
            source: Be16::new(CLIENT_PORT),
            destination: Be16::new(SERVER_PORT),
            ..Udp::default()
        };
        Self::new(
            source.into(),
            destination.into(),
            ipv4::UDP,
            Transport::Udp(udp),
        )
    }

    /// A TCP segment with 32 bytes of payload.
    pub fn tcp(source: impl Into<IpAddr>, destination: impl Into<IpAddr>) -> Self {
        let tcp = Tcp {
            source: Be16::new(CLIENT_PORT),
            destination: Be16::new(SERVER_PORT),
            sequence: Be32::new(0x0102_0304),
            acknowledgment: Be32::new(0x0506_0708),
            flags: ACK_PSH,
            window: Be16::new(0xfff0),
            ..Tcp::default()
        };
        Self::new(
            source.into(),
            destination.into(),
            ipv4::TCP,
            Transport::Tcp(tcp),
        )
    }

    /// A packet of another protocol, with 32 bytes of payload and no transport header.
    pub fn other(source: impl Into<IpAddr>, destination: impl Into<IpAddr>, protocol: u8) -> Self {
        Self::new(source.into(), destination.into(), protocol, Transport::None)
    }

    /// Link-layer source and destination.
    pub fn link(mut self, source: Mac, destination: Mac) -> Self {
        self.ethernet.source = source;
        self.ethernet.destination = destination;
        self
    }

    /// EtherType.
    pub fn ethertype(mut self, ethertype: u16) -> Self {
        self.ethernet.ethertype = Be16::new(ethertype);
        self
    }

    /// Time to live, or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Self {
        match &mut self.ip {
            Ip::V4(ip, _) => ip.ttl = ttl,
            Ip::V6(ip, _) => ip.hop_limit = ttl,
        }
        self
    }

    /// DSCP and ECN.
    pub fn tos(mut self, tos: u8) -> Self {
        match &mut self.ip {
            Ip::V4(ip, _) => ip.tos = tos,
            Ip::V6(ip, _) => ip.version_class_flow = Ipv6::version_class_flow(tos, FLOW_LABEL),
        }
        self
    }

    fn ipv4(&mut self) -> (&mut Ipv4, &mut Vec<u8>) {
        match &mut self.ip {
            Ip::V4(ip, options) => (ip, options),
            Ip::V6(..) => panic!("an IPv6 packet has no such field"),
        }
    }

    /// IPv4 identification.
    pub fn id(mut self, id: u16) -> Self {
        self.ipv4().0.id = Be16::new(id);
        self
    }

    /// IPv4 flags and fragment offset.
    pub fn fragment(mut self, fragment: u16) -> Self {
        self.ipv4().0.fragment = Be16::new(fragment);
        self
    }

    /// IPv4 options, in whole 32-bit words.
    pub fn options(mut self, options: &[u8]) -> Self {
        assert!(
            options.len().is_multiple_of(4),
            "options are padded to words"
        );
        *self.ipv4().1 = options.to_vec();
        self
    }

    /// One more IPv6 extension header of a kind, in whole 64-bit words, behind those that there are. Its first byte, the
    /// kind of what follows, is filled in.
    pub fn extension(mut self, kind: u8, header: &[u8]) -> Self {
        let is_whole = !header.is_empty() && header.len().is_multiple_of(8);
        assert!(is_whole, "extension headers are padded to words");
        let Ip::V6(_, extensions) = &mut self.ip else {
            panic!("an IPv4 packet has no extension headers");
        };
        extensions.push((kind, header.to_vec()));
        self
    }

    /// TCP options, in whole 32-bit words.
    pub fn tcp_options(mut self, options: &[u8]) -> Self {
        assert!(
            options.len().is_multiple_of(4),
            "options are padded to words"
        );
        assert!(matches!(self.transport, Transport::Tcp(_)));
        self.transport_options = options.to_vec();
        self
    }

    /// Source and destination port.
    pub fn ports(mut self, source: u16, destination: u16) -> Self {
        let (source, destination) = (Be16::new(source), Be16::new(destination));
        match &mut self.transport {
            Transport::Udp(udp) => (udp.source, udp.destination) = (source, destination),
            Transport::Tcp(tcp) => (tcp.source, tcp.destination) = (source, destination),
            Transport::None => panic!("no ports in a packet without transport header"),
        }
        self
    }

    /// TCP control bits, sequence and acknowledgment number.
    pub fn segment(mut self, flags: u8, sequence: u32, acknowledgment: u32) -> Self {
        let Transport::Tcp(tcp) = &mut self.transport else {
            panic!("no TCP header");
        };
        tcp.flags = flags;
        tcp.sequence = Be32::new(sequence);
        tcp.acknowledgment = Be32::new(acknowledgment);
        self
    }

    /// Without a UDP checksum.
    pub fn no_udp_checksum(mut self) -> Self {
        assert!(matches!(self.transport, Transport::Udp(_)));
        self.transport_checksum = false;
        self
    }

    /// Payload of `len` bytes, in a pattern that shows a shift.
    pub fn payload(mut self, len: usize) -> Self {
        self.payload = pattern(len);
        self
    }

    /// Zeros after the IPv4 packet, which no length field covers.
    pub fn padding(mut self, len: usize) -> Self {
        self.padding = len;
        self
    }

    /// Inside VXLAN, as `tunnel` says. The outer UDP checksum is zero, as flannel's device sends it.
    pub fn vxlan(self, tunnel: &Tunnel) -> Self {
        let mut outer = Self::udp(tunnel.source, tunnel.destination).no_udp_checksum();
        outer.transport = Transport::Udp(Udp {
            source: Be16::new(tunnel.source_port),
            destination: Be16::new(tunnel.destination_port),
            ..Udp::default()
        });
        outer.ipv4().0.id = Be16::new(0);
        outer.payload = [bytes_of(&Vxlan::new(tunnel.vni)), &self.build()].concat();
        outer
    }

    /// With the UDP checksum that [`Self::vxlan`] leaves out.
    pub fn udp_checksum(mut self) -> Self {
        assert!(matches!(self.transport, Transport::Udp(_)));
        self.transport_checksum = true;
        self
    }

    /// The bytes.
    pub fn build(&self) -> Vec<u8> {
        let l4 = self.build_transport();
        let header = match &self.ip {
            Ip::V4(ip, options) => {
                let header_len = ipv4::LEN + options.len();
                let mut ip = *ip;
                ip.version_ihl += (options.len() / 4) as u8;
                ip.total_len = be16(header_len + l4.len());
                let mut header = [bytes_of(&ip), options.as_slice()].concat();
                let sum = !(checksum::sum(&header, 0) as u16);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                header
            }
            Ip::V6(ip, extensions) => {
                let len: usize = extensions.iter().map(|(_, bytes)| bytes.len()).sum();
                let mut ip = *ip;
                ip.payload_len = be16(len + l4.len());
                let protocol = ip.next_header;
                let mut kinds = extensions.iter().map(|(kind, _)| *kind).chain([protocol]);
                ip.next_header = kinds.next().unwrap_or(protocol);
                let mut header = bytes_of(&ip).to_vec();
                for ((_, bytes), next) in extensions.iter().zip(kinds) {
                    header.push(next);
                    header.extend(&bytes[1..]);
                }
                header
            }
        };
        let padding = vec![0; self.padding];
        [bytes_of(&self.ethernet), &header, &l4, &padding].concat()
    }

    fn build_transport(&self) -> Vec<u8> {
        let (header, checksum_offset) = match &self.transport {
            Transport::Udp(udp) => {
                let len = be16(udp::LEN + self.payload.len());
                (bytes_of(&Udp { len, ..*udp }).to_vec(), UDP_CHECKSUM)
            }
            Transport::Tcp(tcp) => {
                let words = (tcp::MIN_LEN + self.transport_options.len()) / 4;
                let data_offset = (words as u8) << 4;
                (
                    bytes_of(&Tcp {
                        data_offset,
                        ..*tcp
                    })
                    .to_vec(),
                    TCP_CHECKSUM,
                )
            }
            Transport::None => return self.payload.clone(),
        };
        let mut l4 = [&header, self.transport_options.as_slice(), &self.payload].concat();
        if self.transport_checksum {
            let sum = match match &self.ip {
                Ip::V4(ip, _) => transport_sum(ip, &l4),
                Ip::V6(ip, _) => transport_sum(ip, &l4),
            } {
                0xffff => 0xffff, // a sum of zero is sent as ones (RFC 768)
                sum => !sum,
            };
            l4[checksum_offset..checksum_offset + 2].copy_from_slice(&sum.to_be_bytes());
        }
        l4
    }
}

/// The outer addresses and ports of a VXLAN packet.
#[derive(Clone, Copy, Debug)]
pub struct Tunnel {
    /// Outer source address.
    pub source: Ipv4Addr,
    /// Outer destination address.
    pub destination: Ipv4Addr,
    /// UDP source port.
    pub source_port: u16,
    /// UDP destination port.
    pub destination_port: u16,
    /// VXLAN network identifier.
    pub vni: u32,
}

/// The IPv4 header at `offset`.
///
/// # Panics
/// Without twenty bytes there.
pub fn ip_at(frame: &[u8], offset: usize) -> Ipv4 {
    pod_read_unaligned(&frame[offset..offset + ipv4::LEN])
}

/// Whether the checksum of the IPv4 header (without options) at `offset` is right.
pub fn ip_checksum_is_right(frame: &[u8], offset: usize) -> bool {
    checksum::sum(&frame[offset..offset + ipv4::LEN], 0) == 0xffff
}

/// The IPv6 header at `offset`.
///
/// # Panics
/// Without forty bytes there.
pub fn ipv6_at(frame: &[u8], offset: usize) -> Ipv6 {
    pod_read_unaligned(&frame[offset..offset + ipv6::LEN])
}

/// Whether the TCP or UDP checksum behind the IP header (without options) at `offset` is right, or a UDP one of IPv4
/// absent.
pub fn transport_checksum_is_right(frame: &[u8], offset: usize) -> bool {
    if frame[offset] >> 4 == 6 {
        let ip = ipv6_at(frame, offset);
        let end = offset + ip.total_len() as usize;
        return transport_sum(&ip, &frame[offset + ipv6::LEN..end]) == 0xffff;
    }
    let ip = ip_at(frame, offset);
    let l4 = &frame[offset + ipv4::LEN..offset + usize::from(ip.total_len.get())];
    let absent = ip.protocol == ipv4::UDP && l4[UDP_CHECKSUM..UDP_CHECKSUM + 2] == [0, 0];
    absent || transport_sum(&ip, l4) == 0xffff
}

/// The sum of pseudo header and transport. That of IPv6 has wider fields for the same numbers (RFC 9293, section 3.1; RFC
/// 8200, section 8.1).
fn transport_sum<A: Family>(ip: &impl IpHeader<Address = A>, l4: &[u8]) -> u16 {
    let pseudo = [
        bytes_of(&ip.source()),
        bytes_of(&ip.destination()),
        &[0, ip.protocol()],
        bytes_of(&be16(l4.len())),
    ]
    .concat();
    checksum::sum(l4, checksum::sum(&pseudo, 0)) as u16
}

fn be16(len: usize) -> Be16 {
    Be16::new(len.try_into().expect("a length field has 16 bits"))
}

fn pattern(len: usize) -> Vec<u8> {
    // A prime period: no header length is a multiple of it.
    (0..len).map(|index| (index % 251) as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    #[test]
    fn a_datagram_is_what_other_tools_build() {
        // Checksums computed apart from this crate, by RFC 1071 in another language.
        let frame = Frame::udp(A, B)
            .link(Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]))
            .payload(4)
            .build();
        assert_eq!(
            frame[..L4],
            [
                2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 32, 0x12, 0x34, 0, 0, 64, 17,
                0xe4, 0x95, 192, 0, 2, 1, 192, 0, 2, 2,
            ]
        );
        assert_eq!(
            frame[L4..],
            [0x9c, 0x40, 0x1f, 0x90, 0, 12, 0xbd, 0xfd, 0, 1, 2, 3]
        );
    }

    #[test]
    fn an_ipv6_segment_is_what_other_tools_build() {
        // Checksum computed apart from this crate, by RFC 8200 in another language.
        let [a, b]: [std::net::Ipv6Addr; 2] =
            ["2001:db8::1", "2001:db8::2"].map(|a| a.parse().unwrap());
        let frame = Frame::udp(a, b)
            .payload(4)
            .extension(60, &[0, 0, 1, 4, 0, 0, 0, 0])
            .build();
        let ip = ethernet::LEN;
        assert_eq!(frame[ip..ip + 8], [0x60, 1, 0x23, 0x45, 0, 20, 60, 64]);
        assert_eq!(frame[ip + 40..ip + 48], [17, 0, 1, 4, 0, 0, 0, 0]);
        assert_eq!(
            frame[ip + 48..],
            [0x9c, 0x40, 0x1f, 0x90, 0, 12, 0xe6, 0x8c, 0, 1, 2, 3]
        );
        assert!(transport_checksum_is_right(&Frame::tcp(a, b).build(), ip));
    }

    #[test]
    fn lengths_and_checksums_are_right() {
        let tcp = Frame::tcp(A, B).tcp_options(&[1; 12]).payload(101).build();
        assert_eq!(tcp.len(), L4 + tcp::MIN_LEN + 12 + 101);
        assert!(ip_checksum_is_right(&tcp, ethernet::LEN));
        assert!(transport_checksum_is_right(&tcp, ethernet::LEN));
        let tunnel = Tunnel {
            source: B,
            destination: A,
            source_port: 1,
            destination_port: 2,
            vni: 3,
        };
        let vxlan = Frame::tcp(A, B).vxlan(&tunnel).build();
        assert_eq!(vxlan[INNER..], Frame::tcp(A, B).build());
        assert!(ip_checksum_is_right(&vxlan, ethernet::LEN));
        assert_eq!(
            ip_at(&vxlan, ethernet::LEN).total_len.get() as usize,
            vxlan.len() - ethernet::LEN
        );
    }

    #[test]
    fn a_wrong_checksum_is_seen() {
        let mut frame = Frame::udp(A, B).build();
        *frame.last_mut().unwrap() ^= 1;
        assert!(!transport_checksum_is_right(&frame, ethernet::LEN));
        frame[ethernet::LEN] ^= 1;
        assert!(!ip_checksum_is_right(&frame, ethernet::LEN));
    }
}

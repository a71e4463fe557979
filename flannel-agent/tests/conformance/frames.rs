//! VXLAN frames made by hand, right or with one thing changed.

use std::net::IpAddr;

use anyhow::Context as _;

/// A MAC address.
pub(crate) type Mac = [u8; 6];

/// What stands in the outer UDP checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checksum {
    Right,
    Zero,
    Wrong,
}

/// A UDP packet for a pod, as a flannel node would send it to another; every field may be changed.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// Destination and source.
    pub(crate) outer_macs: [Mac; 2],
    /// Source and destination.
    pub(crate) outer_addresses: [IpAddr; 2],
    pub(crate) tos: u8,
    /// Of IPv4.
    pub(crate) dont_fragment: bool,
    pub(crate) outer_ports: [u16; 2],
    pub(crate) checksum: Checksum,
    /// The VXLAN header (RFC 7348, section 5).
    pub(crate) vxlan: [u8; 8],
    /// Destination and source.
    pub(crate) inner_macs: [Mac; 2],
    /// Source and destination.
    pub(crate) inner_addresses: [IpAddr; 2],
    pub(crate) inner_ports: [u16; 2],
}

impl Frame {
    /// The bytes, from the outer Ethernet header on.
    pub(crate) fn bytes(&self, payload: &[u8]) -> Vec<u8> {
        let inner_udp = udp(
            self.inner_addresses,
            self.inner_ports,
            payload,
            Checksum::Right,
        );
        let inner = ip(self.inner_addresses, 0, true, &inner_udp);
        let mut tunnelled = self.vxlan.to_vec();
        tunnelled.extend(ethernet(self.inner_macs, self.inner_addresses[0], &inner));
        let outer_udp = udp(
            self.outer_addresses,
            self.outer_ports,
            &tunnelled,
            self.checksum,
        );
        let outer = ip(
            self.outer_addresses,
            self.tos,
            self.dont_fragment,
            &outer_udp,
        );
        ethernet(self.outer_macs, self.outer_addresses[0], &outer)
    }
}

/// Reads `0e:de:d4:9c:3c:d8`.
pub(crate) fn mac(text: &str) -> anyhow::Result<Mac> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>()?;
    bytes.try_into().ok().context("six bytes")
}

fn ethernet([to, from]: [Mac; 2], address: IpAddr, payload: &[u8]) -> Vec<u8> {
    let ethertype: [u8; 2] = match address {
        IpAddr::V4(_) => [0x08, 0x00],
        IpAddr::V6(_) => [0x86, 0xdd],
    };
    [&to[..], &from, &ethertype, payload].concat()
}

const UDP: u8 = 17;
const TTL: u8 = 64;

fn ip(addresses: [IpAddr; 2], tos: u8, dont_fragment: bool, payload: &[u8]) -> Vec<u8> {
    let [from, to] = addresses.map(octets);
    let is_ipv4 = addresses[0].is_ipv4();
    let length = payload.len() + if is_ipv4 { 20 } else { 0 };
    let [high, low] = u16::try_from(length).expect("a short packet").to_be_bytes();
    if !is_ipv4 {
        let fixed = [0x60, 0, 0, 0, high, low, UDP, TTL];
        return [&fixed[..], &from, &to, payload].concat();
    }
    let flags = if dont_fragment { 0x40 } else { 0 };
    let fixed = [0x45, tos, high, low, 0, 0, flags, 0, TTL, UDP, 0, 0];
    let mut header = [&fixed[..], &from, &to].concat();
    let checksum = !sum(&[&header]);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header.extend(payload);
    header
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn udp(
    addresses: [IpAddr; 2],
    [source, destination]: [u16; 2],
    payload: &[u8],
    checksum: Checksum,
) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("a short packet");
    let mut datagram = Vec::new();
    for word in [source, destination, length, 0] {
        datagram.extend(word.to_be_bytes());
    }
    datagram.extend(payload);
    // Both families' pseudo headers sum up to the same parts (RFC 768, RFC 8200 section 8.1).
    let [from, to] = addresses.map(octets);
    let pseudo = [&from[..], &to, &[0, UDP], &length.to_be_bytes()].concat();
    let right = match !sum(&[&pseudo, &datagram]) {
        0 => 0xffff,
        right => right,
    };
    let written = match checksum {
        Checksum::Right => right,
        Checksum::Zero => 0,
        // Neither right nor zero.
        Checksum::Wrong => right ^ 0x0101 | 0x1000,
    };
    datagram[6..8].copy_from_slice(&written.to_be_bytes());
    datagram
}

/// Whether the UDP checksum of an IPv6 packet without extension headers is right.
pub(crate) fn udp_checksum_is_right(packet: &[u8]) -> bool {
    let (addresses, datagram) = (&packet[8..40], &packet[40..]);
    sum(&[addresses, &[0, UDP], &packet[4..6], datagram]) == 0xffff
}

/// The Internet checksum's sum (RFC 1071) of parts, all but the last of an even length.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum: u32 = 0;
    for part in parts {
        for word in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

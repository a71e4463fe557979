//! Generated packets: their headers, as the pods would write them.

use flannel_common::{
    addr::Mac,
    checksum,
    generator::{Headers, PORTS, Plan},
    wire::{
        Be16, Be32,
        ethernet::{self, Ethernet},
        ipv4::{self, Ipv4},
        udp::{self, Udp},
    },
};
use lab::{Netns, Node, Pod, process};
use serde::Deserialize;

use crate::testbed::{BRIDGE, Error, Result};

/// Bytes behind the UDP header.
pub const PAYLOAD: usize = 64;

/// First ports of generated packets: at the end that starts the flows, and at the other. No socket of a test gets
/// these.
const NEAR_PORT: u16 = 10_000;
const FAR_PORT: u16 = 9; // discard (RFC 863)
const TTL: u8 = 64;

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the end that starts the flows.
    There,
    /// The answers.
    Back,
}

/// Packets from a pod on `node` to another pod, as the first would send them. For answers `from` is who answers.
pub fn udp(node: &Node, from: &Pod, to: &Pod, way: Way, flows: u32) -> Result<Plan> {
    let ip = Ipv4 {
        version_ihl: ipv4::VERSION_IHL,
        ttl: TTL,
        protocol: ipv4::UDP,
        source: from.address().into(),
        destination: to.address().into(),
        ..Ipv4::default()
    };
    let (source, destination) = match way {
        Way::There => (NEAR_PORT, FAR_PORT),
        Way::Back => (FAR_PORT, NEAR_PORT),
    };
    let mut plan = Plan {
        flows,
        answers: u16::from(way == Way::Back),
        subnets: 0,
        subnet_shift: 0,
        headers: Headers {
            ethernet: Ethernet {
                destination: parse_mac(&bridge_mac(node)?)?,
                source: parse_mac(&from.attachment().mac)?,
                ethertype: ethernet::IPV4,
            },
            ip,
            udp: Udp {
                source: Be16::new(source),
                destination: Be16::new(destination),
                ..Udp::default()
            },
        },
    };
    set_payload(&mut plan, PAYLOAD);
    Ok(plan)
}

/// Gives packets so many bytes behind the UDP header.
pub fn set_payload(plan: &mut Plan, payload: usize) {
    let headers = &mut plan.headers;
    headers.udp.len = Be16::new((udp::LEN + payload) as u16);
    headers.ip.total_len = Be16::new((ipv4::LEN + udp::LEN + payload) as u16);
    seal(headers);
}

/// Sums up what has been written. The payload is zeros.
fn seal(headers: &mut Headers) {
    headers.ip.checksum = checksum::ipv4_header(&headers.ip);
    headers.udp.checksum = checksum::udp_of_zeros(&headers.ip, &headers.udp);
}

/// Sends packets elsewhere.
pub fn send_to(plan: &mut Plan, address: u32) {
    plan.headers.ip.destination = Be32::new(address);
    seal(&mut plan.headers);
}

/// Makes packets those of flows that nobody answers.
pub fn one_way(plan: &mut Plan) {
    /// Beside the ports of the others.
    const PORT: u16 = NEAR_PORT + PORTS as u16;
    plan.headers.udp.source = Be16::new(PORT);
    seal(&mut plan.headers);
}

/// Makes packets echo requests (RFC 792), all of one sequence. That header has the length of UDP's.
pub fn echo_request(plan: &mut Plan) {
    /// Protocol number.
    const ICMP: u8 = 1;
    /// Type and code.
    const ECHO_REQUEST: u16 = 8 << 8;
    const IDENTIFIER: u16 = 1;
    let ip = &mut plan.headers.ip;
    ip.protocol = ICMP;
    ip.checksum = checksum::ipv4_header(ip);
    // The payload is zeros.
    plan.headers.udp = Udp {
        source: Be16::new(ECHO_REQUEST),
        destination: Be16::new(!(ECHO_REQUEST + IDENTIFIER)),
        len: Be16::new(IDENTIFIER),
        checksum: Be16::default(), // sequence number
    };
}

/// What `ip` says of a device.
#[derive(Deserialize)]
struct Link {
    address: String,
    mtu: u16,
}

/// The largest packet that a device takes, in bytes.
pub fn mtu(netns: &Netns, device: &str) -> Result<u16> {
    Ok(link(netns, device)?.mtu)
}

fn bridge_mac(node: &Node) -> Result<String> {
    Ok(link(node.netns(), BRIDGE)?.address)
}

fn link(netns: &Netns, device: &str) -> Result<Link> {
    let arguments = ["-json", "link", "show", "dev", device];
    let text = process::run(Some(netns), "ip", &arguments)?;
    let links: Vec<Link> = serde_json::from_str(&text).unwrap_or_default();
    let link = links.into_iter().next();
    link.ok_or_else(|| Error::Unexpected {
        what: "the answer of ip link show",
        value: text,
        expected: "a list with one link",
    })
}

fn parse_mac(text: &str) -> Result<Mac> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .map(Mac)
        .ok_or_else(|| Error::Unexpected {
            what: "a link's address",
            value: text.to_owned(),
            expected: "a MAC address",
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ones' complement sum of a header that holds its checksum.
    fn sum(words: &[u8]) -> u32 {
        let words = words
            .chunks(2)
            .map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        words.fold(0, |sum, word| {
            let sum = sum + u32::from(word);
            (sum & 0xffff) + (sum >> 16)
        })
    }

    #[test]
    fn changed_packets_keep_their_checksums() {
        const VALID: u32 = 0xffff;
        let mut plan = Plan::default();
        plan.headers.ip.source = Be32::new(0x0a05_0102);
        send_to(&mut plan, 0x0a05_0203);
        assert_eq!(sum(bytemuck::bytes_of(&plan.headers.ip)), VALID);
        set_payload(&mut plan, 512);
        assert_eq!(sum(bytemuck::bytes_of(&plan.headers.ip)), VALID);
        echo_request(&mut plan);
        assert_eq!(sum(bytemuck::bytes_of(&plan.headers.udp)), VALID);
        assert_eq!(sum(bytemuck::bytes_of(&plan.headers.ip)), VALID);
    }

    #[test]
    fn a_mac_address_is_six_bytes() {
        assert_eq!(
            parse_mac("02:00:5e:10:00:ff").unwrap(),
            Mac([2, 0, 0x5e, 0x10, 0, 0xff])
        );
        for wrong in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:ff:00",
            "02:00:5e:10:00:xx",
        ] {
            assert!(parse_mac(wrong).is_err(), "{wrong}");
        }
    }
}

//! Packets of the udp backend: from pods by the TUN device, from anybody by the UDP socket.

use std::net::Ipv4Addr;

use flannel_agent::udp::packet::Header;

/// Where an answer comes from.
const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 5, 9, 0);
/// Bytes of an IPv4 header without options.
const HEADER: usize = 20;
/// Place of the time to live.
const TTL: usize = 8;
/// Places of the header's checksum.
const CHECKSUM: std::ops::Range<usize> = 10..12;

/// A hop changes TTL and checksum and nothing else, and leaves a right checksum right; an answer is itself a packet, to the
/// sender.
pub(crate) fn run(bytes: &[u8]) {
    let Some(header) = Header::read(bytes) else {
        return;
    };
    let mut packet = bytes.to_vec();
    if header.hop(&mut packet).is_ok() {
        assert_eq!(Some(packet[TTL]), bytes[TTL].checked_sub(1));
        assert_eq!(is_right(bytes), is_right(&packet));
        packet[TTL] = bytes[TTL];
        packet[CHECKSUM].copy_from_slice(&bytes[CHECKSUM]);
        assert_eq!(packet, bytes);
    } else {
        assert!(bytes[TTL] <= 1);
        assert_eq!(packet, bytes);
    }
    if let Some(answer) = header.net_unreachable(bytes, SOURCE) {
        let read = Header::read(&answer).expect("an answer is a packet");
        assert_eq!(read.destination().octets(), bytes[12..16]);
        assert!(is_right(&answer));
        assert_eq!(sum(&answer[HEADER..]), 0xffff, "the checksum of ICMP");
        assert!(
            read.net_unreachable(&answer, SOURCE).is_none(),
            "an answer to an answer"
        );
    }
}

/// Whether the checksum of the header is right.
fn is_right(packet: &[u8]) -> bool {
    let length = usize::from(packet[0] & 0xf) * 4;
    sum(&packet[..length]) == 0xffff
}

/// The one's complement sum of 16-bit words (RFC 1071).
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

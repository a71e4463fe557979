//! Against bytes that upstream's proxy has written (its `proxy_amd64.c`, run on these packets), and properties.

use proptest::prelude::*;

use super::*;

/// A node's address in the flannel network, as the recorded proxy had it.
const TUNNEL: Ipv4Addr = Ipv4Addr::new(10, 5, 57, 0);

/// A datagram of 8 bytes from 10.5.57.2 to 10.5.99.3, and what upstream answers where no node has that address.
const DATAGRAM: &str = "45000024123440003f1179860a0539020a056303271000090010abcd0102030405060708";
const ANSWER: &str = "450000380000000008012cba0a0539000a05390203002a090000000045000024123440003f1179860a0539020a056303271000090010abcd";
/// The datagram after a hop.
const ONE_HOP_ON: &str = "45000024123440003e117a860a0539020a056303271000090010abcd0102030405060708";
/// A segment with eight bytes of IP options that is a first fragment, and upstream's answer.
const OPTIONS: &str =
    "4700002c12342000400692860a0539020a0563030101010101010100271000500102030405060708090a0b0c";
const ANSWER_TO_OPTIONS: &str = "450000400000000008012cb20a0539000a0539020300d199000000004700002c12342000400692860a0539020a05630301010101010101002710005001020304";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

fn answer(packet: &[u8]) -> Option<Vec<u8>> {
    Header::read(packet)
        .unwrap()
        .net_unreachable(packet, TUNNEL)
}

fn changed(hex: &str, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut packet = bytes(hex);
    change(&mut packet);
    packet
}

#[test]
fn answers_are_upstreams_to_the_byte() {
    assert_eq!(answer(&bytes(DATAGRAM)), Some(bytes(ANSWER)));
    assert_eq!(answer(&bytes(OPTIONS)), Some(bytes(ANSWER_TO_OPTIONS)));
}

#[test]
fn a_hop_is_upstreams_to_the_byte() {
    let mut packet = bytes(DATAGRAM);
    let header = Header::read(&packet).unwrap();
    assert_eq!(header.destination(), Ipv4Addr::new(10, 5, 99, 3));
    assert_eq!(header.hop(&mut packet), Ok(()));
    assert_eq!(packet, bytes(ONE_HOP_ON));
}

#[test]
fn no_packet_goes_on_without_time_to_live() {
    for ttl in [0, 1] {
        let mut packet = changed(DATAGRAM, |packet| packet[8] = ttl);
        let before = packet.clone();
        assert_eq!(
            Header::read(&packet).unwrap().hop(&mut packet),
            Err(Expired)
        );
        assert_eq!(packet, before);
    }
}

#[test]
fn some_packets_are_not_answered() {
    let unanswered: [fn(&mut Vec<u8>); 6] = [
        |packet| packet[9] = ICMP,
        |packet| packet[7] = 1,             // a later fragment
        |packet| packet[12] = 224,          // from a group
        |packet| packet[12..16].fill(0),    // from nobody
        |packet| packet[12..16].fill(0xff), // from all
        |packet| packet[16] = 239,          // to a group
    ];
    for change in unanswered {
        assert_eq!(answer(&changed(DATAGRAM, change)), None);
    }
}

#[test]
fn what_is_too_short_to_quote_is_filled_up() {
    let packet = changed(DATAGRAM, |packet| {
        packet.truncate(22);
        packet[3] = 22;
    });
    let answer = answer(&packet).unwrap();
    assert_eq!(answer.len(), 56);
    assert_eq!(answer[28..50], packet);
    assert_eq!(answer[50..], [0; 6]);
}

#[test]
fn what_is_no_packet_is_recognized() {
    let wrong: [fn(&mut Vec<u8>); 7] = [
        Vec::clear,
        |packet| packet.truncate(19),
        |packet| packet[0] = 0x65,    // IPv6
        |packet| packet[0] = 0x44,    // a header shorter than the shortest
        |packet| packet[0] = 0x4f,    // a header longer than the packet
        |packet| packet[3] = 19,      // shorter than its header
        |packet| packet.truncate(35), // less than it says
    ];
    for change in wrong {
        let packet = changed(DATAGRAM, change);
        assert_eq!(Header::read(&packet), None, "{packet:x?}");
    }
    // More than it says is upstream's to send and to take.
    assert!(Header::read(&changed(DATAGRAM, |packet| packet.push(0))).is_some());
}

/// The ones' complement sum of a header with its checksum in it: all ones if it is right.
fn is_right(header: &[u8]) -> bool {
    flannel_common::checksum::sum(header, 0) == 0xffff
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_stay_a_packet(mut packet in prop::collection::vec(any::<u8>(), 0..120), v4: bool) {
        if v4 && packet.len() >= 20 {
            packet[0] = 0x45 + packet[0] % 3;
            packet[2] = 0;
        }
        if let Some(header) = Header::read(&packet) {
            let before = packet.clone();
            prop_assert!(header.length() <= packet.len());
            if let Some(answer) = header.net_unreachable(&packet, TUNNEL) {
                prop_assert!(is_right(&answer[..20]) && is_right(&answer[20..]));
                prop_assert_eq!(Header::read(&answer).map(|it| it.destination()), Some(Ipv4Addr::from(header.ip.source)));
            }
            if header.hop(&mut packet).is_ok() {
                prop_assert_eq!(packet[8], before[8] - 1);
                packet[8..12].copy_from_slice(&before[8..12]);
            }
            // Nothing but TTL, and the checksum, has changed.
            packet[9..12].copy_from_slice(&before[9..12]);
            prop_assert_eq!(packet, before);
        }
    }

    #[test]
    fn a_hop_keeps_the_checksum_right(source: u32, id: u16, ttl in 2u8..) {
        let mut ip: Ipv4 = bytes(DATAGRAM)[..].read(0).unwrap();
        ip.source = Ipv4Addr::from_bits(source).into();
        ip.id = Be16::new(id);
        ip.ttl = ttl;
        ip.checksum = flannel_common::checksum::ipv4_header(&ip);
        let mut packet = bytes(DATAGRAM);
        packet[..20].copy_from_slice(bytemuck::bytes_of(&ip));
        prop_assert_eq!(Header::read(&packet).unwrap().hop(&mut packet), Ok(()));
        prop_assert!(is_right(&packet[..20]));
        prop_assert_eq!(packet[8], ttl - 1);
    }
}

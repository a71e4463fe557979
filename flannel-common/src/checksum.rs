//! Internet checksums (RFC 1071), whole and incremental (RFC 1624).

use bytemuck::cast;

use crate::wire::{Be16, ipv4::Ipv4, udp::Udp};

/// The ones' complement sum of 16-bit words, folded. Sums do not depend on byte order.
#[inline(always)]
const fn fold(mut sum: u32) -> u16 {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum of a header, computed with its checksum field taken as zero.
#[inline(always)]
pub fn ipv4_header(header: &Ipv4) -> Be16 {
    let words: [u16; 10] = cast(Ipv4 {
        checksum: Be16::from_raw(0),
        ..*header
    });
    let mut sum = 0;
    let mut index = 0;
    while index < words.len() {
        sum += words[index] as u32;
        index += 1;
    }
    Be16::from_raw(!fold(sum))
}

/// The checksum of a datagram (RFC 768) whose payload is all zeros, computed with its checksum field taken as zero.
pub fn udp_of_zeros(ip: &Ipv4, udp: &Udp) -> Be16 {
    let addresses: [u16; 4] = cast([{ ip.source }, { ip.destination }]);
    let pseudo = [Be16::new(u16::from(ip.protocol)).raw(), udp.len.raw()];
    let header = [udp.source.raw(), udp.destination.raw(), udp.len.raw()];
    let words = addresses.iter().chain(&pseudo).chain(&header);
    let sum = words.fold(0, |sum, word| sum + u32::from(*word));
    // Zero means that there is none; the other zero means it.
    match !fold(sum) {
        0 => Be16::from_raw(u16::MAX),
        checksum => Be16::from_raw(checksum),
    }
}

/// A checksum after one 16-bit word that it covers has changed (RFC 1624, equation 3).
#[inline(always)]
pub const fn replace(checksum: Be16, old: Be16, new: Be16) -> Be16 {
    Be16::from_raw(!fold(
        (!checksum.raw()) as u32 + (!old.raw()) as u32 + new.raw() as u32,
    ))
}

/// The ones' complement sum of bytes with what has been summed before: for pseudo headers and payloads in tests.
#[cfg(any(test, feature = "testing"))]
pub fn sum(bytes: &[u8], before: u32) -> u32 {
    bytes.chunks(2).fold(before, |sum, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        u32::from(fold(sum + u32::from(word)))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::Be32;

    #[test]
    fn known_header() {
        // A header from RFC 1071-style examples with a checksum that tools agree on.
        let bytes: [u8; 20] = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8,
            0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        let header: Ipv4 = bytemuck::pod_read_unaligned(&bytes);
        assert_eq!(ipv4_header(&header), Be16::new(0xb861));
    }

    proptest! {
        #[test]
        fn replacing_equals_recomputing(mut bytes: [u8; 20], id: u16) {
            bytes[0] = 0x45;
            let mut header: Ipv4 = bytemuck::pod_read_unaligned(&bytes);
            header.source = Be32::new(header.source.get() | 1); // a header of zeros has two valid checksums
            header.checksum = ipv4_header(&header);
            let checksum = replace(header.checksum, header.id, Be16::new(id));
            header.id = Be16::new(id);
            prop_assert_eq!(checksum, ipv4_header(&header));
        }
    }
}

//! One bare IPv4 packet: whether it is one, one hop further, and the answer where no route leads on. Pure.

use std::net::Ipv4Addr;

use flannel_common::wire::{
    Be16, Packet as _,
    ip::IpHeader as _,
    ipv4::{self, Ipv4},
};

/// Protocol number of ICMP.
const ICMP: u8 = 1;
/// Type "destination unreachable", code "net unreachable" (RFC 792).
const NET_UNREACHABLE: [u8; 2] = [3, 0];
/// Length in bytes of the header of such a message: type, code, checksum, four unused bytes.
const ICMP_LEN: usize = 8;
/// Bytes behind the IP header that the answer quotes (RFC 792).
const QUOTED: usize = 8;
/// Upstream's time to live for the answer.
const ANSWER_TTL: u8 = 8;
/// Where the checksum lies in the ICMP header.
const ICMP_CHECKSUM: std::ops::Range<usize> = 2..4;

/// A well-formed packet's header, options not included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    ip: Ipv4,
}

/// What a packet cannot go on for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired;

impl Header {
    /// The header of a packet, unless it is none: another version, or shorter than it says. Bytes behind its end are
    /// allowed, as in upstream's proxy; the kernel that receives it cuts them off.
    pub fn read(packet: &[u8]) -> Option<Self> {
        const VERSION: u8 = 4;
        let ip: Ipv4 = packet.read(0)?;
        let header = Self { ip };
        let total = usize::from(ip.total_len.get());
        let fits =
            header.length() >= ipv4::LEN && header.length() <= total && total <= packet.len();
        (ip.version_ihl >> 4 == VERSION && fits).then_some(header)
    }

    /// Length of the header in bytes, options included.
    fn length(&self) -> usize {
        usize::from(self.ip.version_ihl & 0xf) * size_of::<u32>()
    }

    /// Where the packet goes.
    pub fn destination(&self) -> Ipv4Addr {
        self.ip.destination.into()
    }

    /// Takes the packet, whose header this is, one hop further: TTL and checksum are adjusted.
    ///
    /// # Errors
    /// If its time to live is used up. It is left as it is.
    pub fn hop(mut self, packet: &mut [u8]) -> Result<(), Expired> {
        // Zero too, which upstream's proxy takes for 256.
        if self.ip.ttl <= 1 {
            return Err(Expired);
        }
        self.ip.decrement_ttl();
        packet[..ipv4::LEN].copy_from_slice(bytemuck::bytes_of(&self.ip));
        Ok(())
    }

    /// The answer to a packet, whose header this is, that no route leads on: ICMP "net unreachable" from `source`, to the
    /// byte as upstream's proxy writes it (`send_net_unreachable`). None to ICMP itself and to later fragments
    /// (RFC 792), nor about what no single host has sent or is meant (RFC 1122 section 3.2.2).
    pub fn net_unreachable(&self, packet: &[u8], source: Ipv4Addr) -> Option<Vec<u8>> {
        let sender = Ipv4Addr::from(self.ip.source);
        let group = |address: Ipv4Addr| address.is_multicast() || address.is_broadcast();
        if self.ip.protocol == ICMP
            || self.ip.is_later_fragment()
            || group(sender)
            || sender.is_unspecified()
            || group(self.destination())
        {
            return None;
        }
        // A packet that is too short for the quotation is filled up with zeros.
        let quoted = self.length() + QUOTED;
        let total = ipv4::LEN + ICMP_LEN + quoted;
        let mut ip = Ipv4 {
            version_ihl: ipv4::VERSION_IHL,
            total_len: Be16::new(u16::try_from(total).expect("96 at most")),
            ttl: ANSWER_TTL,
            protocol: ICMP,
            source: source.into(),
            destination: self.ip.source,
            ..Ipv4::default()
        };
        ip.checksum = flannel_common::checksum::ipv4_header(&ip);

        let mut answer = vec![0; total];
        let (header, message) = answer.split_at_mut(ipv4::LEN);
        header.copy_from_slice(bytemuck::bytes_of(&ip));
        message[..NET_UNREACHABLE.len()].copy_from_slice(&NET_UNREACHABLE);
        let quotation = &packet[..quoted.min(packet.len())];
        message[ICMP_LEN..][..quotation.len()].copy_from_slice(quotation);
        let checksum = checksum(message);
        message[ICMP_CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
        Some(answer)
    }
}

/// The Internet checksum (RFC 1071) of a whole number of 16-bit words.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests;

//! What permission needs to know of a packet's TCP or UDP header.

use crate::flow::{FlowKey, Leg};
use crate::outcome::Outcome;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::tcp::{self, Tcp};
use crate::wire::udp::Udp;
use crate::wire::{Be16, Packet};

/// The part of a TCP or UDP header that tells flows apart and how they go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transport {
    /// Source port.
    pub source: Be16,
    /// Destination port.
    pub destination: Be16,
    /// Whether it is TCP; else it is UDP, and what follows is zero.
    pub tcp: bool,
    /// Control bits.
    pub flags: u8,
    /// Sequence number behind the payload.
    pub end: u32,
    /// Acknowledgment number.
    pub acknowledgment: u32,
}

impl Transport {
    /// Reads the header behind the IPv4 header `ip` at `offset`.
    ///
    /// # Errors
    /// [`Outcome::Malformed`] if the packet ends before it does.
    #[inline(always)]
    pub fn read<P: Packet + ?Sized>(packet: &P, offset: usize, ip: &Ipv4) -> Result<Self, Outcome> {
        let offset = offset + ipv4::LEN;
        if ip.protocol != ipv4::TCP {
            let udp: Udp = packet.read(offset).ok_or(Outcome::Malformed)?;
            return Ok(Self {
                source: udp.source,
                destination: udp.destination,
                ..Self::default()
            });
        }
        let tcp: Tcp = packet.read(offset).ok_or(Outcome::Malformed)?;
        let payload = u32::from(ip.total_len.get())
            .wrapping_sub(ipv4::LEN as u32)
            .wrapping_sub(tcp.header_len());
        Ok(Self {
            source: tcp.source,
            destination: tcp.destination,
            tcp: true,
            flags: tcp.flags,
            end: tcp.sequence.get().wrapping_add(payload),
            acknowledgment: tcp.acknowledgment.get(),
        })
    }

    /// The flow that a packet of `leg` with the IPv4 header `ip` belongs to.
    #[inline(always)]
    pub fn flow(&self, ip: &Ipv4, leg: Leg) -> FlowKey {
        let (pod, remote, pod_port, remote_port) = match leg {
            Leg::Out => (ip.source, ip.destination, self.source, self.destination),
            Leg::In => (ip.destination, ip.source, self.destination, self.source),
        };
        FlowKey {
            pod,
            remote,
            pod_port,
            remote_port,
            protocol: u32::from(ip.protocol),
        }
    }

    /// Whether the packet begins or ends a TCP connection.
    #[inline(always)]
    pub const fn is_control(&self) -> bool {
        self.flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0
    }
}

//! What permission needs to know of a packet's TCP or UDP header.

use crate::family::Family;
use crate::flow::Leg;
use crate::outcome::Outcome;
use crate::wire::ip::{self, IpHeader as _};
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
    /// Reads the header behind the IP header `ip` at `offset`.
    ///
    /// # Errors
    /// [`Outcome::Malformed`] if the packet ends before it does.
    #[inline(always)]
    pub fn read<A: Family, P: Packet + ?Sized>(
        packet: &P,
        offset: usize,
        ip: &A::Header,
    ) -> Result<Self, Outcome> {
        let offset = offset + A::LEN;
        if ip.protocol() != ip::TCP {
            let udp: Udp = packet.read(offset).ok_or(Outcome::Malformed)?;
            return Ok(Self {
                source: udp.source,
                destination: udp.destination,
                ..Self::default()
            });
        }
        let tcp: Tcp = packet.read(offset).ok_or(Outcome::Malformed)?;
        let payload = ip
            .total_len()
            .wrapping_sub(A::LEN as u32)
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

    /// The flow that a packet of `leg` with the IP header `ip` belongs to.
    #[inline(always)]
    pub fn flow<A: Family>(&self, ip: &A::Header, leg: Leg) -> A::Key {
        let (pod, remote) = ends::<A>(ip, leg);
        let (pod_port, remote_port) = match leg {
            Leg::Out => (self.source, self.destination),
            Leg::In => (self.destination, self.source),
        };
        A::key(pod, remote, pod_port, remote_port, ip.protocol())
    }

    /// Whether the packet begins or ends a TCP connection.
    #[inline(always)]
    pub const fn is_control(&self) -> bool {
        self.flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0
    }
}

/// The addresses of a packet of `leg`: the one of the pod of this node, and the other.
#[inline(always)]
pub fn ends<A: Family>(ip: &A::Header, leg: Leg) -> (A, A) {
    match leg {
        Leg::Out => (ip.source(), ip.destination()),
        Leg::In => (ip.destination(), ip.source()),
    }
}

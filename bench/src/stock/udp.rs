//! The `udp` backend of a stock node: a TUN device whose packets travel as the payload of datagrams (upstream
//! `pkg/backend/udp`, `proxy_amd64.c`).
//!
//! As upstream does, each packet's time to live goes down by one when it is sent and once more when it is received;
//! unlike upstream's, this node answers nothing that it cannot deliver. The tunnel lives in this process: a kept cluster
//! loses it.

use std::{
    ffi::c_short,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::OpenOptionsExt,
    },
    sync::{Arc, Mutex},
};

use crate::{
    error::{IoContext, Result},
    lease::Subnet,
    netns::Netns,
    traffic::server::{Server, Stop},
    underlay,
};

/// The device's name: upstream asks for `flannel%d`.
const DEVICE: &str = "flannel0";
/// The largest packet.
const BUFFER: usize = 64 << 10;

/// Where each subnet's packets go.
type Peers = Arc<Mutex<Vec<(Subnet, SocketAddrV4)>>>;

/// A running tunnel; ended, and its device removed, when dropped.
#[derive(Debug)]
pub(super) struct Tunnel {
    peers: Peers,
    port: u16,
    _thread: Server,
}

impl Tunnel {
    /// Makes the device with the subnet's first address and the network's route, and carries packets from now on.
    pub(super) fn start(
        netns: &Netns,
        network: Subnet,
        subnet: Subnet,
        local: SocketAddrV4,
        mtu: u32,
    ) -> Result<Self> {
        let device = netns
            .run(open)?
            .context("make TUN device in", netns.name())?;
        underlay::ip_batch(
            netns,
            &format!(
                "address add {}/32 dev {DEVICE}\n\
                 link set {DEVICE} mtu {mtu} up\n\
                 route add {network} dev {DEVICE}\n",
                subnet.address
            ),
        )?;
        let socket = netns
            .run(|| UdpSocket::bind(local))?
            .context("open UDP socket in", netns.name())?;
        socket.set_nonblocking(true).context("set up", "socket")?;
        let peers = Peers::default();
        let thread = {
            let peers = peers.clone();
            Server::start(move |stop| carry(&device, &socket, &peers, stop))?
        };
        Ok(Self {
            peers,
            port: local.port(),
            _thread: thread,
        })
    }

    /// Says which subnet is at which node's address.
    pub(super) fn set_peers(&self, peers: impl Iterator<Item = (Subnet, Ipv4Addr)>) {
        let peers = peers.map(|(subnet, address)| (subnet, SocketAddrV4::new(address, self.port)));
        *lock(&self.peers) = peers.collect();
    }
}

fn lock(peers: &Peers) -> std::sync::MutexGuard<'_, Vec<(Subnet, SocketAddrV4)>> {
    peers
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A TUN device that goes with its descriptor (`linux/if_tun.h`).
fn open() -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: a structure of plain bytes and integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as c_short;
    // SAFETY: the descriptor is open, and the request is a whole `ifreq` that lives through the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

fn carry(mut device: &File, socket: &UdpSocket, peers: &Peers, stop: &Stop) {
    let mut buffer = vec![0; BUFFER];
    while stop.wait_readable([device.as_fd(), socket.as_fd()]) {
        while let Ok(length) = device.read(&mut buffer) {
            let packet = &mut buffer[..length];
            if let Some(to) = hop(packet).and_then(|to| node_of(peers, to)) {
                // What the network does not take is lost, as on any link.
                socket.send_to(packet, to).ok();
            }
        }
        while let Ok((length, _)) = socket.recv_from(&mut buffer) {
            let packet = &mut buffer[..length];
            if hop(packet).is_some() {
                device.write_all(packet).ok();
            }
        }
    }
}

fn node_of(peers: &Peers, address: Ipv4Addr) -> Option<SocketAddrV4> {
    let peers = lock(peers);
    let mut found = peers.iter().filter(|(subnet, _)| subnet.contains(address));
    found.next().map(|(_, node)| *node)
}

/// Takes one off an IPv4 packet's time to live and mends its checksum (RFC 1624); returns the destination. None for
/// what is no IPv4 packet or has lived long enough.
fn hop(packet: &mut [u8]) -> Option<Ipv4Addr> {
    /// Offsets in an IPv4 header.
    const TTL: usize = 8;
    const CHECKSUM: usize = 10;
    const DESTINATION: usize = 16;
    const HEADER: usize = 20;
    if packet.len() < HEADER || packet[0] >> 4 != 4 || packet[TTL] <= 1 {
        return None;
    }
    packet[TTL] -= 1;
    let checksum = u16::from_be_bytes([packet[CHECKSUM], packet[CHECKSUM + 1]]);
    // One less in the upper byte of a word is 0x0100 more in the sum's complement.
    let (sum, carry) = checksum.overflowing_add(0x0100);
    let mended = sum + u16::from(carry);
    packet[CHECKSUM..CHECKSUM + 2].copy_from_slice(&mended.to_be_bytes());
    let bytes: [u8; 4] = packet[DESTINATION..HEADER].try_into().ok()?;
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(header: &[u8]) -> u16 {
        let words = header.chunks(2);
        let sum: u32 = words
            .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
            .sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
    }

    #[test]
    fn hops_leave_checksums_right() {
        for id in [0_u16, 1, 0x3fff, 0xbeef, 0xffff] {
            let mut packet = [
                0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 10, 5, 1, 2, 10, 5, 2, 2,
            ];
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            let checksum = !sum(&packet);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
            assert_eq!(hop(&mut packet), Some(Ipv4Addr::new(10, 5, 2, 2)));
            assert_eq!((packet[8], sum(&packet)), (63, 0xffff), "{id}");
            packet[8] = 1;
            assert_eq!(hop(&mut packet), None);
        }
        assert_eq!(hop(&mut [0x60; 40]), None);
    }
}

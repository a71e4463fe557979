//! Notifications of changes to flannel's nftables tables.
//!
//! iptables' tables, legacy or not, belong to everybody: their changes are looked for at an interval, as upstream does.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::{io::Errno, net::RecvFlags};
use tokio::io::unix::AsyncFd;

/// `NFNLGRP_NFTABLES` (include/uapi/linux/netfilter/nfnetlink.h).
const GROUP: u32 = 7;
/// `NFTA_TABLE_NAME`, and just so `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE` and `NFTA_SET_TABLE`
/// (include/uapi/linux/netfilter/nf_tables.h).
const TABLE: u16 = 1;
/// Length of `struct nlmsghdr` and `struct nfgenmsg` together, in bytes.
const HEADERS: usize = 16 + 4;
/// Messages and attributes begin at multiples of this, in bytes.
const ALIGNMENT: usize = 4;
/// What the names of flannel's tables begin with.
const PREFIX: &[u8] = b"flannel-";
/// Largest datagram: a message names one object.
const DATAGRAM: usize = 32 * 1024;

/// The socket.
#[derive(Debug)]
pub struct Events(AsyncFd<Socket>);

impl Events {
    /// Subscribes in the network namespace of the calling thread. Must be called inside the tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses the socket or the group, as it does without nftables.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        socket.add_membership(GROUP)?;
        // SAFETY: `Socket` owns its descriptor, always returns the same one, and closes it only when it is dropped,
        // which `AsyncFd` does after it has deregistered it.
        Ok(Self(unsafe { AsyncFd::register(socket) }?))
    }

    /// Waits until something in flannel's tables has changed, or may have. Safe to drop while it waits.
    pub async fn changed(&self) {
        loop {
            let Ok(mut guard) = self.0.readable().await else {
                // No reactor any more: the process ends.
                return std::future::pending().await;
            };
            match guard.try_io(|socket| drain(socket.get_ref())) {
                Ok(Ok(true)) => return,
                Ok(Ok(false)) | Err(_) => {}
                // Nothing that this socket could go on with; the interval remains.
                Ok(Err(error)) => {
                    tracing::warn!("changes of nftables are not heard any more: {error}");
                    return std::future::pending().await;
                }
            }
        }
    }
}

/// Reads all that is there; whether some of it concerns flannel's tables.
fn drain(socket: &Socket) -> io::Result<bool> {
    let mut concerned = None;
    let mut buffer = vec![0; DATAGRAM];
    loop {
        match rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((length, _)) => {
                concerned = Some(concerned == Some(true) || concerns(&buffer[..length]));
            }
            // Some were lost: anything may have changed.
            Err(Errno::NOBUFS) => concerned = Some(true),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if concerned.is_some() => return Ok(concerned == Some(true)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether a message in the datagram is about one of flannel's tables or something in it.
fn concerns(mut datagram: &[u8]) -> bool {
    while let Some((length, _)) = datagram.split_first_chunk::<4>() {
        let length = u32::from_ne_bytes(*length) as usize;
        let Some(message) = datagram.get(..length).filter(|_| length >= HEADERS) else {
            return false;
        };
        if table_of(&message[HEADERS..]).is_some_and(|name| name.starts_with(PREFIX)) {
            return true;
        }
        datagram = datagram
            .get(length.next_multiple_of(ALIGNMENT)..)
            .unwrap_or_default();
    }
    false
}

/// The name of the table in a message's attributes.
fn table_of(mut attributes: &[u8]) -> Option<&[u8]> {
    while let [l0, l1, t0, t1, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = attributes.get(ALIGNMENT..length)?;
        if u16::from_ne_bytes([t0, t1]) == TABLE {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(ALIGNMENT)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message with one attribute before the table's name.
    fn message(table: &[u8]) -> Vec<u8> {
        let attribute = |kind: u16, value: &[u8]| {
            let mut bytes = u16::try_from(ALIGNMENT + value.len())
                .expect("short")
                .to_ne_bytes()
                .to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
            bytes
        };
        let body = [attribute(7, &[1; 5]), attribute(TABLE, table)].concat();
        let length = u32::try_from(HEADERS + body.len()).expect("short");
        [&length.to_ne_bytes()[..], &[0; HEADERS - 4], &body].concat()
    }

    #[test]
    fn only_flannels_tables_concern_it() {
        let (own, other) = (message(b"flannel-ipv4\0"), message(b"nat\0"));
        assert!(concerns(&own));
        assert!(!concerns(&other));
        assert!(concerns(&[other.clone(), own.clone()].concat()));
        for cut in 0..own.len() {
            assert!(!concerns(&own[..cut]), "cut at {cut}");
        }
        assert!(!concerns(&[0; HEADERS]));
    }
}

//! Frames put on an interface byte by byte: what no socket of TCP or UDP would send.
//!
//! A packet socket (`packet(7)`), like [`crate::capture`]'s. The interface sends the frame as it is, with checksums that
//! nobody completes, and up to its MTU.

use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, bind, netdevice::name_to_index, send,
    socket_with,
};

use crate::{
    capture::link_address,
    error::{IoContext, Result},
    netns::Netns,
};

/// Sends frames out of one interface.
#[derive(Debug)]
pub struct Injector {
    socket: OwnedFd,
    place: String,
}

impl Injector {
    /// Opens an interface of a namespace.
    ///
    /// # Errors
    /// If there is no such interface.
    pub fn open(netns: &Netns, interface: &str) -> Result<Self> {
        let place = format!("{interface} in {}", netns.name());
        let socket = netns
            .run(|| open(interface))?
            .context("open packet socket on", &place)?;
        Ok(Self { socket, place })
    }

    /// Sends a frame, from its Ethernet header on.
    ///
    /// # Errors
    /// If it is too large for the interface, or the interface is down.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        send(&self.socket, frame, SendFlags::empty())
            .map(drop)
            .context("send frame to", &self.place)
    }
}

fn open(interface: &str) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
    let index = name_to_index(&socket, interface)?;
    bind(&socket, &link_address(index, 0))?;
    Ok(socket)
}

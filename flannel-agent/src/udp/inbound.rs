//! The thread from other nodes to the device.
//!
//! It takes as many datagrams as there are by one call, where the kernel hands over datagrams of one sender as one buffer
//! (`UDP_GRO`, udp(7)), and writes each packet to the device.
//!
//! Who has sent a datagram is not looked at, as in upstream's proxy: nodes behind address translation send from others
//! than their public addresses.

use std::{io, os::fd::AsFd};

use rustix::{event::Timespec, io::write};

use super::{
    Shared,
    counters::add,
    packet::{Expired, Header},
    sys::Receiver,
};

/// Buffers of one call.
const BUFFERS: usize = 16;
/// Pause after an error that does not go away by itself, such as want of memory.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// Carries until the proxy ends.
///
/// # Errors
/// When the device is gone.
pub(super) fn run(shared: &Shared) -> io::Result<()> {
    let mut receiver = Receiver::new(BUFFERS);
    while !shared.is_ended() {
        match receiver.receive(shared.socket.as_fd()) {
            Ok(count) => {
                for index in 0..count {
                    let (buffer, size) = receiver.datagrams(index);
                    deliver(shared, buffer, size);
                }
                if count < BUFFERS {
                    shared.wait(Some(shared.socket.as_fd()), None)?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                shared.wait(Some(shared.socket.as_fd()), None)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => {
                add(&shared.tally.receive_errors, 1);
                shared.wait(None, Some(&PAUSE))?;
            }
        }
    }
    Ok(())
}

/// Writes packets of `size` bytes each to the device; the last may have fewer.
fn deliver(shared: &Shared, buffer: &mut [u8], size: usize) {
    if buffer.is_empty() {
        add(&shared.tally.malformed, 1);
    }
    let (mut packets, mut bytes) = (0, 0);
    for packet in buffer.chunks_mut(size.max(1)) {
        let Some(header) = Header::read(packet) else {
            add(&shared.tally.malformed, 1);
            continue;
        };
        if header.hop(packet) == Err(Expired) {
            add(&shared.tally.expired, 1);
            continue;
        }
        match write(&shared.tun, packet) {
            Ok(_) => {
                packets += 1;
                bytes += packet.len();
            }
            Err(_) => add(&shared.tally.undelivered, 1),
        }
    }
    add(&shared.tally.received_packets, packets);
    add(&shared.tally.received_bytes, bytes);
}

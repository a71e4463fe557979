//! The thread from the device to other nodes.
//!
//! It reads packets side by side into one buffer until there are no more, and sends them all by one call, runs of them
//! as one (see [`super::runs`]). Nothing is kept back: a packet waits only while others are being read.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::PoisonError,
};

use rustix::io::{Errno, read, write};

use super::{
    Shared,
    counters::add,
    packet::{Expired, Header},
    runs::{self, Run},
    sys::Sender,
};

/// Packets of a batch at most.
const BATCH: usize = 64;
/// The largest packet, whatever MTU somebody gives the device.
const LARGEST: usize = 65_535;
/// Bytes of a batch at most: another packet is read while the largest fits. Room for 64 packets of 1500 bytes.
const BUFFER: usize = LARGEST + BATCH * 1500;

/// A batch of packets.
struct Batch {
    buffer: Vec<u8>,
    /// Where each ends; the first begins at zero, each other where the last ends.
    ends: Vec<usize>,
    runs: Vec<Run>,
}

/// Carries until the proxy ends.
///
/// # Errors
/// When the device is gone.
pub(super) fn run(shared: &Shared) -> io::Result<()> {
    let mut batch = Batch {
        buffer: vec![0; BUFFER],
        ends: Vec::with_capacity(BATCH),
        runs: Vec::with_capacity(BATCH),
    };
    let mut sender = Sender::with_capacity(BATCH);
    while !shared.is_ended() {
        let drained = batch.read(shared.tun.as_fd())?;
        batch.route(shared);
        send(shared, &mut sender, &batch);
        // Without asking again first: for single packets that would be one call in four.
        if drained {
            shared.wait(Some(shared.tun.as_fd()), None)?;
        }
    }
    Ok(())
}

impl Batch {
    /// Reads what there is and fits; whether that is all.
    fn read(&mut self, tun: BorrowedFd<'_>) -> io::Result<bool> {
        self.ends.clear();
        let mut start = 0;
        while self.ends.len() < BATCH && self.buffer.len() - start >= LARGEST {
            match read(tun, &mut self.buffer[start..]) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(true),
                Ok(length) => {
                    start += length;
                    self.ends.push(start);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    /// Decides on each packet, in their order.
    fn route(&mut self, shared: &Shared) {
        self.runs.clear();
        // Held while no call is made, but for answers to packets that lead nowhere.
        let routes = shared.routes.read();
        let routes = routes.unwrap_or_else(PoisonError::into_inner);
        let mut start = 0;
        for end in &self.ends {
            let bytes = start..*end;
            start = *end;
            let packet = &mut self.buffer[bytes.clone()];
            // IPv6 too, such as what the kernel says to its neighbours when the device comes up.
            let Some(header) = Header::read(packet) else {
                add(&shared.tally.malformed, 1);
                continue;
            };
            let Some(node) = routes.find(header.destination()) else {
                add(&shared.tally.no_route, 1);
                answer(shared, header, packet);
                continue;
            };
            match header.hop(packet) {
                Ok(()) => runs::add(&mut self.runs, bytes, node),
                // Without an answer, as upstream's proxy has none.
                Err(Expired) => add(&shared.tally.expired, 1),
            }
        }
    }
}

fn answer(shared: &Shared, header: Header, packet: &[u8]) {
    if let Some(answer) = header.net_unreachable(packet, shared.address)
        && write(&shared.tun, &answer).is_err()
    {
        add(&shared.tally.undelivered, 1);
    }
}

fn send(shared: &Shared, sender: &mut Sender, batch: &Batch) {
    let mut rest = &batch.runs[..];
    while let [first, others @ ..] = rest {
        match sender.send(shared.socket.as_fd(), &batch.buffer, rest, shared.port) {
            Ok(count) => {
                let (sent, unsent) = rest.split_at(count);
                count_sent(shared, sent);
                rest = unsent;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => {
                send_singly(shared, sender, batch, first);
                rest = others;
            }
        }
    }
}

/// The kernel cuts nothing where a device cannot finish checksums, where IPsec takes the packets, or where they are
/// larger than the path takes (`udp_send_skb` in net/ipv4/udp.c): what it did not send as a run may still go.
fn send_singly(shared: &Shared, sender: &mut Sender, batch: &Batch, run: &Run) {
    if run.packets() == 1 {
        add(&shared.tally.unsent, 1);
        return;
    }
    for single in run.split() {
        let single = std::slice::from_ref(&single);
        match sender.send(shared.socket.as_fd(), &batch.buffer, single, shared.port) {
            Ok(_) => count_sent(shared, single),
            Err(_) => add(&shared.tally.unsent, 1),
        }
    }
}

fn count_sent(shared: &Shared, runs: &[Run]) {
    add(
        &shared.tally.sent_packets,
        runs.iter().map(Run::packets).sum(),
    );
    add(
        &shared.tally.sent_bytes,
        runs.iter().map(|run| run.bytes.len()).sum(),
    );
}

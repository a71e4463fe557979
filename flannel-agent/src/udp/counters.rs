//! What the proxy counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

/// Packets of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// How many.
    pub packets: u64,
    /// Their bytes, IP headers included, UDP headers not.
    pub bytes: u64,
}

/// What the proxy has carried, and what not and why, since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Sent to other nodes.
    pub sent: Traffic,
    /// Received from other nodes.
    pub received: Traffic,
    /// Packets to addresses that no node has, answered by ICMP where the rules of ICMP allow it.
    pub no_route: u64,
    /// Packets whose time to live was used up.
    pub expired: u64,
    /// What is no IPv4 packet, from the device or in a datagram.
    pub malformed: u64,
    /// Packets that the kernel would not send to another node.
    pub unsent: u64,
    /// Packets that the device would not take.
    pub undelivered: u64,
    /// Errors in receiving.
    pub receive_errors: u64,
}

/// The counters as the threads add to them.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) sent_packets: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
    pub(super) received_packets: AtomicU64,
    pub(super) received_bytes: AtomicU64,
    pub(super) no_route: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) malformed: AtomicU64,
    pub(super) unsent: AtomicU64,
    pub(super) undelivered: AtomicU64,
    pub(super) receive_errors: AtomicU64,
}

impl Tally {
    pub(super) fn read(&self) -> Counters {
        Counters {
            sent: Traffic {
                packets: self.sent_packets.load(Relaxed),
                bytes: self.sent_bytes.load(Relaxed),
            },
            received: Traffic {
                packets: self.received_packets.load(Relaxed),
                bytes: self.received_bytes.load(Relaxed),
            },
            no_route: self.no_route.load(Relaxed),
            expired: self.expired.load(Relaxed),
            malformed: self.malformed.load(Relaxed),
            unsent: self.unsent.load(Relaxed),
            undelivered: self.undelivered.load(Relaxed),
            receive_errors: self.receive_errors.load(Relaxed),
        }
    }
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Relaxed);
}

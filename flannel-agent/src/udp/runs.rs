//! Which packets of a batch the kernel can send by one call: a run. Pure.
//!
//! The kernel cuts one buffer into datagrams of one size (`UDP_SEGMENT`, udp(7)), so packets of a run lie side by side,
//! go to one node, and are of one size; the last may be shorter. Packets are never taken out of their order, and each is
//! a datagram of its own on the wire.

use std::{net::Ipv4Addr, ops::Range};

/// Datagrams of one call at most (`UDP_MAX_SEGMENTS` of include/linux/udp.h before Linux 6.9, which allows more).
const MOST: usize = 64;

/// Bytes of one call at most: the largest datagram (`IP_MAX_MTU` less the headers of IPv4 and UDP).
const LARGEST: usize = 65_535 - 20 - 8;

/// Packets that go to one node by one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where they lie.
    pub bytes: Range<usize>,
    /// Bytes of each; the last may have fewer.
    pub size: usize,
    /// Where they go.
    pub node: Ipv4Addr,
}

impl Run {
    /// How many packets there are.
    pub fn packets(&self) -> usize {
        self.bytes.len().div_ceil(self.size)
    }

    /// Each packet as a run of its own.
    pub fn split(&self) -> impl Iterator<Item = Self> + use<'_> {
        self.bytes.clone().step_by(self.size).map(|start| {
            let bytes = start..(start + self.size).min(self.bytes.end);
            Self {
                size: bytes.len(),
                bytes,
                node: self.node,
            }
        })
    }

    /// Takes in a packet that follows, if it can.
    fn extend(&mut self, bytes: &Range<usize>, node: Ipv4Addr) -> bool {
        let fits = self.node == node
            && self.bytes.end == bytes.start
            && self.bytes.len().is_multiple_of(self.size)
            && bytes.len() <= self.size
            && self.packets() < MOST
            && self.bytes.len() + bytes.len() <= LARGEST;
        if fits {
            self.bytes.end = bytes.end;
        }
        fits
    }
}

/// Adds a packet of at least one byte to a batch.
pub fn add(runs: &mut Vec<Run>, bytes: Range<usize>, node: Ipv4Addr) {
    if let Some(last) = runs.last_mut()
        && last.extend(&bytes, node)
    {
        return;
    }
    runs.push(Run {
        size: bytes.len(),
        bytes,
        node,
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 100, number)
    }

    fn packets(runs: &[Run]) -> Vec<(Range<usize>, Ipv4Addr)> {
        let single = runs.iter().flat_map(Run::split);
        single.map(|run| (run.bytes, run.node)).collect()
    }

    proptest! {
        #[test]
        fn all_packets_are_sent_in_their_order_and_within_bounds(
            sizes in prop::collection::vec((prop::sample::select(vec![20, 52, 1472, 9000]), 1u8..3, prop::bool::weighted(0.1)), 0..200),
        ) {
            let mut runs = Vec::new();
            let mut given = Vec::new();
            let mut start = 0;
            for (size, to, gap) in sizes {
                // Something that was not sent lies between.
                start += usize::from(gap);
                given.push((start..start + size, node(to)));
                add(&mut runs, start..start + size, node(to));
                start += size;
            }
            prop_assert_eq!(packets(&runs), given);
            for run in runs {
                prop_assert!(run.packets() <= MOST && run.bytes.len() <= LARGEST);
                prop_assert_eq!(run.split().count(), run.packets());
            }
        }
    }

    #[test]
    fn alike_packets_to_one_node_are_one_run() {
        let mut runs = Vec::new();
        for index in 0..10 {
            add(&mut runs, index * 1472..(index + 1) * 1472, node(1));
        }
        add(&mut runs, 14_720..14_772, node(1)); // the last, shorter
        add(&mut runs, 14_772..14_824, node(1)); // none after that
        add(&mut runs, 14_824..14_876, node(2)); // another node
        let sizes: Vec<_> = runs.iter().map(|run| (run.packets(), run.size)).collect();
        assert_eq!(sizes, [(11, 1472), (1, 52), (1, 52)]);
    }
}

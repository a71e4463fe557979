//! The kernel's own counters in a namespace: protocols (`/proc/net/snmp`, `/proc/net/netstat`) and links
//! (`/proc/net/dev`).

use std::collections::BTreeMap;

use crate::{error::Result, netns::Netns};

/// Protocol counters by name, such as `Tcp.RetransSegs`, `TcpExt.TCPOFOQueue`, `TcpExt.TCPSACKReorder`,
/// `Udp.RcvbufErrors`, `Ip.InDiscards`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protocols(BTreeMap<String, i64>);

impl Protocols {
    /// Reads the counters of a namespace.
    ///
    /// # Errors
    /// If the files cannot be read.
    pub fn read(netns: &Netns) -> Result<Self> {
        let files = [
            netns.read("/proc/thread-self/net/snmp")?,
            netns.read("/proc/thread-self/net/netstat")?,
        ];
        Ok(Self(
            files
                .iter()
                .flat_map(|text| parse_protocols(text))
                .collect(),
        ))
    }

    /// One counter.
    ///
    /// # Panics
    /// If this kernel has no counter of that name: a misspelt name must not pass for zero.
    pub fn get(&self, name: &str) -> i64 {
        *self
            .0
            .get(name)
            .unwrap_or_else(|| panic!("the kernel has no counter {name}"))
    }

    /// What was counted after `earlier`, without the counters that stand still.
    pub fn since(&self, earlier: &Self) -> BTreeMap<String, i64> {
        let change = |(name, value): (&String, &i64)| {
            (name.clone(), value - earlier.0.get(name).unwrap_or(&0))
        };
        self.0
            .iter()
            .map(change)
            .filter(|(_, change)| *change != 0)
            .collect()
    }
}

/// Pairs of lines: `Tcp: RtoAlgorithm …` and `Tcp: 1 …`.
fn parse_protocols(text: &str) -> BTreeMap<String, i64> {
    let lines: Vec<_> = text.lines().collect();
    let mut counters = BTreeMap::new();
    for pair in lines.chunks_exact(2) {
        let (Some((protocol, names)), Some((_, values))) =
            (pair[0].split_once(':'), pair[1].split_once(':'))
        else {
            continue;
        };
        for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
            // IpExt's octets may exceed what a signed number holds; such a counter is of no use to a test.
            if let Ok(value) = value.parse() {
                counters.insert(format!("{protocol}.{name}"), value);
            }
        }
    }
    counters
}

/// Counters of one link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets received with an error.
    pub rx_errors: u64,
    /// Received packets that were dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets not sent because of an error.
    pub tx_errors: u64,
    /// Packets to be sent that were dropped.
    pub tx_dropped: u64,
}

/// The counters of all links of a namespace, by name.
///
/// # Errors
/// If the file cannot be read.
pub fn links(netns: &Netns) -> Result<BTreeMap<String, Link>> {
    Ok(parse_links(&netns.read("/proc/thread-self/net/dev")?))
}

fn parse_links(text: &str) -> BTreeMap<String, Link> {
    let line = |line: &str| {
        let (name, values) = line.split_once(':')?;
        let v: Vec<u64> = values
            .split_whitespace()
            .map_while(|value| value.parse().ok())
            .collect();
        let [
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            _,
            _,
            _,
            _,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
            ..,
        ] = v[..]
        else {
            return None;
        };
        let link = Link {
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
        };
        Some((name.trim().to_owned(), link))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocol_files() {
        let before = Protocols(parse_protocols(
            "Tcp: RetransSegs MaxConn\nTcp: 3 -1\nTcpExt: TCPOFOQueue\nTcpExt: 0\n",
        ));
        let after = Protocols(parse_protocols(
            "Tcp: RetransSegs MaxConn\nTcp: 5 -1\nTcpExt: TCPOFOQueue\nTcpExt: 0\n",
        ));
        assert_eq!(
            (before.get("Tcp.RetransSegs"), before.get("Tcp.MaxConn")),
            (3, -1)
        );
        assert_eq!(
            after.since(&before),
            BTreeMap::from([("Tcp.RetransSegs".to_owned(), 2)])
        );
    }

    #[test]
    fn link_file() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n \
            eth0: 100 2 3 4 0 0 0 0 500 6 7 8 0 0 0 0\n";
        let links = parse_links(text);
        assert_eq!(links.len(), 1);
        assert_eq!(
            (
                links["eth0"].rx_packets,
                links["eth0"].tx_bytes,
                links["eth0"].tx_dropped
            ),
            (2, 500, 8)
        );
    }
}

//! Traffic between pods, with a verdict: what was sent, what arrived, how it arrived.
//!
//! Own generators on plain sockets where the answer must be exact ([`udp`], [`tcp`], [`rtt`], [`icmp`], [`whoami`]); `ping` and
//! `iperf3` where the tool that operators know is the point ([`tools`]). A socket is opened inside the namespace and
//! used from ordinary threads. Nothing waits without a deadline, nothing spins.

pub mod icmp;
pub mod rtt;
pub mod tcp;
pub mod tools;
pub mod udp;
pub mod whoami;

use std::net::Ipv4Addr;

use crate::{
    netns::Netns,
    node::{Node, Pod},
};

/// Something with an address in a namespace: the end of a flow.
pub trait Host: Sync {
    /// Where its sockets are opened.
    fn netns(&self) -> &Netns;
    /// The address that peers send to.
    fn address(&self) -> Ipv4Addr;
}

impl Host for Pod {
    fn netns(&self) -> &Netns {
        self.netns()
    }

    fn address(&self) -> Ipv4Addr {
        self.address()
    }
}

impl Host for Node {
    fn netns(&self) -> &Netns {
        self.netns()
    }

    fn address(&self) -> Ipv4Addr {
        self.address()
    }
}

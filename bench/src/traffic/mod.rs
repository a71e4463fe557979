//! Traffic between pods, with a verdict: what was sent, what arrived, how it arrived.
//!
//! Own generators on plain sockets where the answer must be exact ([`udp`], [`tcp`], [`rtt`], [`icmp`], [`whoami`]); `ping` and
//! `iperf3` where the tool that operators know is the point ([`tools`]). A socket is opened inside the namespace and
//! used from ordinary threads. Nothing waits without a deadline, nothing spins.

pub mod icmp;
pub mod relay;
pub mod rtt;
pub(crate) mod server;
pub mod tcp;
pub mod tools;
pub mod udp;
pub mod whoami;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    netns::Netns,
    node::{Node, Pod},
};

/// Something with an address in a namespace: the end of a flow.
pub trait Host: Sync {
    /// Where its sockets are opened.
    fn netns(&self) -> &Netns;
    /// Its IPv4 address.
    fn address(&self) -> Ipv4Addr;
    /// The address that peers send to: the IPv4 address, unless this end is [`OverIpv6`].
    fn ip(&self) -> IpAddr {
        self.address().into()
    }
}

/// A host whose flows go over IPv6. Both ends of a flow must be such.
#[derive(Clone, Debug)]
pub struct OverIpv6 {
    netns: Netns,
    address: Ipv4Addr,
    address6: Ipv6Addr,
}

impl OverIpv6 {
    /// The pod, if it has an IPv6 address.
    pub fn pod(pod: &Pod) -> Option<Self> {
        pod.address6().map(|address6| Self {
            netns: pod.netns().clone(),
            address: pod.address(),
            address6,
        })
    }

    /// The node, if it has an IPv6 address.
    pub fn node(node: &Node) -> Option<Self> {
        node.address6().map(|address6| Self {
            netns: node.netns().clone(),
            address: node.address(),
            address6,
        })
    }
}

impl Host for OverIpv6 {
    fn netns(&self) -> &Netns {
        &self.netns
    }

    fn address(&self) -> Ipv4Addr {
        self.address
    }

    fn ip(&self) -> IpAddr {
        self.address6.into()
    }
}

/// All addresses of a family: what a socket is bound to that talks to `peer`.
pub(crate) fn any(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
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

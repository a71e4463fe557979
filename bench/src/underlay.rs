//! The network between the nodes: a switch, a second switch behind a router, and each node's `eth0`.
//!
//! One namespace plays the switches and the router: bridges `br0` (192.168.100.0/24) and `br1` (192.168.101.0/24), each
//! with the address .254, and forwarding between them. etcd listens on the first. In a dual-stack
//! cluster they have fd00:100::/64 and fd00:101::/64 too. Every cluster has namespaces of its own, so addresses and ports
//! are the same in all of them.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
};

use crate::{
    error::{Error, Result},
    netns::Netns,
    process,
};

/// The last host number: the router's.
const ROUTER: u8 = 254;

/// Where a node is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Segment {
    /// 192.168.100.0/24, with etcd and most nodes.
    #[default]
    First,
    /// 192.168.101.0/24, reached through the router only.
    Routed,
}

impl Segment {
    /// The address of node number `host` on this segment.
    pub fn address(self, host: u8) -> Ipv4Addr {
        match self {
            Self::First => Ipv4Addr::new(192, 168, 100, host),
            Self::Routed => Ipv4Addr::new(192, 168, 101, host),
        }
    }

    /// The router's address, and etcd's on the first segment.
    pub fn gateway(self) -> Ipv4Addr {
        self.address(ROUTER)
    }

    /// The IPv6 address of node number `host` on this segment, in a dual-stack cluster.
    pub fn address6(self, host: u8) -> Ipv6Addr {
        let network = match self {
            Self::First => 0x100,
            Self::Routed => 0x101,
        };
        Ipv6Addr::new(0xfd00, network, 0, 0, 0, 0, 0, host.into())
    }

    /// The router's IPv6 address.
    pub fn gateway6(self) -> Ipv6Addr {
        self.address6(ROUTER)
    }

    fn bridge(self) -> &'static str {
        match self {
            Self::First => "br0",
            Self::Routed => "br1",
        }
    }
}

/// Properties of all links between nodes and switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// MTU of the nodes' `eth0` and of the switch, in bytes.
    pub mtu: u32,
    /// Whether frames may be passed on as aggregates with unfinished checksums (TSO, GSO, GRO, checksum offload), as
    /// veth does by default. Without, each frame is on the wire as a real one would be.
    pub offloads: bool,
}

impl Default for Underlay {
    fn default() -> Self {
        Self {
            mtu: 1500,
            offloads: true,
        }
    }
}

/// Says what IPv6 does in a namespace from now on.
///
/// With, addresses serve at once (no duplicate detection), and nobody asks for or believes routers. Without, the kernel
/// sends no IPv6 packet of its own accord: a link gets no link-local address (mode 1), hence no duplicate detection, no
/// router solicitation and no multicast report.
pub(crate) fn set_ipv6(netns: &Netns, on: bool) -> Result<()> {
    if on {
        return enable_ipv6(netns);
    }
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return Ok(());
    }
    netns.sysctl(&[
        ("net/ipv6/conf/default/addr_gen_mode", "1"),
        ("net/ipv6/conf/all/addr_gen_mode", "1"),
    ])
}

fn enable_ipv6(netns: &Netns) -> Result<()> {
    const SETTINGS: [(&str, &str); 6] = [
        ("disable_ipv6", "0"),
        // Neighbour discovery of forwarded packets asks from the link-local address.
        ("addr_gen_mode", "0"),
        ("accept_dad", "0"),
        ("dad_transmits", "0"),
        ("accept_ra", "0"),
        ("router_solicitations", "0"),
    ];
    for whose in ["all", "default"] {
        for (name, value) in SETTINGS {
            netns.sysctl(&[(&format!("net/ipv6/conf/{whose}/{name}"), value)])?;
        }
    }
    Ok(())
}

/// Lets a namespace forward, as nodes and the router do.
pub(crate) fn set_forwarding(netns: &Netns, ipv6: bool) -> Result<()> {
    netns.sysctl(&[
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
    ])?;
    if ipv6 {
        netns.sysctl(&[
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv6/conf/default/forwarding", "1"),
        ])?;
    }
    Ok(())
}

/// Chooses whether a namespace shows bridged packets to iptables and ip6tables.
///
/// # Errors
/// If they are to be shown and the kernel has no bridge netfilter.
pub(crate) fn set_bridge_netfilter(netns: &Netns, on: bool) -> Result<()> {
    const SETTINGS: &str = "/proc/sys/net/bridge";
    if on && !Path::new(SETTINGS).exists() {
        // A module on most distributions; Kubernetes nodes load it at boot. Its absence is told below.
        process::run(None, "modprobe", &["br_netfilter"]).ok();
    }
    match (Path::new(SETTINGS).exists(), on) {
        (true, _) => {
            let value = if on { "1" } else { "0" };
            netns.sysctl(&[
                ("net/bridge/bridge-nf-call-iptables", value),
                ("net/bridge/bridge-nf-call-ip6tables", value),
            ])
        }
        (false, false) => Ok(()),
        (false, true) => Err(Error::Unsupported(
            "this kernel has no bridge netfilter: load the module br_netfilter, or build the cluster without".to_owned(),
        )),
    }
}

/// Makes the switch's namespace: bridges, addresses, forwarding.
pub(crate) fn build_switch(switch: &Netns, underlay: Underlay, ipv6: bool) -> Result<()> {
    set_ipv6(switch, ipv6)?;
    set_forwarding(switch, ipv6)?;
    // A switch does not show frames to netfilter.
    set_bridge_netfilter(switch, false)?;
    let mut batch = "link set lo up\n".to_owned();
    for segment in [Segment::First, Segment::Routed] {
        let (bridge, gateway, mtu) = (segment.bridge(), segment.gateway(), underlay.mtu);
        batch += &format!(
            "link add {bridge} mtu {mtu} type bridge forward_delay 0 mcast_snooping 0\n\
             address add {gateway}/24 dev {bridge}\n\
             link set {bridge} up\n"
        );
        if ipv6 {
            let gateway = segment.gateway6();
            batch += &format!("address add {gateway}/64 dev {bridge} nodad\n");
        }
    }
    ip_batch(switch, &batch)
}

/// Joins a node to its segment: `eth0` with address and default route in the node, a port named after the node on the
/// switch.
pub(crate) fn connect(
    switch: &Netns,
    node: &Netns,
    port: &str,
    segment: Segment,
    host: u8,
    underlay: Underlay,
    ipv6: bool,
) -> Result<()> {
    let (bridge, mtu) = (segment.bridge(), underlay.mtu);
    ip_batch(
        switch,
        &format!(
            "link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n\
             link set {port} master {bridge} up\n",
            node.name()
        ),
    )?;
    ip_batch(
        node,
        &format!(
            "link set lo up\n\
             address add {}/24 dev eth0\n\
             link set eth0 up\n\
             route add default via {}\n",
            segment.address(host),
            segment.gateway()
        ),
    )?;
    if ipv6 {
        let (address, gateway) = (segment.address6(host), segment.gateway6());
        ip_batch(
            node,
            &format!(
                "address add {address}/64 dev eth0 nodad\n\
                 route add default via {gateway}\n"
            ),
        )?;
    }
    if !underlay.offloads {
        disable_offloads(switch, port)?;
        disable_offloads(node, "eth0")?;
    }
    Ok(())
}

/// Turns off segmentation, aggregation and checksum offload of a link.
///
/// # Errors
/// If `ethtool` fails.
pub fn disable_offloads(netns: &Netns, link: &str) -> Result<()> {
    let features = ["tso", "off", "gso", "off", "gro", "off", "tx", "off"];
    set_features(netns, link, &features)
}

/// As [`disable_offloads`], but what is received is aggregated: as a network card does without knowing of tunnels, by
/// its driver's GRO.
///
/// # Errors
/// If `ethtool` fails.
pub fn aggregate_only(netns: &Netns, link: &str) -> Result<()> {
    let features = ["tso", "off", "gso", "off", "tx", "off", "gro", "on"];
    set_features(netns, link, &features)
}

/// Makes a veth's offloads what they are by default.
///
/// # Errors
/// If `ethtool` fails.
pub fn restore_offloads(netns: &Netns, link: &str) -> Result<()> {
    let features = ["tx", "on", "gso", "on", "tso", "on", "gro", "off"];
    set_features(netns, link, &features)
}

fn set_features(netns: &Netns, link: &str, features: &[&str]) -> Result<()> {
    process::run(Some(netns), "ethtool", &[&["-K", link], features].concat()).map(drop)
}

/// Runs several `ip` commands, one per line, in one process.
///
/// # Errors
/// The first command that fails ends the batch; the error names its line.
pub fn ip_batch(netns: &Netns, commands: &str) -> Result<()> {
    process::run_with_input(Some(netns), "ip", &["-batch", "-"], commands).map(drop)
}

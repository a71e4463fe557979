//! The udp backend's data path: real packets between the TUN devices of two nodes, and between a device and a plain socket,
//! which sees and sends what is on the wire.

mod life;
mod packets;

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    path::Path,
};

use flannel_agent::udp::{self, Counters, Options, Proxy};
use ipnet::Ipv4Net;
use lab::{Netns, underlay};
use rustix::net::sockopt;

use crate::support::{Outcome, PROMPT, eventually};
use packets::Wire;

/// A test.
pub(crate) type Test = fn() -> Outcome;

/// All tests of the data path.
pub(crate) const TESTS: &[(&str, Test)] = &[
    (
        "two_nodes_exchange_packets_of_every_size",
        packets::every_size,
    ),
    ("a_packet_is_a_datagram", || {
        packets::a_packet_is_a_datagram(Wire::Aggregates)
    }),
    ("a_packet_is_a_datagram_without_offloads", || {
        packets::a_packet_is_a_datagram(Wire::Frames)
    }),
    ("a_packet_is_a_datagram_on_a_narrow_path", || {
        packets::a_packet_is_a_datagram(Wire::Narrow)
    }),
    ("datagrams_are_packets", packets::datagrams_are_packets),
    ("no_route_is_answered_as_upstream_does", packets::no_route),
    ("time_to_live_ends_at_either_node", packets::time_to_live),
    ("garbage_is_ignored", packets::garbage),
    ("routes_change_at_once", life::routes_change),
    ("a_deleted_device_is_noticed", life::deleted_device),
    ("what_is_missing_is_named", life::missing),
    ("agents_carry_pods_and_mend_their_devices", life::agents),
];

/// A port of the nodes' own, for traffic inside the tunnel.
const PORT: u16 = 5000;
/// Length of the headers of IPv4 and UDP in bytes.
const HEADERS: usize = 28;

fn network() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 5, 0, 0), 16)
}

fn subnet(number: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 5, number, 0), 24)
}

/// A node's address in the flannel network.
fn inside(number: u8) -> Ipv4Addr {
    subnet(number).network()
}

/// A node's address on the link.
fn node(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 100, number)
}

/// Two namespaces, 1 and 2, with a link between them.
fn link(test: &str) -> anyhow::Result<[Netns; 2]> {
    let name = |number: u8| format!("udp-{}-{test}-{number}", std::process::id());
    let nodes = [Netns::create(&name(1))?, Netns::create(&name(2))?];
    // A device that comes up would speak of its own accord.
    if Path::new("/proc/sys/net/ipv6").exists() {
        for netns in &nodes {
            netns.sysctl(&[("net/ipv6/conf/default/disable_ipv6", "1")])?;
        }
    }
    let peer = nodes[1].name();
    underlay::ip_batch(
        &nodes[0],
        &format!("link add eth0 type veth peer name eth0 netns {peer}"),
    )?;
    for (number, netns) in (1..).zip(&nodes) {
        let address = node(number);
        let up = format!("link set lo up\naddress add {address}/24 dev eth0\nlink set eth0 up");
        underlay::ip_batch(netns, &up)?;
    }
    Ok(nodes)
}

fn options(number: u8) -> Options {
    Options {
        pattern: udp::DEVICE_PATTERN.into(),
        address: inside(number),
        bind: SocketAddrV4::new(node(number), udp::DEFAULT_PORT),
    }
}

/// Starts a node's proxy, with a route to the other node, and sets its device up.
fn start(netns: &Netns, number: u8) -> anyhow::Result<Proxy> {
    let proxy = netns.run(|| Proxy::start(&options(number)))??;
    let peer = 3 - number;
    proxy.set_routes([(subnet(peer), node(peer))].into_iter().collect());
    // As the agent sets it up.
    let (address, mtu, route) = (inside(number), 1472, network());
    let device = &proxy.device().name;
    underlay::ip_batch(
        netns,
        &format!(
            "address add {address}/32 dev {device}\n\
             link set {device} mtu {mtu} up\n\
             route add {route} dev {device}"
        ),
    )?;
    Ok(proxy)
}

fn socket(netns: &Netns, address: Ipv4Addr, port: u16) -> anyhow::Result<UdpSocket> {
    const BUFFER: usize = 8 << 20;
    let socket = netns.run(|| UdpSocket::bind((address, port)))??;
    socket.set_read_timeout(Some(PROMPT))?;
    sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)?;
    Ok(socket)
}

fn wait_counters(proxy: &Proxy, what: &str, met: impl Fn(&Counters) -> bool) -> Outcome {
    eventually(what, PROMPT, || {
        let counters = proxy.counters();
        Ok(met(&counters)
            .then_some(())
            .ok_or_else(|| format!("{counters:?}")))
    })
}

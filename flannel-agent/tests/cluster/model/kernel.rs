//! What the kernel has, by iproute2; and which changes it tells of.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::Context;
use flannel_agent::kernel::netlink::{Payload, messages};
use ipnet::IpNet;
use lab::{netns::Netns, process};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    address::AddressAttribute,
    link::LinkAttribute,
    neighbour::NeighbourState,
    route::{RouteHeader, RouteProtocol, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use serde_json::Value;

use super::world::{Objects, device};

const READ: &str = "ip -j route show table main; echo; ip -j -6 route show table main; echo; \
    ip -j neigh show nud permanent; echo; bridge -j fdb show; echo; ip -j -d addr show";

/// Whether an address is of the flannel networks.
fn is_pods(address: &IpAddr) -> bool {
    let networks = ["10.5.0.0/16", "fd00:5::/48"];
    networks
        .iter()
        .any(|net| net.parse::<IpNet>().is_ok_and(|net| net.contains(address)))
}

/// All that is there: what is of flannel's form, and routes, neighbours and FDB entries that are not, as text.
pub(crate) fn read(netns: &Netns) -> anyhow::Result<(Objects, BTreeSet<String>)> {
    let output = process::run(Some(netns), "sh", &["-c", READ])?;
    let lists = output.lines().filter(|line| !line.is_empty());
    let lists: Vec<Value> = lists
        .map(|line| serde_json::from_str(line).context("output of ip -json"))
        .collect::<Result<_, _>>()?;
    let list = |index: usize| {
        lists
            .get(index)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    let mut objects = Objects::default();
    let mut others = BTreeSet::new();
    for route in list(0).chain(list(1)) {
        let text = |name: &str| route[name].as_str().unwrap_or_default();
        // ip does not print what is `boot`, nor IPv4's metric of 0.
        let boot = text("protocol").is_empty();
        let own_metric = route["metric"].as_u64().is_none_or(|metric| metric == 1024);
        let onlink = route["flags"]
            .as_array()
            .is_some_and(|flags| flags.contains(&"onlink".into()));
        let destination = prefix(text("dst"));
        match (destination, text("gateway").parse::<IpAddr>()) {
            (Some(destination), Ok(gateway)) if boot && own_metric => {
                objects
                    .routes
                    .insert((destination, gateway, text("dev").to_owned(), onlink));
            }
            _ if text("protocol") == "kernel" || text("dst") == "default" => {}
            _ => drop(others.insert(format!("route {} {}", text("dst"), text("dev")))),
        }
    }
    for neighbour in list(2) {
        let text = |name: &str| neighbour[name].as_str().unwrap_or_default();
        let (device, mac) = (text("dev").to_owned(), text("lladdr").to_owned());
        match text("dst").parse() {
            Ok(address) if device.starts_with("flannel") => {
                objects.neighbours.insert((device, address, mac));
            }
            _ => drop(others.insert(format!("neighbour {} {device} {mac}", text("dst")))),
        }
    }
    for entry in list(3) {
        let text = |name: &str| entry[name].as_str().unwrap_or_default();
        if let Ok(node) = text("dst").parse()
            && text("state") == "permanent"
        {
            objects
                .fdb
                .insert((text("ifname").to_owned(), text("mac").to_owned(), node));
        }
    }
    for link in list(4) {
        let name = link["ifname"].as_str().unwrap_or_default();
        if name.starts_with("flannel") {
            objects.devices.insert(tunnel(name, link));
        }
    }
    Ok((objects, others))
}

/// A destination: `ip` prints a host without its length.
fn prefix(text: &str) -> Option<IpNet> {
    text.parse()
        .ok()
        .or_else(|| Some(text.parse::<IpAddr>().ok()?.into()))
}

fn tunnel(name: &str, link: &Value) -> String {
    let data = &link["linkinfo"]["info_data"];
    let is_up = link["flags"]
        .as_array()
        .is_some_and(|flags| flags.contains(&"UP".into()));
    let local = ["local", "local6"]
        .into_iter()
        .find_map(|key| data[key].as_str()?.parse().ok());
    let addresses = link["addr_info"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|address| {
            let ip: IpAddr = address["local"].as_str()?.parse().ok()?;
            IpNet::new(ip, address["prefixlen"].as_u64()?.try_into().ok()?).ok()
        });
    let addresses: Vec<IpNet> = addresses.filter(|net| is_pods(&net.addr())).collect();
    let mtu = link["mtu"].as_u64().unwrap_or_default() as u32;
    match local {
        Some(local)
            if is_up
                && data["id"] == 1
                && data["link"] == super::UPLINK
                && data["learning"] == false =>
        {
            device(name, mtu, local, &addresses)
        }
        _ => format!("{name} up {is_up} mtu {mtu} {data} {addresses:?}"),
    }
}

/// The MACs of the tunnel devices, as leases spell them.
pub(crate) fn macs(netns: &Netns) -> anyhow::Result<Vec<String>> {
    let output = process::run(Some(netns), "ip", &["-j", "link", "show"])?;
    let links: Vec<Value> = serde_json::from_str(&output)?;
    let tunnels = links.iter().filter(|link| {
        let name = link["ifname"].as_str().unwrap_or_default();
        name.starts_with("flannel")
    });
    Ok(tunnels
        .filter_map(|link| Some(link["address"].as_str()?.to_owned()))
        .collect())
}

/// Hears what changes among objects of flannel's form.
pub(crate) struct Monitor(Socket);

impl Monitor {
    pub(crate) fn open(netns: &Netns) -> anyhow::Result<Self> {
        // RTNLGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE
        const GROUPS: [u32; 6] = [1, 3, 5, 7, 9, 11];
        netns.run(|| {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            socket.set_non_blocking(true)?;
            rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 8 << 20)?;
            for group in GROUPS {
                socket.add_membership(group)?;
            }
            Ok(Self(socket))
        })?
    }

    /// What has changed since the last call.
    pub(crate) fn changes(&self) -> anyhow::Result<Vec<String>> {
        let mut changes = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.0.recv(&mut &mut buffer[..], 0) {
                Ok(read) => {
                    changes.extend(messages(&buffer[..read]).filter_map(
                        |(_, payload)| match payload {
                            Ok(Payload::Answer(Some(message))) => change(&message),
                            _ => None,
                        },
                    ))
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(changes),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The message as text, if it is about an object of flannel's form.
fn change(message: &Message) -> Option<String> {
    let ours = match message {
        Message::NewRoute(route) | Message::DelRoute(route) => {
            let header = &route.header;
            header.protocol == RouteProtocol::Boot
                && header.table == RouteHeader::RT_TABLE_MAIN
                && header.kind == RouteType::Unicast
                && header.destination_prefix_length > 0
        }
        Message::NewNeighbour(neighbour) | Message::DelNeighbour(neighbour) => {
            u16::from(neighbour.header.state) & u16::from(NeighbourState::Permanent) != 0
        }
        Message::NewLink(link) | Message::DelLink(link) => {
            // IPv6 tells of its own settings by this message too.
            let named = link.attributes.iter().any(
                |attribute| matches!(attribute, LinkAttribute::IfName(name) if name.starts_with("flannel")),
            );
            named && link.header.interface_family == AddressFamily::Unspec
        }
        Message::NewAddress(address) | Message::DelAddress(address) => {
            address.attributes.iter().any(
                |attribute| matches!(attribute, AddressAttribute::Address(address) if is_pods(address)),
            )
        }
        _ => false,
    };
    ours.then(|| format!("{message:?}"))
}

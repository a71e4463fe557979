//! Reads the kernel's state: dumps of links, addresses, routes, neighbours and FDB, and route look-ups.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressMessage,
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
    neighbour::NeighbourMessage,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
};

use super::{
    decode::{self, Neighbour},
    netlink::{Error, Netlink},
    objects::{Link, Observed},
};

/// How the kernel reaches an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Index of the outgoing interface.
    pub device: u32,
    /// The gateway; absent when the address is on the link.
    pub gateway: Option<Ipv4Addr>,
    /// The source address that the kernel would choose.
    pub source: Option<Ipv4Addr>,
    /// Whether the address is one of this node's own.
    pub local: bool,
}

/// All interfaces, by index.
///
/// # Errors
/// When the dump fails.
pub fn links(netlink: &mut Netlink) -> Result<BTreeMap<u32, Link>, Error> {
    let mut message = LinkMessage::default();
    // Statistics are half of a link's message and of no use here.
    message
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let answers = netlink.dump(&RouteNetlinkMessage::GetLink(message))?;
    Ok(answers
        .iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some(decode::link(message)),
            _ => None,
        })
        .map(|link| (link.index, link))
        .collect())
}

/// All IPv4 addresses, by interface index, in the kernel's order.
///
/// # Errors
/// When the dump fails.
pub fn addresses(netlink: &mut Netlink) -> Result<BTreeMap<u32, Vec<Ipv4Net>>, Error> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    let mut addresses: BTreeMap<u32, Vec<Ipv4Net>> = BTreeMap::new();
    for answer in netlink.dump(&RouteNetlinkMessage::GetAddress(message))? {
        if let RouteNetlinkMessage::NewAddress(message) = &answer
            && let Some((index, net)) = decode::address(message)
        {
            addresses.entry(index).or_default().push(net);
        }
    }
    Ok(addresses)
}

/// Reads the routes of the main table into `observed`.
///
/// # Errors
/// When the dump fails; `observed` is then unchanged.
pub fn routes(netlink: &mut Netlink, observed: &mut Observed) -> Result<(), Error> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message
        .attributes
        .push(RouteAttribute::Table(RouteHeader::RT_TABLE_MAIN.into()));
    let answers = netlink.dump(&RouteNetlinkMessage::GetRoute(message))?;
    observed.routes.clear();
    for answer in &answers {
        if let RouteNetlinkMessage::NewRoute(message) = answer
            && let Some((destination, route)) = decode::route(message)
        {
            // The kernel lists the one that it uses first.
            observed.routes.entry(destination).or_insert(route);
        }
    }
    Ok(())
}

/// Reads neighbours and FDB entries of the interface with index `device` into `observed`.
///
/// # Errors
/// When a dump fails; `observed` is then unchanged.
pub fn neighbours(
    netlink: &mut Netlink,
    device: u32,
    observed: &mut Observed,
) -> Result<(), Error> {
    let mut answers = dump_neighbours(netlink, AddressFamily::Inet, device)?;
    answers.extend(dump_neighbours(netlink, AddressFamily::Bridge, device)?);
    observed.neighbours.clear();
    observed.fdb.clear();
    for answer in &answers {
        let RouteNetlinkMessage::NewNeighbour(message) = answer else {
            continue;
        };
        match decode::neighbour(message) {
            Some((index, Neighbour::Address(address, entry))) if index == device => {
                observed.neighbours.insert(address, entry);
            }
            Some((index, Neighbour::Fdb(mac, entry))) if index == device => {
                observed.fdb.insert(mac, entry);
            }
            _ => {}
        }
    }
    Ok(())
}

fn dump_neighbours(
    netlink: &mut Netlink,
    family: AddressFamily,
    device: u32,
) -> Result<Vec<RouteNetlinkMessage>, Error> {
    use netlink_packet_route::neighbour::NeighbourAttribute;

    let mut message = NeighbourMessage::default();
    message.header.family = family;
    if family == AddressFamily::Bridge {
        // An FDB dump takes its device from the header, a neighbour dump from the attribute (net/core/rtnetlink.c
        // `valid_fdb_dump_strict`, net/core/neighbour.c `neigh_valid_dump_req`).
        message.header.ifindex = device;
    } else {
        message.attributes.push(NeighbourAttribute::IfIndex(device));
    }
    netlink.dump(&RouteNetlinkMessage::GetNeighbour(message))
}

/// How the kernel reaches each of `targets`; absent for what it does not reach.
///
/// # Errors
/// When the socket fails.
pub fn hops(netlink: &mut Netlink, targets: &[Ipv4Addr]) -> Result<Vec<Option<Hop>>, Error> {
    let requests = targets
        .iter()
        .map(|target| {
            let mut message = RouteMessage::default();
            message.header.address_family = AddressFamily::Inet;
            message.header.destination_prefix_length = 32;
            message
                .attributes
                .push(RouteAttribute::Destination(RouteAddress::Inet(*target)));
            (RouteNetlinkMessage::GetRoute(message), 0)
        })
        .collect();
    let results = netlink.exchange(requests)?;
    Ok(results
        .into_iter()
        .map(|result| match result.ok()?.pop()? {
            RouteNetlinkMessage::NewRoute(message) => hop(&message),
            _ => None,
        })
        .collect())
}

fn hop(message: &RouteMessage) -> Option<Hop> {
    let mut hop = Hop {
        device: 0,
        gateway: None,
        source: None,
        local: message.header.kind == RouteType::Local,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => hop.device = *index,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => hop.gateway = Some(*address),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => hop.source = Some(*address),
            // An IPv6 gateway for an IPv4 route: not on the link, and no next hop that the fast path could use.
            RouteAttribute::Via(_) => return None,
            _ => {}
        }
    }
    (hop.device != 0).then_some(hop)
}

/// The interface of the first default route of the main table, as upstream chooses.
///
/// # Errors
/// When the dump fails.
pub fn default_route_device(netlink: &mut Netlink) -> Result<Option<u32>, Error> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message
        .attributes
        .push(RouteAttribute::Table(RouteHeader::RT_TABLE_MAIN.into()));
    let answers = netlink.dump(&RouteNetlinkMessage::GetRoute(message))?;
    Ok(answers.iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(message)
            if message.header.destination_prefix_length == 0
                && message.header.kind == RouteType::Unicast =>
        {
            message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
                    _ => None,
                })
        }
        _ => None,
    }))
}

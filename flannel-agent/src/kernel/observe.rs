//! Reads the kernel's state: dumps of links, addresses, routes, neighbours and FDB, and route look-ups.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressMessage,
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
    neighbour::NeighbourMessage,
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteType},
};

use super::{
    apply::{address_family, route_address},
    decode::{self, Neighbour},
    netlink::{Error, Netlink},
    objects::{Link, Observed, Route},
};
use crate::family::Family;

/// How the kernel reaches an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Index of the outgoing interface.
    pub device: u32,
    /// The gateway; absent when the address is on the link.
    pub gateway: Option<IpAddr>,
    /// The source address that the kernel would choose.
    pub source: Option<IpAddr>,
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

/// All addresses, by interface index, the most suitable first, those of one suitability in the kernel's order.
///
/// # Errors
/// When the dump fails.
pub fn addresses(netlink: &mut Netlink) -> Result<BTreeMap<u32, Vec<IpNet>>, Error> {
    let mut addresses: Vec<decode::Address> = netlink
        .dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?
        .iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => decode::address(message),
            _ => None,
        })
        .collect();
    addresses.sort_by_key(|address| address.rank);
    let mut by_index: BTreeMap<u32, Vec<IpNet>> = BTreeMap::new();
    for address in addresses {
        by_index.entry(address.index).or_default().push(address.net);
    }
    Ok(by_index)
}

/// A request for the routes of the main table.
fn main_table(family: Family) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message
        .attributes
        .push(RouteAttribute::Table(RouteHeader::RT_TABLE_MAIN.into()));
    RouteNetlinkMessage::GetRoute(message)
}

/// Reads the routes of the main table of these families into `observed`.
///
/// # Errors
/// When a dump fails; `observed` is then unchanged.
pub fn routes(
    netlink: &mut Netlink,
    families: impl IntoIterator<Item = Family>,
    observed: &mut Observed,
) -> Result<(), Error> {
    let mut routes = BTreeMap::new();
    for family in families {
        let of_family = netlink.collect(
            &main_table(family),
            |routes: &mut BTreeMap<IpNet, Route>, answer| {
                if let RouteNetlinkMessage::NewRoute(message) = answer
                    && let Some((destination, route)) = decode::route(&message)
                {
                    // The kernel lists the one that it uses first.
                    routes.entry(destination).or_insert(route);
                }
            },
        )?;
        routes.extend(of_family);
    }
    observed.routes = routes;
    Ok(())
}

/// Reads neighbours and FDB entries of the interfaces with these indices into `observed`.
///
/// # Errors
/// When a dump fails; `observed` is then unchanged.
pub fn neighbours(
    netlink: &mut Netlink,
    devices: impl IntoIterator<Item = (Family, u32)>,
    observed: &mut Observed,
) -> Result<(), Error> {
    let mut neighbours = BTreeMap::new();
    let mut fdb = BTreeMap::new();
    for (family, device) in devices {
        for family in [address_family(family), AddressFamily::Bridge] {
            let found = netlink.collect(
                &neighbours_of(family, device),
                |found: &mut Vec<Neighbour>, answer| {
                    if let RouteNetlinkMessage::NewNeighbour(message) = answer
                        && let Some((index, neighbour)) = decode::neighbour(&message)
                        && index == device
                    {
                        found.push(neighbour);
                    }
                },
            )?;
            for neighbour in found {
                match neighbour {
                    Neighbour::Address(address, entry) => {
                        neighbours.insert((device, address), entry);
                    }
                    Neighbour::Fdb(mac, entry) => {
                        fdb.insert((device, mac), entry);
                    }
                }
            }
        }
    }
    observed.neighbours = neighbours;
    observed.fdb = fdb;
    Ok(())
}

fn neighbours_of(family: AddressFamily, device: u32) -> RouteNetlinkMessage {
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
    RouteNetlinkMessage::GetNeighbour(message)
}

/// How the kernel reaches each of `targets`; absent for what it does not reach.
///
/// # Errors
/// When the socket fails.
pub fn hops(netlink: &mut Netlink, targets: &[IpAddr]) -> Result<Vec<Option<Hop>>, Error> {
    let requests = targets.iter().map(|target| {
        let family = Family::of(*target);
        let mut message = RouteMessage::default();
        message.header.address_family = address_family(family);
        message.header.destination_prefix_length = family.bits();
        message
            .attributes
            .push(RouteAttribute::Destination(route_address(*target)));
        (RouteNetlinkMessage::GetRoute(message), 0)
    });
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
            RouteAttribute::Gateway(address) => hop.gateway = decode::ip(address),
            RouteAttribute::PrefSource(address) => hop.source = decode::ip(address),
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
pub fn default_route_device(netlink: &mut Netlink, family: Family) -> Result<Option<u32>, Error> {
    netlink.collect(&main_table(family), |device: &mut Option<u32>, answer| {
        if let RouteNetlinkMessage::NewRoute(message) = answer
            && message.header.address_family == address_family(family)
            && message.header.destination_prefix_length == 0
            && message.header.kind == RouteType::Unicast
        {
            *device = device.or_else(|| {
                message
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        RouteAttribute::Oif(index) => Some(*index),
                        RouteAttribute::MultiPath(hops) => {
                            hops.first().map(|hop| hop.interface_index)
                        }
                        _ => None,
                    })
            });
        }
    })
}

//! rtnetlink messages into the values of `objects`. Pure; used for dumps and for events alike.

use std::net::{IpAddr, Ipv4Addr};

use flannel_common::addr::Mac;
use ipnet::Ipv4Net;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressMessage},
    link::{
        InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
        LinkMessage, LinkXdp, XdpAttached,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol,
        RouteType,
    },
};

use super::objects::{Entry, Link, LinkKind, Route, VxlanAttributes};

/// The address in a link-layer attribute, if it is Ethernet's.
pub fn mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok().map(Mac)
}

/// An interface.
pub fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        master: None,
        peer: None,
        kind: LinkKind::Other,
    };
    let mut peer_index = None;
    let mut peer_namespace = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = mac(bytes),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::Link(index) => peer_index = Some(*index),
            LinkAttribute::LinkNetNsId(id) => peer_namespace = Some(*id),
            LinkAttribute::LinkInfo(infos) => link.kind = link_kind(infos),
            _ => {}
        }
    }
    link.peer = peer_index.map(|index| (index, peer_namespace));
    link
}

/// Whether an XDP program is attached to an interface.
pub fn runs_xdp(message: &LinkMessage) -> bool {
    message.attributes.iter().any(|attribute| {
        let LinkAttribute::Xdp(attributes) = attribute else {
            return false;
        };
        attributes
            .iter()
            .any(|one| matches!(one, LinkXdp::Attached(attached) if *attached != XdpAttached::None))
    })
}

fn link_kind(infos: &[LinkInfo]) -> LinkKind {
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Veth) => return LinkKind::Veth,
            LinkInfo::Data(InfoData::Vxlan(attributes)) => {
                return LinkKind::Vxlan(vxlan(attributes));
            }
            _ => {}
        }
    }
    LinkKind::Other
}

fn vxlan(attributes: &[InfoVxlan]) -> VxlanAttributes {
    let mut vxlan = VxlanAttributes::default();
    for attribute in attributes {
        match attribute {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Link(index) => vxlan.parent = Some(*index),
            InfoVxlan::Local(address) => vxlan.local = Some(*address),
            InfoVxlan::Group(_) | InfoVxlan::Group6(_) => vxlan.has_group = true,
            InfoVxlan::L2Miss(on) => vxlan.l2miss = *on,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Gbp => vxlan.gbp = true,
            InfoVxlan::Learning(on) => vxlan.learning = *on,
            _ => {}
        }
    }
    vxlan
}

/// An IPv4 address with its prefix, and the index of its interface.
pub fn address(message: &AddressMessage) -> Option<(u32, Ipv4Net)> {
    if message.header.family != AddressFamily::Inet {
        return None;
    }
    // IFA_LOCAL is the interface's own address; on point-to-point links IFA_ADDRESS is the other end's.
    let find = |own: bool| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) if own => Some(*address),
                AddressAttribute::Address(IpAddr::V4(address)) if !own => Some(*address),
                _ => None,
            })
    };
    let address = find(true).or_else(|| find(false))?;
    let net = Ipv4Net::new(address, message.header.prefix_len).ok()?;
    Some((message.header.index, net))
}

/// A unicast IPv4 route of the main table with metric and TOS 0 and one next hop; others are none of the agent's.
pub fn route(message: &RouteMessage) -> Option<(Ipv4Net, Route)> {
    let header = &message.header;
    if header.address_family != AddressFamily::Inet
        || header.kind != RouteType::Unicast
        || header.tos != 0
        || header.table != RouteHeader::RT_TABLE_MAIN
    {
        return None;
    }
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let mut gateway = None;
    let mut device = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Priority(metric) if *metric != 0 => return None,
            _ => {}
        }
    }
    let destination = Ipv4Net::new(destination, header.destination_prefix_length).ok()?;
    let route = Route {
        gateway,
        device: device?,
        onlink: header.flags.contains(RouteFlags::Onlink),
        boot: header.protocol == RouteProtocol::Boot,
    };
    Some((destination, route))
}

/// A neighbour or an FDB entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// An IPv4 neighbour.
    Address(Ipv4Addr, Entry<Mac>),
    /// A unicast FDB entry that leads to an IPv4 node.
    Fdb(Mac, Entry<Ipv4Addr>),
}

/// A neighbour or FDB entry with the index of its interface.
pub fn neighbour(message: &NeighbourMessage) -> Option<(u32, Neighbour)> {
    let mut address = None;
    let mut link_layer = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(*ip),
            // For AF_BRIDGE the decoder cannot know the destination's family from the header.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                address = <[u8; 4]>::try_from(bytes.as_slice())
                    .ok()
                    .map(Ipv4Addr::from);
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => link_layer = mac(bytes),
            _ => {}
        }
    }
    // A set of bits: `bridge fdb add … permanent` adds NUD_NOARP.
    let permanent = u16::from(message.header.state) & u16::from(NeighbourState::Permanent) != 0;
    let entry = match message.header.family {
        AddressFamily::Inet => Neighbour::Address(
            address?,
            Entry {
                value: link_layer.unwrap_or_default(),
                permanent,
            },
        ),
        AddressFamily::Bridge => Neighbour::Fdb(
            link_layer.filter(is_unicast)?,
            Entry {
                value: address?,
                permanent,
            },
        ),
        _ => return None,
    };
    Some((message.header.ifindex, entry))
}

/// Whether the address belongs to one station: neither a group nor zero.
pub fn is_unicast(mac: &Mac) -> bool {
    mac.0[0] & 1 == 0 && *mac != Mac::default()
}

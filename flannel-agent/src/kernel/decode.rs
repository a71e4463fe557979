//! rtnetlink messages into the values of `objects`. Pure; used for dumps and for events alike.

use std::net::IpAddr;

use flannel_common::addr::Mac;
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{
        InfoData, InfoIpTunnel, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo,
        LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol,
        RouteType,
    },
};

use super::objects::{Entry, IpipAttributes, Link, LinkKind, Route, VxlanAttributes};
use crate::family::is_link_local;

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
            // Other kinds of tunnels have attributes of the same form.
            LinkInfo::Data(InfoData::IpTunnel(attributes))
                if infos.contains(&LinkInfo::Kind(InfoKind::IpIp)) =>
            {
                return LinkKind::Ipip(ipip(attributes));
            }
            LinkInfo::Data(InfoData::Vxlan(attributes)) => {
                return LinkKind::Vxlan(vxlan(attributes));
            }
            _ => {}
        }
    }
    LinkKind::Other
}

fn ipip(attributes: &[InfoIpTunnel]) -> IpipAttributes {
    let mut ipip = IpipAttributes::default();
    // Zeros stand for none.
    let given = |address: &IpAddr| Some(*address).filter(|address| !address.is_unspecified());
    for attribute in attributes {
        match attribute {
            InfoIpTunnel::Local(address) => ipip.local = given(address),
            InfoIpTunnel::Remote(address) => ipip.remote = given(address),
            _ => {}
        }
    }
    ipip
}

fn vxlan(attributes: &[InfoVxlan]) -> VxlanAttributes {
    let mut vxlan = VxlanAttributes::default();
    for attribute in attributes {
        match attribute {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Link(index) => vxlan.parent = Some(*index),
            InfoVxlan::Local(address) => vxlan.local = Some((*address).into()),
            InfoVxlan::Local6(address) => vxlan.local = Some((*address).into()),
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

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the interface.
    pub index: u32,
    /// The address with its prefix.
    pub net: IpNet,
    /// How little it suits to stand for the interface, as upstream orders them: link-local ones last, dynamic ones after
    /// permanent ones, temporary ones after others; deprecated ones after all.
    pub rank: u8,
}

/// An address of either family.
pub fn address(message: &AddressMessage) -> Option<Address> {
    // IFA_LOCAL is the interface's own address; on point-to-point links IFA_ADDRESS is the other end's.
    let find = |own: bool| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Local(address) if own => Some(*address),
                AddressAttribute::Address(address) if !own => Some(*address),
                _ => None,
            })
    };
    let address = find(true).or_else(|| find(false))?;
    let flags = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Flags(flags) => Some(*flags),
            _ => None,
        })
        .unwrap_or(AddressFlags::Permanent);
    // For IPv4 the same bit means "secondary", which upstream does not look at.
    let temporary = address.is_ipv6() && flags.contains(AddressFlags::Secondary);
    let criteria = [
        flags.contains(AddressFlags::Deprecated),
        is_link_local(address),
        !flags.contains(AddressFlags::Permanent),
        temporary,
    ];
    Some(Address {
        index: message.header.index,
        net: IpNet::new(address, message.header.prefix_len).ok()?,
        rank: criteria
            .into_iter()
            .fold(0, |rank, criterion| rank << 1 | u8::from(criterion)),
    })
}

/// Metric of IPv6 routes unless another is asked for: `IP6_RT_PRIO_USER` (include/uapi/linux/ipv6_route.h).
const IPV6_METRIC: u32 = 1024;

/// A unicast route of the main table with TOS 0, the default metric and one next hop; others are none of the agent's.
pub fn route(message: &RouteMessage) -> Option<(IpNet, Route)> {
    let header = &message.header;
    let (anywhere, default_metric) = match header.address_family {
        AddressFamily::Inet => (IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0),
        AddressFamily::Inet6 => (IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), IPV6_METRIC),
        _ => return None,
    };
    if header.kind != RouteType::Unicast
        || header.tos != 0
        || header.table != RouteHeader::RT_TABLE_MAIN
    {
        return None;
    }
    let mut destination = anywhere;
    let mut gateway = None;
    let mut device = None;
    let mut metric = 0;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    if metric != default_metric {
        return None;
    }
    let destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
    let route = Route {
        gateway,
        device: device?,
        onlink: header.flags.contains(RouteFlags::Onlink),
        boot: header.protocol == RouteProtocol::Boot,
    };
    Some((destination, route))
}

/// Whether a route is one that no node can be behind: to groups, or to link-local addresses, as the kernel makes them for
/// every interface that comes up.
pub fn leads_to_no_node(message: &RouteMessage) -> bool {
    let to_all = matches!(
        message.header.kind,
        RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast
    );
    to_all
        || message.attributes.iter().any(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => address.is_multicast(),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                address.is_multicast() || address.is_unicast_link_local()
            }
            _ => false,
        })
}

/// The address in a route message.
pub fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// A neighbour or an FDB entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// A neighbour.
    Address(IpAddr, Entry<Mac>),
    /// A unicast FDB entry that leads to a node.
    Fdb(Mac, Entry<IpAddr>),
}

/// A neighbour or FDB entry with the index of its interface.
pub fn neighbour(message: &NeighbourMessage) -> Option<(u32, Neighbour)> {
    let mut address = None;
    let mut link_layer = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(destination) => {
                address = neighbour_address(destination);
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => link_layer = mac(bytes),
            _ => {}
        }
    }
    // A set of bits: `bridge fdb add … permanent` adds NUD_NOARP.
    let permanent = u16::from(message.header.state) & u16::from(NeighbourState::Permanent) != 0;
    let neighbour = match message.header.family {
        AddressFamily::Inet | AddressFamily::Inet6 => Neighbour::Address(
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
    Some((message.header.ifindex, neighbour))
}

fn neighbour_address(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(ip) => Some((*ip).into()),
        NeighbourAddress::Inet6(ip) => Some((*ip).into()),
        // For AF_BRIDGE the decoder cannot know the destination's family from the header.
        NeighbourAddress::Other(bytes) => <[u8; 4]>::try_from(bytes.as_slice())
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
            .ok(),
        _ => None,
    }
}

/// Whether the address belongs to one station: neither a group nor zero.
pub fn is_unicast(mac: &Mac) -> bool {
    mac.0[0] & 1 == 0 && *mac != Mac::default()
}

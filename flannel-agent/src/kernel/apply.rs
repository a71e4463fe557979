//! Carries out what `diff` decided.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
};

use flannel_common::addr::Mac;
use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol,
        RouteScope, RouteType,
    },
};

use super::{
    diff::{LinkOp, Op},
    netlink::{Error, Netlink, Request},
    objects::{Route, VxlanDevice},
};

/// Carries out one change to a device.
///
/// # Errors
/// When the kernel refuses.
pub fn link(netlink: &mut Netlink, op: &LinkOp) -> Result<(), Error> {
    let request = match op {
        LinkOp::Delete(index, ..) => (RouteNetlinkMessage::DelLink(link_message(*index)), 0),
        LinkOp::Create(device) => create(device),
        LinkOp::SetLearning(index, on) => {
            let mut message = link_message(*index);
            message
                .attributes
                .push(vxlan_info(vec![InfoVxlan::Learning(*on)]));
            (RouteNetlinkMessage::NewLink(message), 0)
        }
        LinkOp::SetMtu(index, mtu) => {
            let mut message = link_message(*index);
            message.attributes.push(LinkAttribute::Mtu(*mtu));
            (RouteNetlinkMessage::NewLink(message), 0)
        }
        LinkOp::SetUp(index) => {
            let mut message = link_message(*index);
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
            (RouteNetlinkMessage::NewLink(message), 0)
        }
        LinkOp::AddAddress(index, address) => {
            let message = address_message(*index, Ipv4Net::from(*address));
            (
                RouteNetlinkMessage::NewAddress(message),
                NLM_F_CREATE | NLM_F_EXCL,
            )
        }
        LinkOp::RemoveAddress(index, net) => (
            RouteNetlinkMessage::DelAddress(address_message(*index, *net)),
            0,
        ),
    };
    netlink.exchange(vec![request])?.remove(0).map(drop)
}

fn link_message(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn vxlan_info(attributes: Vec<InfoVxlan>) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vxlan),
        LinkInfo::Data(InfoData::Vxlan(attributes)),
    ])
}

fn create(device: &VxlanDevice) -> Request {
    let mut info = vec![
        InfoVxlan::Id(device.vni),
        InfoVxlan::Link(device.parent),
        InfoVxlan::Local(device.local),
        InfoVxlan::Learning(device.learning),
        InfoVxlan::UDPZeroCsumTX(false),
        InfoVxlan::UDPZeroCsumRX(false),
    ];
    if device.port > 0 {
        info.push(InfoVxlan::Port(device.port));
    }
    if device.gbp {
        info.push(InfoVxlan::Gbp);
    }
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(device.name.clone()),
        // Chosen before creation, so that udev and NetworkManager see a device whose address is already set.
        LinkAttribute::Address(device.mac.0.to_vec()),
        LinkAttribute::Mtu(device.mtu),
        LinkAttribute::TxQueueLen(0),
        vxlan_info(info),
    ];
    (
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

fn address_message(index: u32, net: Ipv4Net) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(net.addr())),
        AddressAttribute::Address(IpAddr::V4(net.addr())),
    ];
    message
}

/// Carries out all of `ops`, in order; `vtep` is the index of the VXLAN device. One result per operation.
///
/// # Errors
/// When the socket fails; then nothing is known about the operations.
pub fn peers(
    netlink: &mut Netlink,
    ops: &[Op],
    vtep: Option<u32>,
) -> Result<Vec<Result<(), Error>>, Error> {
    // Operations on neighbours and FDB only arise when there is a VXLAN device.
    let vtep = vtep.unwrap_or_default();
    let requests = ops.iter().map(|op| request(op, vtep)).collect();
    let results = netlink.exchange(requests)?;
    Ok(results
        .into_iter()
        .zip(ops)
        .map(|(result, op)| match result {
            // What was to be removed is not there: somebody was faster.
            Err(error) if removes(op) && is_absent(&error) => Ok(()),
            other => other.map(drop),
        })
        .collect())
}

fn removes(op: &Op) -> bool {
    matches!(
        op,
        Op::RemoveRoute(..) | Op::RemoveFdb(..) | Op::RemoveNeighbour(..)
    )
}

fn is_absent(error: &Error) -> bool {
    matches!(error.errno(), Some(libc::ENOENT | libc::ESRCH))
}

fn request(op: &Op, vtep: u32) -> Request {
    const SET: u16 = NLM_F_CREATE | NLM_F_REPLACE;
    match *op {
        Op::SetNeighbour(address, mac) => (
            RouteNetlinkMessage::NewNeighbour(neighbour(vtep, address, Some(mac))),
            SET,
        ),
        Op::RemoveNeighbour(address) => (
            RouteNetlinkMessage::DelNeighbour(neighbour(vtep, address, None)),
            0,
        ),
        Op::SetFdb(mac, node) => (RouteNetlinkMessage::NewNeighbour(fdb(vtep, mac, node)), SET),
        Op::RemoveFdb(mac, node) => (RouteNetlinkMessage::DelNeighbour(fdb(vtep, mac, node)), 0),
        Op::SetRoute(destination, route) => (
            RouteNetlinkMessage::NewRoute(route_message(destination, route)),
            SET,
        ),
        Op::RemoveRoute(destination, route) => (
            RouteNetlinkMessage::DelRoute(route_message(destination, route)),
            0,
        ),
    }
}

fn neighbour(device: u32, address: Ipv4Addr, mac: Option<Mac>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = device;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message
        .attributes
        .push(NeighbourAttribute::Destination(NeighbourAddress::Inet(
            address,
        )));
    message
        .attributes
        .extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())));
    message
}

fn fdb(device: u32, mac: Mac, node: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = device;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet(node)),
    ];
    message
}

fn route_message(destination: Ipv4Net, route: Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    if route.onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    message
        .attributes
        .push(RouteAttribute::Destination(RouteAddress::Inet(
            destination.network(),
        )));
    message.attributes.extend(
        route
            .gateway
            .map(|gateway| RouteAttribute::Gateway(RouteAddress::Inet(gateway))),
    );
    message.attributes.push(RouteAttribute::Oif(route.device));
    message
}

/// A sysctl of the calling process's network namespace: `net/ipv6/conf/flannel.1/accept_ra`.
///
/// # Errors
/// When it does not exist or cannot be read.
pub fn read_sysctl(path: &str) -> io::Result<String> {
    fs::read_to_string(sysctl_file(path)).map(|text| text.trim_end().to_owned())
}

/// Sets a sysctl.
///
/// # Errors
/// When it does not exist or refuses the value.
pub fn write_sysctl(path: &str, value: &str) -> io::Result<()> {
    fs::write(sysctl_file(path), value)
}

/// `/proc/sys/net` shows the network namespace of the process that opens it, unlike `/sys/class/net`.
fn sysctl_file(path: &str) -> std::path::PathBuf {
    std::path::Path::new("/proc/sys").join(path)
}

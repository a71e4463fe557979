//! Carries out what `diff` decided.

use std::{fs, io, net::IpAddr};

use flannel_common::addr::Mac;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, IpProtocol, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{
        InfoData, InfoIpTunnel, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo,
        LinkMessage,
    },
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
    objects::{Route, TunnelDevice, TunnelKind},
};
use crate::family::{Family, host};

/// Where the manifests of `deploy/` mount the host's `/proc/sys`, as far as it is about networks.
const MOUNTED_SYSCTLS: &str = "/host/proc/sys";

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
            let mut message = address_message(*index, host(*address));
            // Nobody else can have it, and duplicate address detection would take a second.
            message.header.flags = AddressHeaderFlags::Nodad;
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

/// Whether the kernel has devices of a kind, or a module that has. Makes none: the request lacks what the kind needs, so
/// that the kernel must refuse it, and how it does tells.
///
/// # Errors
/// When the socket fails.
pub fn has_kind(netlink: &mut Netlink, kind: &TunnelKind) -> Result<bool, Error> {
    let info = match kind {
        // vxlan_validate (drivers/net/vxlan): EINVAL without attributes.
        TunnelKind::Vxlan(_) => vec![LinkInfo::Kind(InfoKind::Vxlan)],
        // ipip_tunnel_validate (net/ipv4/ipip.c): EINVAL for a protocol that it cannot carry.
        TunnelKind::Ipip => vec![
            LinkInfo::Kind(InfoKind::IpIp),
            LinkInfo::Data(InfoData::IpTunnel(vec![InfoIpTunnel::Protocol(
                IpProtocol::Raw,
            )])),
        ],
        // tun_validate (drivers/net/tun.c): EOPNOTSUPP always. `udp::tun::check` asks in another way.
        TunnelKind::Tun => return Ok(true),
    };
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::LinkInfo(info)];
    let request = (
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    );
    let result = netlink.exchange(vec![request])?.remove(0);
    Ok(result.map_or_else(|error| error.errno() != Some(libc::EOPNOTSUPP), |_| true))
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

fn create(device: &TunnelDevice) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(device.name.clone()),
        LinkAttribute::Mtu(device.mtu),
    ];
    match &device.kind {
        TunnelKind::Vxlan(options) => {
            let mut info = vec![
                InfoVxlan::Id(options.vni),
                InfoVxlan::Link(device.parent),
                match device.local {
                    IpAddr::V4(local) => InfoVxlan::Local(local),
                    IpAddr::V6(local) => InfoVxlan::Local6(local),
                },
                InfoVxlan::Learning(options.learning),
                InfoVxlan::UDPZeroCsumTX(false),
                InfoVxlan::UDPZeroCsumRX(false),
            ];
            if options.port > 0 {
                info.push(InfoVxlan::Port(options.port));
            }
            if options.gbp {
                info.push(InfoVxlan::Gbp);
            }
            message.attributes.extend([
                // Chosen before creation, so that udev and NetworkManager see a device whose address is already set.
                LinkAttribute::Address(options.mac.0.to_vec()),
                LinkAttribute::TxQueueLen(0),
                vxlan_info(info),
            ]);
        }
        TunnelKind::Ipip => message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::IpIp),
            LinkInfo::Data(InfoData::IpTunnel(vec![InfoIpTunnel::Local(device.local)])),
        ])),
        // The kernel makes these for the process that is to hold them and refuses this; the next pass has another proxy.
        TunnelKind::Tun => message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Tun)])),
    }
    (
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// The family as netlink numbers it.
pub(super) const fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn address_message(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = address_family(Family::of_net(&net));
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![
        AddressAttribute::Local(net.addr()),
        AddressAttribute::Address(net.addr()),
    ];
    message
}

/// Carries out all of `ops`, in order. One result per operation.
///
/// # Errors
/// When the socket fails; then nothing is known about the operations.
pub fn peers(netlink: &mut Netlink, ops: &[Op]) -> Result<Vec<Result<(), Error>>, Error> {
    let mut results = netlink.exchange(ops.iter().map(request))?;
    for (result, op) in results.iter_mut().zip(ops) {
        if let (Err(error), Op::SetRoute(destination, route)) = (&*result, op)
            && error.errno() == Some(libc::EINVAL)
            && route.onlink
            && matches!(destination, IpNet::V6(_))
        {
            *result = take_over(netlink, *destination, *route)?;
        }
    }
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

/// Sets a route whose gateway lies in its own destination, where a route to that destination leads through another device:
/// IPv6 wants the gateway on the route's own (net/ipv6/route.c, `ip6_route_check_nh_onlink`). So first one without gateway
/// takes the place of the other; there is a route at any time.
fn take_over(
    netlink: &mut Netlink,
    destination: IpNet,
    route: Route,
) -> Result<Result<Vec<RouteNetlinkMessage>, Error>, Error> {
    let bare = Route {
        gateway: None,
        onlink: false,
        ..route
    };
    let steps = [bare, route].map(|route| request(&Op::SetRoute(destination, route)));
    let mut results = netlink.exchange(steps)?;
    let last = results.swap_remove(1);
    if last.is_err() && results[0].is_ok() {
        // Nobody would know the bare one for ours.
        netlink.exchange([request(&Op::RemoveRoute(destination, bare))])?;
    }
    Ok(last)
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

/// The request that carries out an operation.
pub fn request(op: &Op) -> Request {
    const SET: u16 = NLM_F_CREATE | NLM_F_REPLACE;
    match *op {
        Op::SetNeighbour(device, address, mac) => (
            RouteNetlinkMessage::NewNeighbour(neighbour(device, address, Some(mac))),
            SET,
        ),
        Op::RemoveNeighbour(device, address) => (
            RouteNetlinkMessage::DelNeighbour(neighbour(device, address, None)),
            0,
        ),
        Op::SetFdb(device, mac, node) => (
            RouteNetlinkMessage::NewNeighbour(fdb(device, mac, node)),
            SET,
        ),
        Op::RemoveFdb(device, mac, node) => {
            (RouteNetlinkMessage::DelNeighbour(fdb(device, mac, node)), 0)
        }
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

fn neighbour_address(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }
}

fn neighbour(device: u32, address: IpAddr, mac: Option<Mac>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(Family::of(address));
    message.header.ifindex = device;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message
        .attributes
        .push(NeighbourAttribute::Destination(neighbour_address(address)));
    message
        .attributes
        .extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())));
    message
}

fn fdb(device: u32, mac: Mac, node: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = device;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
        NeighbourAttribute::Destination(neighbour_address(node)),
    ];
    message
}

/// An address in a route message.
pub(super) const fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

fn route_message(destination: IpNet, route: Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(Family::of_net(&destination));
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
        .push(RouteAttribute::Destination(route_address(
            destination.network(),
        )));
    message.attributes.extend(
        route
            .gateway
            .map(|gateway| RouteAttribute::Gateway(route_address(gateway))),
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

/// `/proc/sys/net` shows the network namespace of the process that opens it, unlike `/sys/class/net`. In a container it
/// cannot be written, so the manifests mount it once more.
fn sysctl_file(path: &str) -> std::path::PathBuf {
    let mounted = std::path::Path::new(MOUNTED_SYSCTLS).join(path);
    if mounted.exists() {
        return mounted;
    }
    std::path::Path::new("/proc/sys").join(path)
}

//! Blackhole routes for the node's own subnets: packets for addresses that no pod has end here, instead of following the
//! default route (`--ip-blackhole-route`).
//!
//! Upstream adds such a route with the default metric (`pkg/ip/iface.go`, `AddBlackholeV4Route`). Beside the bridge's
//! connected route to the same prefix the kernel refuses that, and a bridge that comes later is hidden by it, so that no
//! pod is reached. Ours has the worst metric there is: a connected route and every route to a single pod go before it,
//! whichever came first. The metric also says that it is ours.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
};

use super::netlink::{Error, Netlink, Request};
use crate::family::{Family, PerFamily};

/// Metric of the agent's blackhole routes.
pub const METRIC: u32 = u32::MAX;
/// Metric of upstream's: what the kernel takes for none (`IP6_RT_PRIO_USER`, include/uapi/linux/ipv6_route.h).
const UPSTREAM_METRICS: [u32; 2] = [0, 1024];
/// Index of the loopback device, which is where IPv6 has its blackhole routes.
const LOOPBACK: u32 = 1;

/// A blackhole route of the main table that `ip route add` or flannel has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blackhole {
    /// What it takes.
    pub destination: IpNet,
    /// Its metric.
    pub metric: u32,
}

/// A change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Add the agent's route for a prefix.
    Add(IpNet),
    /// Remove a route.
    Remove(Blackhole),
}

impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Add(net) => write!(f, "add blackhole route {net}"),
            Self::Remove(route) => write!(f, "remove blackhole route {}", route.destination),
        }
    }
}

/// What makes the routes that are there those that are wanted: the agent's to `wanted` and no other, and none of
/// upstream's to `own`, the subnets that the node has or has had.
pub fn diff(wanted: &PerFamily<IpNet>, own: &[IpNet], present: &[Blackhole]) -> Vec<Op> {
    let is_wanted = |route: &Blackhole| {
        route.metric == METRIC && wanted.values().any(|net| *net == route.destination)
    };
    let is_flannels = |route: &Blackhole| {
        route.metric == METRIC
            || (UPSTREAM_METRICS.contains(&route.metric) && own.contains(&route.destination))
    };
    let missing = wanted.values().filter(|net| {
        !present
            .iter()
            .any(|route| is_wanted(route) && route.destination == **net)
    });
    let stale = present
        .iter()
        .filter(|route| is_flannels(route) && !is_wanted(route));
    // Additions first: there is no moment without.
    missing
        .map(|net| Op::Add(*net))
        .chain(stale.map(|route| Op::Remove(*route)))
        .collect()
}

/// All blackhole routes of either family in the main table.
///
/// # Errors
/// When a dump fails.
pub fn read(netlink: &mut Netlink) -> Result<Vec<Blackhole>, Error> {
    let mut found = Vec::new();
    for family in Family::ALL {
        let mut message = message(address_family(family));
        message
            .attributes
            .push(RouteAttribute::Table(RouteHeader::RT_TABLE_MAIN.into()));
        for answer in netlink.dump(&RouteNetlinkMessage::GetRoute(message))? {
            if let RouteNetlinkMessage::NewRoute(message) = &answer {
                found.extend(decode(family, message));
            }
        }
    }
    Ok(found)
}

/// Carries out all of `ops`, in order. One result per operation.
///
/// # Errors
/// When the socket fails; then nothing is known about the operations.
pub fn apply(netlink: &mut Netlink, ops: &[Op]) -> Result<Vec<Result<(), Error>>, Error> {
    let results = netlink.exchange(ops.iter().map(request))?;
    Ok(results.into_iter().map(|result| result.map(drop)).collect())
}

fn decode(family: Family, message: &RouteMessage) -> Option<Blackhole> {
    let header = &message.header;
    if header.address_family != address_family(family)
        || header.kind != RouteType::BlackHole
        || header.protocol != RouteProtocol::Boot
        || header.table != RouteHeader::RT_TABLE_MAIN
    {
        return None;
    }
    let mut destination = None;
    let mut metric = 0;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => destination = Some((*ip).into()),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => {
                destination = Some((*ip).into());
            }
            RouteAttribute::Priority(value) => metric = *value,
            _ => {}
        }
    }
    Some(Blackhole {
        destination: IpNet::new(destination?, header.destination_prefix_length).ok()?,
        metric,
    })
}

fn request(op: &Op) -> Request {
    let (destination, metric) = match op {
        Op::Add(net) => (*net, METRIC),
        Op::Remove(route) => (route.destination, route.metric),
    };
    let family = Family::of_net(&destination);
    let mut message = message(address_family(family));
    message.header.destination_prefix_length = destination.prefix_len();
    message.attributes = vec![
        RouteAttribute::Destination(match destination.network() {
            IpAddr::V4(address) => RouteAddress::Inet(address),
            IpAddr::V6(address) => RouteAddress::Inet6(address),
        }),
        RouteAttribute::Priority(metric),
    ];
    match op {
        Op::Add(_) => (
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_EXCL,
        ),
        Op::Remove(_) => {
            // IPv6 does not compare the type of what it removes, but the device.
            if family == Family::V6 {
                message.attributes.push(RouteAttribute::Oif(LOOPBACK));
            }
            (RouteNetlinkMessage::DelRoute(message), 0)
        }
    }
}

fn message(family: AddressFamily) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = RouteType::BlackHole;
    message.header.scope = RouteScope::Universe;
    message
}

const fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn route(destination: &str, metric: u32) -> Blackhole {
        Blackhole {
            destination: net(destination),
            metric,
        }
    }

    #[test]
    fn the_own_subnets_route_is_there_and_no_other_of_flannels() {
        let wanted = PerFamily {
            v4: Some(net("10.5.9.0/24")),
            v6: Some(net("fd00:5:0:9::/64")),
        };
        let own: Vec<IpNet> = wanted.values().copied().collect();
        let present = [
            route("10.5.9.0/24", 0),          // upstream's
            route("10.5.7.0/24", METRIC),     // of a former subnet
            route("10.5.8.0/24", 0),          // somebody else's
            route("fd00:5:0:9::/64", METRIC), // as it should be
            route("fd00:5:0:9::/64", 1024),   // upstream's
            route("fd00:5:0:8::/64", 1024),   // somebody else's
            route("fd00:5:0:9::/64", 7),      // somebody else's
        ];
        let [stale_v4, former, _, kept, stale_v6, ..] = present;
        assert_eq!(
            diff(&wanted, &own, &present),
            [
                Op::Add(net("10.5.9.0/24")),
                Op::Remove(stale_v4),
                Op::Remove(former),
                Op::Remove(stale_v6),
            ]
        );
        assert_eq!(
            diff(&PerFamily::default(), &own, &present),
            [stale_v4, former, kept, stale_v6].map(Op::Remove)
        );
        let settled = [route("10.5.9.0/24", METRIC), kept];
        assert!(diff(&wanted, &own, &settled).is_empty());
    }
}

//! Plans and devices of all backends, held against what flanneld was recorded to write. Here: the recorded topology.

mod extension;
mod host_gw;
mod ipip;
mod plan;
mod udp;
mod vxlan;

use proptest::prelude::*;

use super::{plan::peer_route, *};
use crate::{
    fastpath::PeerRoute,
    kernel::objects::{Desired, Route, TunnelKind, VxlanOptions},
};

const VTEP: u32 = 3;
const VTEP_V6: u32 = 4;
const UPLINK: u32 = 2;
const IPIP: u32 = 5;

fn config(backend: &str) -> NetworkConfig {
    let json = format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#);
    NetworkConfig::parse(json.as_bytes()).unwrap()
}

fn dual_config(backend: &str) -> NetworkConfig {
    let json = format!(
        r#"{{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{backend}}}"#
    );
    NetworkConfig::parse(json.as_bytes()).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn both<T>(v4: T, v6: T) -> PerFamily<T> {
    PerFamily {
        v4: Some(v4),
        v6: Some(v6),
    }
}

fn uplink() -> Uplink {
    let addresses = both(ip("192.168.100.1"), ip("fd00:100::1"));
    Uplink {
        index: UPLINK,
        name: "eth0".into(),
        mtu: 1500,
        addresses,
        public: addresses,
    }
}

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

fn lease(subnet: &str, node: &str, backend: BackendData) -> Lease {
    Lease {
        subnets: PerFamily::v4(subnet.parse().unwrap()),
        attributes: Attributes {
            addresses: PerFamily::v4(ip(node)),
            backend,
        },
    }
}

fn vtep(last: u8) -> Vtep {
    Vtep {
        vni: Some(1),
        mac: mac(last),
    }
}

fn vxlan_lease(subnet: &str, node: &str, last: u8) -> Lease {
    lease(subnet, node, BackendData::Vxlan(PerFamily::v4(vtep(last))))
}

fn host_gw_lease(subnet: &str, node: &str) -> Lease {
    lease(subnet, node, BackendData::HostGw)
}

/// The recorded topology: .100.2 on the link, .101.3 behind the router .100.254.
fn hops() -> BTreeMap<IpAddr, Option<Hop>> {
    let hop = |gateway| {
        Some(Hop {
            device: UPLINK,
            gateway,
            source: None,
            local: false,
        })
    };
    BTreeMap::from([
        (ip("192.168.100.2"), hop(None)),
        (ip("192.168.101.3"), hop(Some(ip("192.168.100.254")))),
        (ip("fd00:100::2"), hop(None)),
        (ip("fd00:101::3"), hop(Some(ip("fd00:100::fe")))),
    ])
}

fn facts<'a>(
    config: &'a NetworkConfig,
    uplink: &'a Uplink,
    hops: &'a BTreeMap<IpAddr, Option<Hop>>,
) -> Facts<'a> {
    let tunnels = match config.backend {
        Backend::Vxlan(_) => both(VTEP, VTEP_V6),
        Backend::Ipip(_) => PerFamily::v4(IPIP),
        _ => PerFamily::default(),
    };
    let own = both("10.5.9.0/24", "fd00:5:0:9::/64").map(|_, net| net.parse().unwrap());
    Facts {
        config,
        subnets: own.filter_map(|family, net| config.pools.get(family).map(|_| *net)),
        uplink,
        tunnels,
        hops,
    }
}

fn keyed(leases: &[Lease]) -> Vec<(String, &Lease)> {
    (0..).map(|n: u32| format!("{n:03}")).zip(leases).collect()
}

/// The plan, and what the fast path gets of it.
fn plan_with(
    config: &NetworkConfig,
    hops: &BTreeMap<IpAddr, Option<Hop>>,
    leases: &[Lease],
) -> (Plan, Vec<PeerRoute>) {
    let uplink = uplink();
    let facts = facts(config, &uplink, hops);
    let keyed = keyed(leases);
    let plan = Plan::new(
        &facts,
        keyed.iter().map(|(key, lease)| (key.as_str(), *lease)),
    );
    let routes = keyed
        .iter()
        .flat_map(|(key, lease)| Family::ALL.map(|family| (key, *lease, family)))
        .filter(|(key, _, family)| plan.problem(key, *family).is_none())
        .filter_map(|(_, lease, family)| {
            let route = plan.desired.routes.get(lease.subnets.get(family)?)?;
            peer_route(&facts, lease, family, route)
        })
        .collect();
    (plan, routes)
}

fn plan_for(
    backend: &str,
    hops: &BTreeMap<IpAddr, Option<Hop>>,
    leases: &[Lease],
) -> (Plan, Vec<PeerRoute>) {
    plan_with(&config(backend), hops, leases)
}

fn via_vtep(gateway: &str) -> Route {
    let gateway = ip(gateway);
    Route {
        gateway: Some(gateway),
        device: if gateway.is_ipv4() { VTEP } else { VTEP_V6 },
        onlink: true,
        boot: true,
    }
}

fn via_uplink(gateway: &str) -> Route {
    Route {
        gateway: Some(ip(gateway)),
        device: UPLINK,
        onlink: false,
        boot: true,
    }
}

fn routes<const N: usize>(routes: [(&str, Route); N]) -> BTreeMap<IpNet, Route> {
    routes
        .map(|(net, route)| (net.parse().unwrap(), route))
        .into()
}

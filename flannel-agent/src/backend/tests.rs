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

#[test]
fn vxlan_demands_what_flanneld_was_recorded_to_write() {
    let leases = [
        vxlan_lease("10.5.11.0/24", "192.168.100.2", 2),
        vxlan_lease("10.5.60.0/24", "192.168.101.3", 3),
    ];
    let (plan, peers) = plan_for(r#"{"Type":"vxlan"}"#, &BTreeMap::new(), &leases);
    assert_eq!(
        plan.desired,
        Desired {
            neighbours: BTreeMap::from([
                ((VTEP, ip("10.5.11.0")), mac(2)),
                ((VTEP, ip("10.5.60.0")), mac(3)),
            ]),
            fdb: BTreeMap::from([
                ((VTEP, mac(2)), ip("192.168.100.2")),
                ((VTEP, mac(3)), ip("192.168.101.3")),
            ]),
            routes: routes([
                ("10.5.11.0/24", via_vtep("10.5.11.0")),
                ("10.5.60.0/24", via_vtep("10.5.60.0")),
            ]),
        }
    );
    assert!(
        peers.is_empty(),
        "without known hops the fast path gets no peer"
    );
}

#[test]
fn dual_stack_demands_what_flanneld_was_recorded_to_write() {
    let mut lease = vxlan_lease("10.5.62.0/24", "192.168.100.2", 2);
    lease.subnets.v6 = Some("fd00:5:0:1e::/64".parse().unwrap());
    lease.attributes.addresses.v6 = Some(ip("fd00:100::2"));
    lease.attributes.backend = BackendData::Vxlan(both(vtep(2), vtep(6)));
    let single = vxlan_lease("10.5.63.0/24", "192.168.101.3", 3);
    let config = dual_config(r#"{"Type":"vxlan"}"#);
    let (plan, peers) = plan_with(&config, &hops(), &[lease, single]);
    assert_eq!(
        plan.desired,
        Desired {
            neighbours: BTreeMap::from([
                ((VTEP, ip("10.5.62.0")), mac(2)),
                ((VTEP, ip("10.5.63.0")), mac(3)),
                ((VTEP_V6, ip("fd00:5:0:1e::")), mac(6)),
            ]),
            fdb: BTreeMap::from([
                ((VTEP, mac(2)), ip("192.168.100.2")),
                ((VTEP, mac(3)), ip("192.168.101.3")),
                ((VTEP_V6, mac(6)), ip("fd00:100::2")),
            ]),
            routes: routes([
                ("10.5.62.0/24", via_vtep("10.5.62.0")),
                ("10.5.63.0/24", via_vtep("10.5.63.0")),
                ("fd00:5:0:1e::/64", via_vtep("fd00:5:0:1e::")),
            ]),
        }
    );
    assert!(plan.problems.is_empty());
    assert_eq!(peers.len(), 3);
}

#[test]
fn direct_routing_is_decided_per_peer() {
    let leases = [
        vxlan_lease("10.5.62.0/24", "192.168.100.2", 2),
        vxlan_lease("10.5.47.0/24", "192.168.101.3", 3),
    ];
    let (plan, peers) = plan_for(r#"{"Type":"vxlan","DirectRouting":true}"#, &hops(), &leases);
    assert_eq!(
        plan.desired.routes,
        routes([
            ("10.5.62.0/24", via_uplink("192.168.100.2")),
            ("10.5.47.0/24", via_vtep("10.5.47.0"))
        ])
    );
    assert_eq!(
        plan.desired.fdb,
        BTreeMap::from([((VTEP, mac(3)), ip("192.168.101.3"))])
    );
    assert_eq!(plan.desired.neighbours.len(), 1);
    let next_hops: Vec<_> = peers
        .iter()
        .map(|route| (route.next_hop, route.vtep_mac))
        .collect();
    assert_eq!(
        next_hops,
        [
            (ip("192.168.100.2"), None),
            (ip("192.168.100.254"), Some(mac(3)))
        ]
    );
}

#[test]
fn host_gw_leaves_out_peers_behind_a_router_and_says_so() {
    let leases = [
        host_gw_lease("10.5.97.0/24", "192.168.100.2"),
        host_gw_lease("10.5.52.0/24", "192.168.101.3"),
    ];
    let (plan, peers) = plan_for(r#"{"Type":"host-gw"}"#, &hops(), &leases);
    assert_eq!(
        plan.desired.routes,
        routes([("10.5.97.0/24", via_uplink("192.168.100.2"))])
    );
    assert!(plan.desired.fdb.is_empty() && plan.desired.neighbours.is_empty());
    let problem = plan.problem("001", Family::V4).unwrap();
    assert!(problem.reason.contains("192.168.100.254"));
    assert_eq!(peers.len(), 1);
}

#[test]
fn a_lease_that_makes_no_sense_here_affects_no_other() {
    let good = vxlan_lease("10.5.11.0/24", "192.168.100.2", 2);
    for (bad, reason) in [
        (
            host_gw_lease("10.5.12.0/24", "192.168.100.3"),
            "BackendType is \"host-gw\"",
        ),
        (
            vxlan_lease("10.5.9.128/25", "192.168.100.3", 3),
            "overlaps this node's",
        ),
        (
            vxlan_lease("10.0.0.0/8", "192.168.100.3", 3),
            "overlaps this node's",
        ),
        (
            vxlan_lease("192.168.100.0/24", "192.168.100.3", 3),
            "contains the node address 192.168.100.3",
        ),
        (
            vxlan_lease("192.168.100.0/24", "1.2.3.4", 3),
            "contains the node address 192.168.100.1",
        ),
        (
            vxlan_lease("10.5.12.0/24", "192.168.100.3", 2),
            "VtepMAC 02:00:00:00:00:02 is also that of 192.168.100.2",
        ),
        (
            vxlan_lease("10.5.11.0/24", "192.168.100.3", 3),
            "another lease has the same subnet",
        ),
    ] {
        let (alone, routes) = plan_for(r#"{"Type":"vxlan"}"#, &hops(), std::slice::from_ref(&good));
        let (both, both_routes) = plan_for(r#"{"Type":"vxlan"}"#, &hops(), &[good.clone(), bad]);
        assert_eq!(both.desired, alone.desired, "{reason}");
        assert_eq!(both_routes, routes, "{reason}");
        let problem = &both.problem("001", Family::V4).unwrap().reason;
        assert!(problem.contains(reason), "{problem}");
    }
}

#[test]
fn of_subnets_that_begin_at_one_address_the_first_has_the_neighbour() {
    let leases = [
        vxlan_lease("10.5.2.0/23", "192.168.100.3", 3),
        vxlan_lease("10.5.2.0/24", "192.168.100.2", 2),
    ];
    let hops = hops();
    let config = config(r#"{"Type":"vxlan"}"#);
    let uplink = uplink();
    let facts = facts(&config, &uplink, &hops);
    let mut plan = Plan::new(&facts, [("a", &leases[0]), ("b", &leases[1])]);
    let neighbours = |plan: &Plan| plan.desired.neighbours.clone();
    let only = |last| BTreeMap::from([((VTEP, ip("10.5.2.0")), mac(last))]);
    assert_eq!(neighbours(&plan), only(3));
    assert!(plan.problem("b", Family::V4).is_some());
    // When the first goes, all are planned anew.
    assert!(plan.replace(&facts, "a", Some(&leases[0]), None).is_none());
    let plan = Plan::new(&facts, [("b", &leases[1])]);
    assert_eq!(neighbours(&plan), only(2));
}

#[test]
fn a_peer_that_leaves_by_another_interface_is_not_for_the_fast_path() {
    let elsewhere = Some(Hop {
        device: 9,
        gateway: None,
        source: None,
        local: false,
    });
    let hops = BTreeMap::from([(ip("192.168.100.2"), elsewhere)]);
    let lease = vxlan_lease("10.5.11.0/24", "192.168.100.2", 2);
    let (plan, peers) = plan_for(r#"{"Type":"vxlan","DirectRouting":true}"#, &hops, &[lease]);
    let expected = routes([("10.5.11.0/24", via_vtep("10.5.11.0"))]);
    assert_eq!(plan.desired.routes, expected);
    assert!(peers.is_empty());
}

/// A lease out of few subnets, nodes and MACs, so that they clash.
fn any_lease() -> impl Strategy<Value = Lease> {
    let subnet = prop_oneof![
        (8u8..14).prop_map(|third| format!("10.5.{third}.0/24")),
        Just("10.5.8.0/22".to_owned())
    ];
    let v6 = prop::option::of((8u8..12, 1u8..4, 1u8..4));
    (subnet, 1u8..5, 1u8..5, v6, 0u8..4).prop_map(|(subnet, node, last, v6, backend)| {
        let mut lease = vxlan_lease(&subnet, &format!("192.168.100.{node}"), last);
        if let Some((third, node, last)) = v6 {
            lease.subnets.v6 = Some(format!("fd00:5:0:{third}::/64").parse().unwrap());
            lease.attributes.addresses.v6 = Some(ip(&format!("fd00:100::{node}")));
            if let BackendData::Vxlan(vteps) = &mut lease.attributes.backend {
                vteps.v6 = Some(vtep(last));
            }
        }
        match backend {
            0 => lease.attributes.backend = BackendData::HostGw,
            1 => lease.attributes.backend = BackendData::Ipip,
            _ => {}
        }
        lease
    })
}

proptest! {
    #[test]
    fn planning_what_has_changed_is_planning_all(
        backend in prop::sample::select(vec![
            r#"{"Type":"vxlan"}"#,
            r#"{"Type":"vxlan","DirectRouting":true}"#,
            r#"{"Type":"host-gw"}"#,
            r#"{"Type":"ipip"}"#,
            r#"{"Type":"ipip","DirectRouting":true}"#,
        ]),
        steps in prop::collection::vec((0u8..6, prop::option::of(any_lease())), 1..40),
    ) {
        let config = if backend.contains("ipip") { config(backend) } else { dual_config(backend) };
        let (uplink, hops) = (uplink(), hops());
        let facts = facts(&config, &uplink, &hops);
        let mut leases: BTreeMap<String, Lease> = BTreeMap::new();
        let mut plan = Plan::default();
        for (key, new) in steps {
            let key = format!("{key}");
            let old = match new.clone() {
                Some(new) => leases.insert(key.clone(), new),
                None => leases.remove(&key),
            };
            let before = plan.desired.clone();
            let all = Plan::new(&facts, leases.iter().map(|(key, lease)| (key.as_str(), lease)));
            match plan.replace(&facts, &key, old.as_ref(), new.as_ref()) {
                Some(scope) => {
                    prop_assert_eq!(&plan, &all);
                    // Whatever differs is in scope.
                    for (net, route) in before.routes.iter().chain(&all.desired.routes) {
                        let same = before.routes.get(net) == Some(route) && all.desired.routes.get(net) == Some(route);
                        prop_assert!(same || scope.routes.contains(net));
                    }
                    for (entry, mac) in before.neighbours.iter().chain(&all.desired.neighbours) {
                        let same = before.neighbours.get(entry) == Some(mac) && all.desired.neighbours.get(entry) == Some(mac);
                        prop_assert!(same || scope.neighbours.contains(entry));
                    }
                    for (entry, node) in before.fdb.iter().chain(&all.desired.fdb) {
                        let same = before.fdb.get(entry) == Some(node) && all.desired.fdb.get(entry) == Some(node);
                        prop_assert!(same || scope.fdb.contains(entry));
                    }
                }
                None => plan = all,
            }
        }
    }
}

#[test]
fn the_device_is_the_recorded_one() {
    let config = config(r#"{"Type":"vxlan","VNI":42,"Port":4789,"GBP":true,"MTU":1400}"#);
    let subnets = PerFamily::v4("10.5.15.64/26".parse().unwrap());
    let macs = PerFamily::v4(mac(1));
    assert_eq!(
        devices(&config, &uplink(), &subnets, &macs, None),
        PerFamily::v4(TunnelDevice {
            name: "flannel.42".into(),
            parent: UPLINK,
            local: ip("192.168.100.1"),
            mtu: 1350,
            network: "10.5.0.0/16".parse().unwrap(),
            address: Some(ip("10.5.15.64")),
            kind: TunnelKind::Vxlan(VxlanOptions {
                vni: 42,
                port: 4789,
                gbp: true,
                learning: false,
                mac: mac(1),
            }),
        })
    );
    assert_eq!(pod_mtu(&config, &uplink()), 1350);
}

#[test]
fn each_family_has_a_device_with_the_mtu_that_it_takes() {
    let config = dual_config(r#"{"Type":"vxlan"}"#);
    let macs = both(mac(1), mac(2));
    let made = devices(&config, &uplink(), &PerFamily::default(), &macs, None);
    let shown = made.map(|_, device| (device.name.clone(), device.mtu, device.local));
    assert_eq!(
        shown,
        both(
            ("flannel.1".into(), 1450, ip("192.168.100.1")),
            ("flannel-v6.1".into(), 1430, ip("fd00:100::1"))
        )
    );
    assert_eq!(pod_mtu(&config, &uplink()), 1430);
}

#[test]
fn mtu_is_that_of_the_interface_less_what_encapsulation_takes() {
    assert_eq!(pod_mtu(&config(r#"{"Type":"vxlan"}"#), &uplink()), 1450);
    assert_eq!(pod_mtu(&config(r#"{"Type":"host-gw"}"#), &uplink()), 1500);
    let narrow = Uplink {
        mtu: 1340,
        ..uplink()
    };
    assert_eq!(objection(&config(r#"{"Type":"vxlan"}"#), &narrow), None);
    let objection = objection(&dual_config(r#"{"Type":"vxlan"}"#), &narrow).unwrap();
    assert!(
        objection.starts_with("MTU of eth0 = 1340: too small"),
        "{objection}"
    );
}

#[test]
fn host_gw_objects_to_a_public_address_that_is_not_the_interfaces() {
    let other = Uplink {
        public: PerFamily::v4(ip("203.0.113.1")),
        ..uplink()
    };
    let host_gw = config(r#"{"Type":"host-gw"}"#);
    assert!(
        objection(&host_gw, &other)
            .unwrap()
            .starts_with("--public-ip = 203.0.113.1: ")
    );
    assert_eq!(objection(&host_gw, &uplink()), None);
    assert_eq!(objection(&config(r#"{"Type":"vxlan"}"#), &other), None);
}

#[test]
fn udp_demands_what_flanneld_was_recorded_to_write() {
    const TUN: u32 = 7;
    let config = config(r#"{"Type":"udp"}"#);
    let subnets = PerFamily::v4("10.5.57.0/24".parse().unwrap());
    let no_macs = PerFamily::default();
    assert_eq!(
        proxy(&config, &uplink(), &subnets),
        Some(crate::udp::Options {
            pattern: "flannel%d".into(),
            address: "10.5.57.0".parse().unwrap(),
            bind: "192.168.100.1:8285".parse().unwrap(),
        })
    );
    // The device is the proxy's: without one, there is none to be set up.
    assert!(devices(&config, &uplink(), &subnets, &no_macs, None).is_empty());
    let made = devices(&config, &uplink(), &subnets, &no_macs, Some("flannel0"));
    let made = made.v4.unwrap();
    assert_eq!(
        (made.name.as_str(), made.mtu, made.address, made.kind),
        ("flannel0", 1472, Some(ip("10.5.57.0")), TunnelKind::Tun)
    );
    assert_eq!(pod_mtu(&config, &uplink()), 1472);

    // One route for all, whatever backend the leases are of.
    let hops = BTreeMap::new();
    let uplink = uplink();
    let mut facts = Facts {
        config: &config,
        subnets,
        uplink: &uplink,
        tunnels: PerFamily::v4(TUN),
        hops: &hops,
    };
    let leases = [
        lease(
            "10.5.71.0/24",
            "192.168.100.2",
            BackendData::Other(String::new()),
        ),
        vxlan_lease("10.5.23.0/24", "192.168.101.3", 3),
    ];
    let plan = |facts: &Facts<'_>| {
        let leases = keyed(&leases);
        Plan::new(
            facts,
            leases.iter().map(|(key, lease)| (key.as_str(), *lease)),
        )
    };
    let route = Route {
        gateway: None,
        device: TUN,
        onlink: false,
        boot: true,
    };
    let planned = plan(&facts);
    assert_eq!(
        planned.desired,
        Desired {
            routes: routes([("10.5.0.0/16", route)]),
            ..Desired::default()
        }
    );
    assert!(planned.problems.is_empty(), "{:?}", planned.problems);
    facts.tunnels = PerFamily::default();
    assert_eq!(plan(&facts).desired, Desired::default());
}

#[test]
fn udp_objects_to_an_mtu_that_leaves_too_little() {
    let with = |mtu| Uplink { mtu, ..uplink() };
    let config = config(r#"{"Type":"udp"}"#);
    assert_eq!(objection(&config, &with(96)), None);
    let said = objection(&config, &with(95)).unwrap();
    assert!(said.starts_with("MTU of eth0 = 95: too small"), "{said}");
}

#[test]
fn ipip_demands_what_flanneld_was_recorded_to_write() {
    let ipip = config(r#"{"Type":"ipip"}"#);
    let behind_nat = Uplink {
        public: PerFamily::v4(ip("203.0.113.1")),
        ..uplink()
    };
    let subnets = PerFamily::v4("10.5.35.0/24".parse().unwrap());
    let no_macs = PerFamily::default();
    assert_eq!(
        devices(&ipip, &behind_nat, &subnets, &no_macs, None),
        PerFamily::v4(TunnelDevice {
            name: "flannel.ipip".into(),
            parent: UPLINK,
            local: ip("192.168.100.1"),
            mtu: 1480,
            network: "10.5.0.0/16".parse().unwrap(),
            address: Some(ip("10.5.35.0")),
            kind: TunnelKind::Ipip,
        })
    );
    assert_eq!(pod_mtu(&ipip, &uplink()), 1480);
    assert_eq!(
        attributes(&ipip, &behind_nat, &no_macs, None).backend,
        BackendData::Ipip
    );

    let leases = [
        lease("10.5.73.0/24", "192.168.100.2", BackendData::Ipip),
        lease("10.5.74.0/24", "192.168.101.3", BackendData::Ipip),
        vxlan_lease("10.5.75.0/24", "192.168.100.4", 4),
    ];
    let via_ipip = |gateway| Route {
        gateway: Some(ip(gateway)),
        device: IPIP,
        onlink: true,
        boot: true,
    };
    let (plan, peers) = plan_for(r#"{"Type":"ipip"}"#, &hops(), &leases);
    assert_eq!(
        plan.desired,
        Desired {
            routes: routes([
                ("10.5.73.0/24", via_ipip("192.168.100.2")),
                ("10.5.74.0/24", via_ipip("192.168.101.3")),
            ]),
            ..Desired::default()
        }
    );
    assert!(peers.is_empty(), "no program encapsulates IPIP: {peers:?}");
    let problem = &plan.problem("002", Family::V4).unwrap().reason;
    assert!(problem.contains("BackendType is \"vxlan\""), "{problem}");

    let (plan, peers) = plan_for(r#"{"Type":"ipip","DirectRouting":true}"#, &hops(), &leases);
    assert_eq!(
        plan.desired.routes,
        routes([
            ("10.5.73.0/24", via_uplink("192.168.100.2")),
            ("10.5.74.0/24", via_ipip("192.168.101.3")),
        ])
    );
    let direct: Vec<_> = peers
        .iter()
        .map(|route| (route.node_ip, route.vtep_mac))
        .collect();
    assert_eq!(direct, [(ip("192.168.100.2"), None)]);
}

#[test]
fn ipip_objects_to_an_mtu_that_leaves_too_little() {
    let with = |mtu| Uplink { mtu, ..uplink() };
    let config = config(r#"{"Type":"ipip"}"#);
    assert_eq!(objection(&config, &with(88)), None);
    let said = objection(&config, &with(87)).unwrap();
    assert!(said.starts_with("MTU of eth0 = 87: too small"), "{said}");
}

#[test]
fn alloc_and_extension_leave_the_kernel_to_others() {
    for (backend, data) in [
        (r#"{"Type":"alloc"}"#, BackendData::Other(String::new())),
        (
            r#"{"Type":"extension"}"#,
            BackendData::Extension(Some("key".into())),
        ),
    ] {
        let leases = [lease("10.5.73.0/24", "192.168.100.2", data)];
        let (plan, peers) = plan_for(backend, &hops(), &leases);
        assert_eq!(plan, Plan::default(), "{backend}");
        assert!(peers.is_empty(), "{backend}");
        let config = config(backend);
        let no_macs = PerFamily::default();
        let devices = devices(&config, &uplink(), &PerFamily::default(), &no_macs, None);
        assert!(devices.is_empty() && !owns_routes(&config), "{backend}");
        assert_eq!(objection(&config, &uplink()), None, "{backend}");
        assert_eq!(pod_mtu(&config, &uplink()), 1500, "{backend}");
    }
}

#[test]
fn extension_names_leases_of_other_backends() {
    let leases = [
        vxlan_lease("10.5.75.0/24", "192.168.100.4", 4),
        lease(
            "10.5.76.0/24",
            "192.168.100.5",
            BackendData::Extension(None),
        ),
    ];
    let (plan, _) = plan_for(r#"{"Type":"extension"}"#, &hops(), &leases);
    let problem = &plan.problem("000", Family::V4).unwrap().reason;
    assert!(problem.contains("this node's is extension"), "{problem}");
    assert_eq!(plan.problem("001", Family::V4), None);
}

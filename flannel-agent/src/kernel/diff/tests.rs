use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::kernel::objects::VxlanAttributes;

const UPLINK: u32 = 2;
const VTEP: u32 = 3;

fn ownership() -> Ownership {
    Ownership {
        networks: PerFamily::v4(("10.5.0.0/16".parse().unwrap(), 24)),
        vteps: PerFamily::v4(VTEP),
        former: BTreeSet::new(),
        ipip: None,
        uplink: UPLINK,
        made: BTreeMap::new(),
    }
}

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

fn net(address: [u8; 4], len: u8) -> IpNet {
    IpNet::new(address.into(), len).unwrap().trunc()
}

fn subnet(third: u8) -> IpNet {
    net([10, 5, third, 0], 24)
}

fn node(last: u8) -> IpAddr {
    [192, 168, 100, last].into()
}

fn vxlan_route(third: u8) -> Route {
    Route {
        gateway: Some(subnet(third).network()),
        device: VTEP,
        onlink: true,
        boot: true,
    }
}

/// Any route: of flannel's two forms, or of another.
fn route() -> impl Strategy<Value = (IpNet, Route)> {
    let any_route = (
        0u8..8,
        23u8..=25,
        prop::option::of(0u8..4),
        2u32..5,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(third, len, gateway, device, onlink, boot)| {
            let gateway = gateway.map(node);
            (
                net([10, 5, third, 0], len),
                Route {
                    gateway,
                    device,
                    onlink,
                    boot,
                },
            )
        });
    let outside = (0u8..8).prop_map(|third| {
        let gateway = Some(node(1));
        let route = Route {
            gateway,
            device: UPLINK,
            onlink: false,
            boot: true,
        };
        (net([10, 6, third, 0], 24), route)
    });
    prop_oneof![
        any_route,
        outside,
        (0u8..8).prop_map(|third| (subnet(third), vxlan_route(third)))
    ]
}

fn observed() -> impl Strategy<Value = Observed> {
    let neighbour = (0u8..8, 0u8..8, any::<bool>()).prop_map(|(third, value, permanent)| {
        (
            (VTEP, subnet(third).network()),
            Entry {
                value: mac(value),
                permanent,
            },
        )
    });
    let fdb = (0u8..8, 0u8..8, any::<bool>()).prop_map(|(last, number, permanent)| {
        (
            (VTEP, mac(last)),
            Entry {
                value: node(number),
                permanent,
            },
        )
    });
    (
        prop::collection::btree_map(0u8..8, route(), 0..8),
        prop::collection::vec(neighbour, 0..8),
        prop::collection::vec(fdb, 0..8),
    )
        .prop_map(|(routes, neighbours, fdb)| Observed {
            routes: routes.into_values().collect(),
            neighbours: neighbours.into_iter().collect(),
            fdb: fdb.into_iter().collect(),
            ..Observed::default()
        })
}

fn desired() -> impl Strategy<Value = Desired> {
    prop::collection::btree_map(0u8..8, (any::<bool>(), 0u8..8), 0..8).prop_map(|peers| {
        let mut desired = Desired::default();
        for (third, (direct, last)) in peers {
            if direct {
                let route = Route {
                    gateway: Some(node(third)),
                    device: UPLINK,
                    onlink: false,
                    boot: true,
                };
                desired.routes.insert(subnet(third), route);
            } else {
                desired.routes.insert(subnet(third), vxlan_route(third));
                desired
                    .neighbours
                    .insert((VTEP, subnet(third).network()), mac(last));
                desired.fdb.insert((VTEP, mac(last)), node(third));
            }
        }
        desired
    })
}

fn apply(ops: &[Op], mut state: Observed) -> Observed {
    for op in ops {
        state.record(op);
    }
    state
}

proptest! {
    #[test]
    fn applying_the_difference_yields_what_is_desired(state in observed(), desired in desired()) {
        let ownership = ownership();
        let after = apply(&peers(&desired, &state, &ownership), state);
        for (net, route) in &desired.routes {
            prop_assert_eq!(after.routes.get(net), Some(route));
        }
        for (address, mac) in &desired.neighbours {
            prop_assert_eq!(after.neighbours.get(address), Some(&permanent(*mac)));
        }
        for (mac, node) in &desired.fdb {
            prop_assert_eq!(after.fdb.get(mac), Some(&permanent(*node)));
        }
        // Nothing of flannel's own is left over.
        for (net, route) in &after.routes {
            prop_assert!(desired.routes.contains_key(net) || !ownership.covers(net, route));
        }
        prop_assert!(after.fdb.iter().all(|(mac, entry)| desired.fdb.contains_key(mac) || !entry.permanent));
        for (address, entry) in &after.neighbours {
            prop_assert!(desired.neighbours.contains_key(address) || !entry.permanent);
        }
        prop_assert_eq!(peers(&desired, &after, &ownership), vec![]);
    }

    #[test]
    fn what_belongs_to_others_is_not_touched(state in observed(), desired in desired()) {
        let ownership = ownership();
        let after = apply(&peers(&desired, &state, &ownership), state.clone());
        for (net, route) in &state.routes {
            if !desired.routes.contains_key(net) && !ownership.covers(net, route) {
                prop_assert_eq!(after.routes.get(net), Some(route));
            }
        }
        for (address, entry) in state.neighbours.iter().filter(|(_, entry)| !entry.permanent) {
            if !desired.neighbours.contains_key(address) {
                prop_assert_eq!(after.neighbours.get(address), Some(entry));
            }
        }
    }

    #[test]
    fn a_route_comes_after_what_it_needs_and_goes_before_it(state in observed(), desired in desired()) {
        prop_assert!(peers(&desired, &state, &ownership()).is_sorted_by_key(Op::rank));
    }

    #[test]
    fn some_objects_are_compared_as_all_are(state in observed(), desired in desired(), thirds: [bool; 8]) {
        let ownership = ownership();
        let all = peers(&desired, &state, &ownership);
        let mut scope = Scope::default();
        for (third, _) in (0u8..).zip(thirds).filter(|(_, wanted)| *wanted) {
            scope.routes.insert(subnet(third));
            scope.neighbours.insert((VTEP, subnet(third).network()));
            scope.fdb.insert((VTEP, mac(third)));
        }
        let within = |op: &Op| match op {
            Op::SetNeighbour(device, address, _) | Op::RemoveNeighbour(device, address) => {
                scope.neighbours.contains(&(*device, *address))
            }
            Op::SetFdb(device, mac, _) | Op::RemoveFdb(device, mac, _) => {
                scope.fdb.contains(&(*device, *mac))
            }
            Op::SetRoute(net, _) | Op::RemoveRoute(net, _) => scope.routes.contains(net),
        };
        let mut expected: Vec<Op> = all.into_iter().filter(within).collect();
        let mut found = scoped(&desired, &state, &ownership, &scope);
        let by_text = |op: &Op| format!("{op:?}");
        expected.sort_by_key(by_text);
        found.sort_by_key(by_text);
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn routes_that_another_backend_has_left_in_the_network_are_owned() {
    const FORMER: u32 = 9;
    let ownership = Ownership {
        vteps: PerFamily::default(),
        former: BTreeSet::from([FORMER]),
        ..ownership()
    };
    let left = Route {
        device: FORMER,
        ..vxlan_route(7)
    };
    assert!(ownership.covers(&subnet(7), &left));
    assert!(!ownership.covers(&subnet(8), &left), "another gateway");
    let elsewhere = net([10, 6, 7, 0], 24);
    let gateway = Some(elsewhere.network());
    assert!(
        !ownership.covers(&elsewhere, &Route { gateway, ..left }),
        "another daemon's network"
    );
}

#[test]
fn only_routes_of_flannels_form_are_owned() {
    let owned = |net: &str, route| ownership().covers(&net.parse().unwrap(), &route);
    let direct = Route {
        gateway: Some(node(2)),
        device: UPLINK,
        onlink: false,
        boot: true,
    };
    assert!(owned("10.5.7.0/24", direct));
    assert!(owned("10.5.7.0/24", vxlan_route(7)));
    assert!(owned(
        "10.9.7.0/24",
        Route {
            gateway: Some([10, 9, 7, 0].into()),
            ..vxlan_route(7)
        }
    ));
    for (net, route) in [
        ("10.6.7.0/24", direct),
        ("10.5.0.0/16", direct),
        ("0.0.0.0/0", direct),
        (
            "10.5.7.0/24",
            Route {
                boot: false,
                ..direct
            },
        ),
        (
            "10.5.7.0/24",
            Route {
                gateway: None,
                ..direct
            },
        ),
        (
            "10.5.7.0/24",
            Route {
                device: 9,
                ..direct
            },
        ),
        (
            "10.5.7.0/24",
            Route {
                onlink: true,
                ..direct
            },
        ),
        ("10.5.8.0/24", vxlan_route(7)),
        (
            "10.5.7.0/24",
            Route {
                onlink: false,
                ..vxlan_route(7)
            },
        ),
    ] {
        assert!(!owned(net, route), "{net} {route:?}");
    }
}

fn device_at(port: u16) -> TunnelDevice {
    TunnelDevice {
        name: "flannel.1".into(),
        parent: UPLINK,
        local: node(1),
        mtu: 1450,
        network: net([10, 5, 0, 0], 16),
        address: Some([10, 5, 9, 0].into()),
        kind: TunnelKind::Vxlan(VxlanOptions {
            vni: 1,
            port,
            gbp: false,
            learning: false,
            mac: mac(1),
        }),
    }
}

fn device() -> TunnelDevice {
    device_at(0)
}

/// A node whose device is as `device` wants it, changed by `change`.
fn with(change: impl FnOnce(&mut Link, &mut VxlanAttributes, &mut Vec<IpNet>)) -> Observed {
    let mut attributes = VxlanAttributes {
        vni: 1,
        parent: Some(UPLINK),
        local: Some(node(1)),
        port: 8472,
        ..VxlanAttributes::default()
    };
    let mut link = Link {
        index: VTEP,
        name: "flannel.1".into(),
        mac: Some(mac(9)),
        mtu: 1450,
        up: true,
        loopback: false,
        ethernet: true,
        master: None,
        peer: None,
        kind: LinkKind::Other,
    };
    let mut addresses = vec!["10.5.9.0/32".parse().unwrap()];
    change(&mut link, &mut attributes, &mut addresses);
    if link.kind == LinkKind::Other {
        link.kind = LinkKind::Vxlan(attributes);
    }
    Observed {
        links: BTreeMap::from([(VTEP, link)]),
        addresses: BTreeMap::from([(VTEP, addresses)]),
        ..Observed::default()
    }
}

fn ops(observed: &Observed) -> Vec<LinkOp> {
    link(&device(), observed)
}

#[test]
fn a_device_that_fits_is_kept_with_its_mac() {
    assert_eq!(ops(&with(|_, _, _| {})), vec![]);
    // Port 0 is the kernel's choice: whatever the device has is right.
    assert_eq!(ops(&with(|_, vxlan, _| vxlan.port = 4789)), vec![]);
}

#[test]
fn an_absent_device_is_created() {
    assert_eq!(ops(&Observed::default()), vec![LinkOp::Create(device())]);
}

#[test]
fn what_can_be_repaired_in_place_is() {
    assert_eq!(
        ops(&with(|link, _, _| link.mtu = 1500)),
        vec![LinkOp::SetMtu(VTEP, 1450)]
    );
    assert_eq!(
        ops(&with(|link, _, _| link.up = false)),
        vec![LinkOp::SetUp(VTEP)]
    );
    assert_eq!(
        ops(&with(|_, vxlan, _| vxlan.learning = true)),
        vec![LinkOp::SetLearning(VTEP, false)]
    );
    let foreign = ["10.5.9.1/24", "10.5.7.0/32", "192.168.1.1/24"].map(|net| net.parse().unwrap());
    assert_eq!(
        ops(&with(|_, _, addresses| *addresses = foreign.to_vec())),
        vec![
            LinkOp::RemoveAddress(VTEP, foreign[0]),
            LinkOp::RemoveAddress(VTEP, foreign[1]),
            LinkOp::AddAddress(VTEP, [10, 5, 9, 0].into()),
        ]
    );
}

#[test]
fn an_incompatible_device_is_made_anew() {
    let incompatible: [fn(&mut Link, &mut VxlanAttributes, &mut Vec<IpNet>); 7] = [
        |_, vxlan, _| vxlan.vni = 2,
        |_, vxlan, _| vxlan.parent = None,
        |_, vxlan, _| vxlan.local = Some(node(9)),
        |_, vxlan, _| vxlan.has_group = true,
        |_, vxlan, _| vxlan.l2miss = true,
        |_, vxlan, _| vxlan.gbp = true,
        |link, _, _| link.kind = LinkKind::Veth,
    ];
    for change in incompatible {
        let ops = ops(&with(change));
        assert!(
            matches!(
                ops.as_slice(),
                [LinkOp::Delete(VTEP, ..), LinkOp::Create(_)]
            ),
            "{ops:?}"
        );
    }
    let ops = link(&device_at(4789), &with(|_, _, _| {}));
    assert!(
        matches!(ops.as_slice(), [LinkOp::Delete(..), LinkOp::Create(_)]),
        "{ops:?}"
    );
}

#[test]
fn an_ipip_device_is_made_anew_for_what_upstream_makes_it_anew_for() {
    let desired = TunnelDevice {
        name: "flannel.ipip".into(),
        mtu: 1480,
        kind: TunnelKind::Ipip,
        ..device()
    };
    let ops = |local, remote| {
        let kind = LinkKind::Ipip(IpipAttributes { local, remote });
        let mut observed = with(|link, _, _| link.kind = kind);
        for link in observed.links.values_mut() {
            (link.name, link.mtu) = ("flannel.ipip".into(), 1480);
        }
        link(&desired, &observed)
    };
    assert_eq!(ops(Some(node(1)), None), vec![]);
    for (local, remote, difference) in [
        (None, None, "local address none instead of"),
        (Some(node(9)), None, "local address"),
        (Some(node(1)), Some(node(2)), "remote address"),
    ] {
        let ops = ops(local, remote);
        let [LinkOp::Delete(VTEP, _, said), LinkOp::Create(_)] = ops.as_slice() else {
            panic!("{ops:?}");
        };
        assert!(said.starts_with(difference), "{said}");
    }
}

#[test]
fn only_ipips_routes_are_removed_with_onlink() {
    let ownership = |ipip| Ownership {
        networks: PerFamily::v4((net([10, 5, 0, 0], 16), 24)),
        ipip,
        uplink: UPLINK,
        ..Ownership::default()
    };
    let route = |device, onlink| Route {
        gateway: Some(node(2)),
        device,
        onlink,
        boot: true,
    };
    let subnet = net([10, 5, 7, 0], 24);
    for (ipip, route, owned) in [
        (Some(VTEP), route(VTEP, true), true),
        // What flanneld's DirectRouting leaves.
        (Some(VTEP), route(UPLINK, true), true),
        (Some(VTEP), route(UPLINK, false), true),
        (Some(VTEP), route(VTEP, false), false),
        (Some(VTEP), route(9, true), false),
        (None, route(UPLINK, true), false),
        (None, route(UPLINK, false), true),
    ] {
        let covers = ownership(ipip).covers(&subnet, &route);
        assert_eq!(covers, owned, "{ipip:?} {route:?}");
    }
}

#[test]
fn a_route_of_another_length_goes_if_this_process_made_it() {
    let destination = net([10, 5, 4, 0], 23);
    let route = Route {
        gateway: Some(node(5)),
        device: UPLINK,
        onlink: false,
        boot: true,
    };
    let observed = Observed {
        routes: BTreeMap::from([(destination, route)]),
        ..Observed::default()
    };
    let ops = |ownership: &Ownership| peers(&Desired::default(), &observed, ownership);
    assert_eq!(ops(&ownership()), []);
    let made = BTreeMap::from([(destination, route)]);
    let ownership = Ownership {
        made,
        ..ownership()
    };
    assert_eq!(ops(&ownership), [Op::RemoveRoute(destination, route)]);
}

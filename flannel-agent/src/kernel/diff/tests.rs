use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::kernel::objects::VxlanAttributes;

const UPLINK: u32 = 2;
const VTEP: u32 = 3;

fn ownership() -> Ownership {
    let network = "10.5.0.0/16".parse().unwrap();
    Ownership {
        network,
        subnet_len: 24,
        vtep: Some(VTEP),
        uplink: UPLINK,
    }
}

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

fn subnet(third: u8) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(10, 5, third, 0), 24).unwrap()
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
fn route() -> impl Strategy<Value = (Ipv4Net, Route)> {
    let any_route = (
        0u8..8,
        23u8..=25,
        prop::option::of(0u8..4),
        2u32..5,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(third, len, gateway, device, onlink, boot)| {
            let net = Ipv4Net::new(Ipv4Addr::new(10, 5, third, 0), len)
                .unwrap()
                .trunc();
            let gateway = gateway.map(|last| Ipv4Addr::new(192, 168, 100, last));
            (
                net,
                Route {
                    gateway,
                    device,
                    onlink,
                    boot,
                },
            )
        });
    let outside = (0u8..8).prop_map(|third| {
        let gateway = Some(Ipv4Addr::new(192, 168, 100, 1));
        let route = Route {
            gateway,
            device: UPLINK,
            onlink: false,
            boot: true,
        };
        (
            Ipv4Net::new(Ipv4Addr::new(10, 6, third, 0), 24).unwrap(),
            route,
        )
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
            subnet(third).network(),
            Entry {
                value: mac(value),
                permanent,
            },
        )
    });
    let fdb = (0u8..8, 0u8..8, any::<bool>()).prop_map(|(last, node, permanent)| {
        (
            mac(last),
            Entry {
                value: Ipv4Addr::new(192, 168, 100, node),
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
            let node = Ipv4Addr::new(192, 168, 100, third);
            if direct {
                let route = Route {
                    gateway: Some(node),
                    device: UPLINK,
                    onlink: false,
                    boot: true,
                };
                desired.routes.insert(subnet(third), route);
            } else {
                desired.routes.insert(subnet(third), vxlan_route(third));
                desired
                    .neighbours
                    .insert(subnet(third).network(), mac(last));
                desired.fdb.insert(mac(last), node);
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
            prop_assert_eq!(after.neighbours.get(address), Some(&Entry { value: *mac, permanent: true }));
        }
        for (mac, node) in &desired.fdb {
            prop_assert_eq!(after.fdb.get(mac), Some(&Entry { value: *node, permanent: true }));
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
        let rank = |op: &Op| match op {
            Op::SetNeighbour(..) => 0,
            Op::SetFdb(..) => 1,
            Op::SetRoute(..) => 2,
            Op::RemoveRoute(..) => 3,
            Op::RemoveFdb(..) => 4,
            Op::RemoveNeighbour(..) => 5,
        };
        prop_assert!(peers(&desired, &state, &ownership()).is_sorted_by_key(rank));
    }
}

#[test]
fn only_routes_of_flannels_form_are_owned() {
    let owned = |net: &str, route| ownership().covers(&net.parse().unwrap(), &route);
    let direct = Route {
        gateway: Some(Ipv4Addr::new(192, 168, 100, 2)),
        device: UPLINK,
        onlink: false,
        boot: true,
    };
    assert!(owned("10.5.7.0/24", direct));
    assert!(owned("10.5.7.0/24", vxlan_route(7)));
    assert!(owned(
        "10.9.7.0/24",
        Route {
            gateway: Some(Ipv4Addr::new(10, 9, 7, 0)),
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

fn device() -> VxlanDevice {
    VxlanDevice {
        name: "flannel.1".into(),
        vni: 1,
        parent: UPLINK,
        local: Ipv4Addr::new(192, 168, 100, 1),
        port: 0,
        gbp: false,
        learning: false,
        mtu: 1450,
        mac: mac(1),
        address: Some(Ipv4Addr::new(10, 5, 9, 0)),
    }
}

/// A node whose device is as `device` wants it, changed by `change`.
fn node(change: impl FnOnce(&mut Link, &mut VxlanAttributes, &mut Vec<Ipv4Net>)) -> Observed {
    let mut attributes = VxlanAttributes {
        vni: 1,
        parent: Some(UPLINK),
        local: Some(Ipv4Addr::new(192, 168, 100, 1)),
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
    link(&device(), "10.5.0.0/16".parse().unwrap(), observed)
}

#[test]
fn a_device_that_fits_is_kept_with_its_mac() {
    assert_eq!(ops(&node(|_, _, _| {})), vec![]);
    // Port 0 is the kernel's choice: whatever the device has is right.
    assert_eq!(ops(&node(|_, vxlan, _| vxlan.port = 4789)), vec![]);
}

#[test]
fn an_absent_device_is_created() {
    assert_eq!(ops(&Observed::default()), vec![LinkOp::Create(device())]);
}

#[test]
fn what_can_be_repaired_in_place_is() {
    assert_eq!(
        ops(&node(|link, _, _| link.mtu = 1500)),
        vec![LinkOp::SetMtu(VTEP, 1450)]
    );
    assert_eq!(
        ops(&node(|link, _, _| link.up = false)),
        vec![LinkOp::SetUp(VTEP)]
    );
    assert_eq!(
        ops(&node(|_, vxlan, _| vxlan.learning = true)),
        vec![LinkOp::SetLearning(VTEP, false)]
    );
    let foreign = ["10.5.9.1/24", "10.5.7.0/32", "192.168.1.1/24"].map(|net| net.parse().unwrap());
    assert_eq!(
        ops(&node(|_, _, addresses| *addresses = foreign.to_vec())),
        vec![
            LinkOp::RemoveAddress(VTEP, foreign[0]),
            LinkOp::RemoveAddress(VTEP, foreign[1]),
            LinkOp::AddAddress(VTEP, Ipv4Addr::new(10, 5, 9, 0)),
        ]
    );
}

#[test]
fn an_incompatible_device_is_made_anew() {
    let incompatible: [fn(&mut Link, &mut VxlanAttributes, &mut Vec<Ipv4Net>); 7] = [
        |_, vxlan, _| vxlan.vni = 2,
        |_, vxlan, _| vxlan.parent = None,
        |_, vxlan, _| vxlan.local = Some(Ipv4Addr::new(192, 168, 100, 9)),
        |_, vxlan, _| vxlan.has_group = true,
        |_, vxlan, _| vxlan.l2miss = true,
        |_, vxlan, _| vxlan.gbp = true,
        |link, _, _| link.kind = LinkKind::Veth,
    ];
    for change in incompatible {
        let ops = ops(&node(change));
        assert!(
            matches!(
                ops.as_slice(),
                [LinkOp::Delete(VTEP, ..), LinkOp::Create(_)]
            ),
            "{ops:?}"
        );
    }
    let with_port = VxlanDevice {
        port: 4789,
        ..device()
    };
    let ops = link(
        &with_port,
        "10.5.0.0/16".parse().unwrap(),
        &node(|_, _, _| {}),
    );
    assert!(
        matches!(ops.as_slice(), [LinkOp::Delete(..), LinkOp::Create(_)]),
        "{ops:?}"
    );
}

//! What holds for plans of every backend: a bad lease affects no other, a changed lease is planned as all are.

use super::*;

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

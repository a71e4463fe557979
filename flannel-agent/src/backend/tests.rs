use super::*;

const VTEP: u32 = 3;
const UPLINK: u32 = 2;

fn config(backend: &str) -> NetworkConfig {
    let json = format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#);
    NetworkConfig::parse(json.as_bytes()).unwrap()
}

fn uplink() -> Uplink {
    let address = Ipv4Addr::new(192, 168, 100, 1);
    Uplink {
        index: UPLINK,
        name: "eth0".into(),
        mtu: 1500,
        address,
        public_ip: address,
    }
}

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

fn vxlan_lease(subnet: &str, node: [u8; 4], last: u8) -> Lease {
    let backend = BackendData::Vxlan {
        vni: Some(1),
        mac: mac(last),
    };
    Lease {
        subnet: subnet.parse().unwrap(),
        attributes: Attributes {
            public_ip: node.into(),
            backend,
        },
    }
}

fn host_gw_lease(subnet: &str, node: [u8; 4]) -> Lease {
    let attributes = Attributes {
        public_ip: node.into(),
        backend: BackendData::HostGw,
    };
    Lease {
        subnet: subnet.parse().unwrap(),
        attributes,
    }
}

/// The recorded topology: .100.2 on the link, .101.3 behind the router .100.254.
fn hops() -> BTreeMap<Ipv4Addr, Option<Hop>> {
    let hop = |gateway| {
        Some(Hop {
            device: UPLINK,
            gateway,
            source: None,
            local: false,
        })
    };
    BTreeMap::from([
        (Ipv4Addr::new(192, 168, 100, 2), hop(None)),
        (
            Ipv4Addr::new(192, 168, 101, 3),
            hop(Some(Ipv4Addr::new(192, 168, 100, 254))),
        ),
    ])
}

fn plan_for(backend: &str, hops: &BTreeMap<Ipv4Addr, Option<Hop>>, leases: &[Lease]) -> Plan {
    let config = config(backend);
    let vtep = matches!(config.backend, Backend::Vxlan(_)).then_some(VTEP);
    let subnet = "10.5.9.0/24".parse().unwrap();
    let facts = Facts {
        config: &config,
        subnet,
        uplink: &uplink(),
        vtep,
        hops,
    };
    plan(&facts, leases.iter())
}

fn via_vtep(gateway: [u8; 4]) -> Route {
    Route {
        gateway: Some(gateway.into()),
        device: VTEP,
        onlink: true,
        boot: true,
    }
}

fn via_uplink(gateway: [u8; 4]) -> Route {
    Route {
        gateway: Some(gateway.into()),
        device: UPLINK,
        onlink: false,
        boot: true,
    }
}

fn routes<const N: usize>(routes: [(&str, Route); N]) -> BTreeMap<Ipv4Net, Route> {
    routes
        .map(|(net, route)| (net.parse().unwrap(), route))
        .into()
}

#[test]
fn vxlan_demands_what_flanneld_was_recorded_to_write() {
    let leases = [
        vxlan_lease("10.5.11.0/24", [192, 168, 100, 2], 2),
        vxlan_lease("10.5.60.0/24", [192, 168, 101, 3], 3),
    ];
    let plan = plan_for(r#"{"Type":"vxlan"}"#, &BTreeMap::new(), &leases);
    assert_eq!(
        plan.desired.neighbours,
        BTreeMap::from([
            (Ipv4Addr::new(10, 5, 11, 0), mac(2)),
            (Ipv4Addr::new(10, 5, 60, 0), mac(3))
        ])
    );
    assert_eq!(
        plan.desired.fdb,
        BTreeMap::from([
            (mac(2), Ipv4Addr::new(192, 168, 100, 2)),
            (mac(3), Ipv4Addr::new(192, 168, 101, 3))
        ])
    );
    assert_eq!(
        plan.desired.routes,
        routes([
            ("10.5.11.0/24", via_vtep([10, 5, 11, 0])),
            ("10.5.60.0/24", via_vtep([10, 5, 60, 0]))
        ])
    );
    assert!(
        plan.routes.is_empty(),
        "without known hops the fast path gets no peer"
    );
}

#[test]
fn direct_routing_is_decided_per_peer() {
    let leases = [
        vxlan_lease("10.5.62.0/24", [192, 168, 100, 2], 2),
        vxlan_lease("10.5.47.0/24", [192, 168, 101, 3], 3),
    ];
    let plan = plan_for(r#"{"Type":"vxlan","DirectRouting":true}"#, &hops(), &leases);
    assert_eq!(
        plan.desired.routes,
        routes([
            ("10.5.62.0/24", via_uplink([192, 168, 100, 2])),
            ("10.5.47.0/24", via_vtep([10, 5, 47, 0]))
        ])
    );
    assert_eq!(
        plan.desired.fdb,
        BTreeMap::from([(mac(3), Ipv4Addr::new(192, 168, 101, 3))])
    );
    assert_eq!(plan.desired.neighbours.len(), 1);
    let via: Vec<String> = plan.peers.iter().map(|peer| peer.status().via).collect();
    assert_eq!(via, ["direct", "vxlan"]);
    let next_hops: Vec<_> = plan
        .routes
        .iter()
        .map(|route| (route.next_hop.to_string(), route.vtep_mac))
        .collect();
    assert_eq!(
        next_hops,
        [
            ("192.168.100.2".to_owned(), None),
            ("192.168.100.254".to_owned(), Some(mac(3)))
        ]
    );
}

#[test]
fn host_gw_leaves_out_peers_behind_a_router_and_says_so() {
    let leases = [
        host_gw_lease("10.5.97.0/24", [192, 168, 100, 2]),
        host_gw_lease("10.5.52.0/24", [192, 168, 101, 3]),
    ];
    let plan = plan_for(r#"{"Type":"host-gw"}"#, &hops(), &leases);
    assert_eq!(
        plan.desired.routes,
        routes([("10.5.97.0/24", via_uplink([192, 168, 100, 2]))])
    );
    assert!(plan.desired.fdb.is_empty() && plan.desired.neighbours.is_empty());
    assert_eq!(plan.peers[1].status().via, "none");
    assert!(plan.peers[1].problem().unwrap().contains("192.168.100.254"));
    assert_eq!(plan.routes.len(), 1);
}

#[test]
fn a_lease_that_makes_no_sense_here_affects_no_other() {
    let good = vxlan_lease("10.5.11.0/24", [192, 168, 100, 2], 2);
    for (bad, reason) in [
        (
            host_gw_lease("10.5.12.0/24", [192, 168, 100, 3]),
            "BackendType is \"host-gw\"",
        ),
        (
            vxlan_lease("10.5.9.128/25", [192, 168, 100, 3], 3),
            "overlaps this node's",
        ),
        (
            vxlan_lease("10.0.0.0/8", [192, 168, 100, 3], 3),
            "overlaps this node's",
        ),
        (
            vxlan_lease("192.168.100.0/24", [192, 168, 100, 3], 3),
            "contains the node address 192.168.100.3",
        ),
        (
            vxlan_lease("192.168.100.0/24", [1, 2, 3, 4], 3),
            "contains the node address 192.168.100.1",
        ),
        (
            vxlan_lease("10.5.12.0/24", [192, 168, 100, 3], 2),
            "VtepMAC 02:00:00:00:00:02 is also that of 192.168.100.2",
        ),
        (
            vxlan_lease("10.5.11.0/24", [192, 168, 100, 3], 3),
            "another lease has the same subnet",
        ),
    ] {
        let alone = plan_for(r#"{"Type":"vxlan"}"#, &hops(), std::slice::from_ref(&good));
        let both = plan_for(r#"{"Type":"vxlan"}"#, &hops(), &[good.clone(), bad]);
        assert_eq!(both.desired, alone.desired, "{reason}");
        assert_eq!(both.routes, alone.routes, "{reason}");
        let problem = both.peers[1].problem().unwrap();
        assert!(problem.contains(reason), "{problem}");
    }
}

#[test]
fn a_peer_that_leaves_by_another_interface_is_not_for_the_fast_path() {
    let elsewhere = Some(Hop {
        device: 9,
        gateway: None,
        source: None,
        local: false,
    });
    let hops = BTreeMap::from([(Ipv4Addr::new(192, 168, 100, 2), elsewhere)]);
    let lease = vxlan_lease("10.5.11.0/24", [192, 168, 100, 2], 2);
    let plan = plan_for(r#"{"Type":"vxlan","DirectRouting":true}"#, &hops, &[lease]);
    assert_eq!(plan.peers[0].status().via, "vxlan");
    assert!(plan.routes.is_empty());
}

#[test]
fn the_device_is_the_recorded_one() {
    let config = config(r#"{"Type":"vxlan","VNI":42,"Port":4789,"GBP":true,"MTU":1400}"#);
    let subnet: Ipv4Net = "10.5.15.64/26".parse().unwrap();
    assert_eq!(
        device(&config, &uplink(), Some(subnet), mac(1)),
        Some(VxlanDevice {
            name: "flannel.42".into(),
            vni: 42,
            parent: UPLINK,
            local: Ipv4Addr::new(192, 168, 100, 1),
            port: 4789,
            gbp: true,
            learning: false,
            mtu: 1350,
            mac: mac(1),
            address: Some(Ipv4Addr::new(10, 5, 15, 64)),
        })
    );
    assert_eq!(pod_mtu(&config, &uplink()), 1350);
}

#[test]
fn mtu_is_that_of_the_interface_less_what_encapsulation_takes() {
    assert_eq!(pod_mtu(&config(r#"{"Type":"vxlan"}"#), &uplink()), 1450);
    assert_eq!(pod_mtu(&config(r#"{"Type":"host-gw"}"#), &uplink()), 1500);
}

#[test]
fn host_gw_objects_to_a_public_address_that_is_not_the_interfaces() {
    let other = Uplink {
        public_ip: Ipv4Addr::new(203, 0, 113, 1),
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

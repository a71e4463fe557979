//! vxlan: its device and what it demands of the kernel.

use super::*;

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

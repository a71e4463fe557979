//! ipip: what it demands of the kernel, and what it objects to.

use super::*;

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

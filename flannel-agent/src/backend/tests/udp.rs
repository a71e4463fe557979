//! udp: what it demands of the kernel, and what it objects to.

use super::*;

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

//! host-gw: its routes, and what it objects to.

use super::*;

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

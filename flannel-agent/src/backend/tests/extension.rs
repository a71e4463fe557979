//! alloc and extension, which leave the kernel to others.

use super::*;

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

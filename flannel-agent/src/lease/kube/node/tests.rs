use std::net::IpAddr;

use serde_json::{Value, json};

use super::*;

const BOTH: PerFamily<()> = PerFamily {
    v4: Some(()),
    v6: Some(()),
};
const V4: PerFamily<()> = PerFamily::v4(());

fn names() -> Names {
    Names::new("flannel.alpha.coreos.com").unwrap()
}

fn read(node: &Value) -> Node {
    Node::read(&node.to_string(), &names()).unwrap()
}

/// A node of full size, as kubelet makes it, with flannel's annotations for host-gw.
fn node(pod_cidrs: &[&str]) -> Value {
    let mut node = lab::kube::mock::node("n1", &[IpAddr::from([10, 0, 0, 1])], pod_cidrs);
    node["metadata"]["resourceVersion"] = "7".into();
    for (name, value) in [
        ("kube-subnet-manager", "true"),
        ("backend-type", "host-gw"),
        ("backend-data", "null"),
        ("public-ip", "10.0.0.1"),
    ] {
        node["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{name}")] = value.into();
    }
    node
}

fn subnets(pod_cidrs: &[&str], families: &PerFamily<()>) -> Result<String, String> {
    let node = Node {
        pod_cidrs: pod_cidrs.iter().map(ToString::to_string).collect(),
        ..Node::default()
    };
    node.subnets(families).map(|subnets| subnets.join())
}

#[test]
fn of_a_whole_node_what_leases_need_is_kept() {
    let mut whole = node(&["10.5.1.0/24", "fd00:5:1::/64"]);
    whole["status"]["conditions"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "NetworkUnavailable", "status": "True", "reason": "NoRoute", "message": "m"}));
    let kept = read(&whole);
    assert_eq!((kept.name.as_str(), kept.version.as_str()), ("n1", "7"));
    assert_eq!(kept.pod_cidrs, ["10.5.1.0/24", "fd00:5:1::/64"]);
    let condition = kept.condition.as_ref().unwrap();
    assert_eq!(
        (condition.status.as_str(), condition.reason.as_str()),
        ("True", "NoRoute")
    );
    let lease = kept.entry(&BOTH, &names()).unwrap().unwrap();
    assert_eq!(lease.subnets.join(), "10.5.1.0/24,fd00:5:1::/64");
    assert_eq!(lease.attributes.addresses.join(), "10.0.0.1");
    let lease = kept.entry(&V4, &names()).unwrap().unwrap();
    assert_eq!(lease.subnets.join(), "10.5.1.0/24");
}

#[test]
fn pod_cidr_counts_where_there_are_no_pod_cidrs() {
    let bare = |spec: Value| read(&json!({"metadata": {"name": "n1"}, "spec": spec})).pod_cidrs;
    assert_eq!(bare(json!({"podCIDR": "10.5.1.0/24"})), ["10.5.1.0/24"]);
    assert_eq!(
        bare(json!({"podCIDR": "10.5.1.0/24", "podCIDRs": null})),
        ["10.5.1.0/24"]
    );
    assert_eq!(
        bare(json!({"podCIDR": "10.5.1.0/24", "podCIDRs": ["10.5.2.0/24"]})),
        ["10.5.2.0/24"]
    );
    assert!(bare(json!({"podCIDR": ""})).is_empty());
    assert!(
        read(
            &json!({"metadata": {"name": "n1", "annotations": null}, "spec": null, "status": null})
        )
        .pod_cidrs
        .is_empty()
    );
}

#[test]
fn there_is_one_subnet_of_a_family() {
    let subnets = |pod_cidrs| subnets(pod_cidrs, &BOTH);
    assert_eq!(subnets(&[]), Ok(String::new()));
    assert_eq!(subnets(&["10.5.1.9/24"]), Ok("10.5.1.0/24".into()));
    assert_eq!(
        subnets(&["fd00:5:1::/64", "10.5.1.0/24"]),
        Ok("10.5.1.0/24,fd00:5:1::/64".into())
    );
    assert_eq!(
        subnets(&["10.5.1.0/24", "10.5.2.0/24"]),
        Err("spec.podCIDRs has both 10.5.1.0/24 and 10.5.2.0/24: at most one may be IPv4".into())
    );
    assert_eq!(
        subnets(&["10.5.1.0"]),
        Err("spec.podCIDRs has 10.5.1.0: no prefix such as 10.244.1.0/24".into())
    );
}

#[test]
fn a_node_is_an_entry_once_it_is_annotated() {
    let entry = |node: &Value| read(node).entry(&V4, &names());
    let mut unmanaged = node(&["10.5.1.0/24"]);
    let managed = "flannel.alpha.coreos.com/kube-subnet-manager";
    for value in [Value::from("false"), Value::Null] {
        match value {
            Value::Null => drop(
                unmanaged["metadata"]["annotations"]
                    .as_object_mut()
                    .unwrap()
                    .remove(managed),
            ),
            value => unmanaged["metadata"]["annotations"][managed] = value,
        }
        assert_eq!(entry(&unmanaged), None);
    }
    // Other than upstream, which skips it without a word.
    assert_eq!(
        entry(&node(&[])),
        Some(Err("it has no podCIDR of IPv4".into()))
    );
    assert_eq!(
        entry(&node(&["fd00:5:1::/64"])),
        Some(Err("it has no podCIDR of IPv4".into()))
    );
    let mut garbage = node(&["10.5.1.0/24"]);
    garbage["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"] = "x".into();
    let reason = entry(&garbage).unwrap().unwrap_err();
    assert_eq!(
        reason,
        "annotation flannel.alpha.coreos.com/public-ip = x: must be an IPv4 address"
    );
}

#[test]
fn what_is_no_node_is_an_error() {
    for json in [
        "null",
        "{}",
        "garbage",
        r#"{"metadata":{}}"#,
        r#"{"metadata":{"name":7}}"#,
        r#"{"metadata":{"name":"n1"},"spec":{"podCIDRs":"10.5.1.0/24"}}"#,
        r#"{"metadata":{"name":"n1","annotations":{"flannel.alpha.coreos.com/public-ip":["x"]}}}"#,
    ] {
        assert!(Node::read(json, &names()).is_err(), "{json}");
    }
}

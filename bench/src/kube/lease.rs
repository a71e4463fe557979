//! Leases as they stand in the Kubernetes API: a node's pod CIDRs, and annotations (upstream `pkg/subnet/kube`).

use serde_json::{Value, json};

use crate::{error::Result, lease::Lease};

/// Upstream's default prefix of annotations, with the slash.
pub const PREFIX: &str = "flannel.alpha.coreos.com/";

/// The annotations that publish a lease value, given as it stands in etcd.
pub fn annotations(value: &Value) -> Vec<(String, String)> {
    let text = |field: &str| value[field].as_str().map(str::to_owned);
    // A backend without data publishes `null`.
    let data = |field: &str| Some(value[field].to_string());
    let has_ipv6 = !value["PublicIPv6"].is_null();
    [
        ("backend-data", data("BackendData")),
        (
            "backend-type",
            Some(text("BackendType").unwrap_or_default()),
        ),
        (
            "backend-v6-data",
            data("BackendV6Data").filter(|_| has_ipv6),
        ),
        ("kube-subnet-manager", Some("true".to_owned())),
        ("public-ip", text("PublicIP")),
        ("public-ipv6", text("PublicIPv6")),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((format!("{PREFIX}{name}"), value?)))
    .collect()
}

/// A Node object's lease; none if flannel has not published one, or if the node has no pod CIDR.
///
/// # Errors
/// If a part of it is malformed.
pub fn lease(node: &Value) -> Result<Option<Lease>> {
    let annotation =
        |name: &str| node["metadata"]["annotations"][format!("{PREFIX}{name}")].as_str();
    if annotation("kube-subnet-manager") != Some("true") {
        return Ok(None);
    }
    let cidrs = node["spec"]["podCIDRs"].as_array().into_iter().flatten();
    let (ipv6, ipv4): (Vec<_>, Vec<_>) = cidrs
        .filter_map(Value::as_str)
        .map(|cidr| cidr.replace('/', "-"))
        .partition(|cidr| cidr.contains(':'));
    if ipv4.is_empty() {
        return Ok(None);
    }
    let key = [ipv4, ipv6].concat().join("&");
    let data = |name: &str| -> Value {
        serde_json::from_str(annotation(name).unwrap_or("null")).unwrap_or_default()
    };
    let value = json!({
        "PublicIP": annotation("public-ip"),
        "PublicIPv6": annotation("public-ipv6"),
        "BackendType": annotation("backend-type"),
        "BackendData": data("backend-data"),
        "BackendV6Data": data("backend-v6-data"),
    });
    Lease::parse(&key, &value.to_string()).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    fn published(text: &str) -> Vec<String> {
        annotations(&value(text))
            .into_iter()
            .map(|(name, value)| format!("{}={value}", name.strip_prefix(PREFIX).unwrap()))
            .collect()
    }

    #[test]
    fn annotations_as_upstream_writes_them() {
        assert_eq!(
            published(
                r#"{"PublicIP":"192.168.100.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5a:09:d8:cd:01:41"}}"#
            ),
            [
                r#"backend-data={"VNI":1,"VtepMAC":"5a:09:d8:cd:01:41"}"#,
                "backend-type=vxlan",
                "kube-subnet-manager=true",
                "public-ip=192.168.100.1",
            ]
        );
        let host_gw = published(
            r#"{"PublicIP":"192.168.100.1","PublicIPv6":"fd00::1","BackendType":"host-gw"}"#,
        );
        assert_eq!(host_gw[0], "backend-data=null");
        assert_eq!(host_gw[2], "backend-v6-data=null");
        assert_eq!(host_gw[5], "public-ipv6=fd00::1");
    }

    #[test]
    fn leases_from_nodes() {
        let text = r#"{"PublicIP":"192.168.100.1","PublicIPv6":"fd00::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"a"},"BackendV6Data":{"VNI":1,"VtepMAC":"b"}}"#;
        let annotations: Value = annotations(&value(text))
            .into_iter()
            .map(|(name, value)| (name, value.into()))
            .collect::<serde_json::Map<_, _>>()
            .into();
        let mut node = json!({
            "metadata": { "annotations": annotations },
            "spec": { "podCIDRs": ["fd00:5:0:1::/64", "10.5.1.0/24"] },
        });
        let expected = Lease::parse("10.5.1.0-24&fd00:5:0:1::-64", text).unwrap();
        assert_eq!(lease(&node).unwrap(), Some(expected));
        node["metadata"]["annotations"][format!("{PREFIX}public-ip")] = "nowhere".into();
        assert!(lease(&node).is_err());
        node["spec"] = json!({});
        assert_eq!(lease(&node).unwrap(), None);
        assert_eq!(
            lease(&json!({ "metadata": { "name": "n1" } })).unwrap(),
            None
        );
    }
}

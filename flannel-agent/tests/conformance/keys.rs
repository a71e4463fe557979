//! The grammar of leases' keys, from outside: which keys make a peer, and which are named and skipped.

use anyhow::ensure;

use crate::peers::{key, routes, vxlan_value};
use crate::setting::agents;
use crate::support::{Outcome, with_unready_cluster};

const NETWORK: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// Keys that upstream's parser refuses (upstream `pkg/subnet/subnet_test.go`, `TestSubnetNodeInvalid`).
const INVALID: [&str; 11] = [
    "10",
    "10.12.13.0",
    "10.12.13-24",
    "10.12.13.300-24",
    "10.12.13.0-24hi",
    "&2001::-56",
    "10.12.13.0-24&:12:13:-56",
    "10.12.13.0-24&20011::-56",
    "10.12.13.0-24&2001-56",
    "10.12.13.0-24&2001::",
    "10.12.13.0-24&2001::-56hi",
];

/// Keys that it takes (`TestSubnetNodev4`, `TestSubnetNodev6`), and the IPv4 subnet of each.
const VALID: [(&str, &str); 2] = [
    ("10.5.13.0-24", "10.5.13.0/24"),
    ("10.5.14.0-24&fd00:12:13::-56", "10.5.14.0/24"),
];

pub(crate) fn grammar() -> Outcome {
    with_unready_cluster(agents(1, 0, NETWORK), |cluster| {
        let node = cluster.node(1);
        let peer = vxlan_value("192.168.100.77", "0e:00:00:00:00:77");
        for name in INVALID {
            cluster.etcd().put(&key(name), &peer)?;
        }
        for (name, _) in VALID {
            cluster.etcd().put(&key(name), &peer)?;
        }
        let status = node.agent().wait_status("all keys", |status| {
            status.peers.len() == VALID.len() && status.skipped_leases.len() == INVALID.len()
        })?;
        for name in INVALID {
            let mut skipped = status.skipped_leases.keys();
            ensure!(
                skipped.any(|key| key == name || key.ends_with(&format!("/{name}"))),
                "{name} is not named: {:?}",
                status.skipped_leases
            );
        }
        for (_, subnet) in VALID {
            ensure!(!routes(node, subnet)?.is_empty(), "no route to {subnet}");
        }
        Ok(())
    })
}

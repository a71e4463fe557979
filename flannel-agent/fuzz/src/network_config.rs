//! The network config.

use std::collections::BTreeSet;

use flannel_agent::{
    family::Family,
    netconf::{self, Error, NetworkConfig},
};

/// A config obeys its own rules and is written as one that says the same, or each error names field, value and rule.
pub(crate) fn run(bytes: &[u8]) {
    let check = netconf::check(bytes);
    assert_eq!(check.config.is_none(), !check.errors.is_empty());
    for error in &check.errors {
        match error {
            Error::Json(reason) => assert!(!reason.is_empty()),
            Error::Field { field, value, rule } => {
                assert!(!field.is_empty() && !value.is_empty() && !rule.is_empty());
            }
        }
    }
    let unique: BTreeSet<_> = check.warnings.iter().collect();
    assert_eq!(unique.len(), check.warnings.len(), "{:?}", check.warnings);
    if let Some(config) = check.config {
        holds_together(&config);
        let json = serde_json::to_vec(&config).expect("a config is JSON");
        let again = netconf::check(&json);
        let effective = NetworkConfig {
            enable_nftables: Some(config.enable_nftables.unwrap_or(false)),
            ..config
        };
        assert_eq!(
            again.config,
            Some(effective),
            "{}",
            String::from_utf8_lossy(&json)
        );
        assert!(again.warnings.is_empty(), "{:?}", again.warnings);
    }
}

fn holds_together(config: &NetworkConfig) {
    assert!(!config.pools.is_empty());
    assert!(config.pools.v6.is_none() || config.backend.has_ipv6());
    for (family, pool) in config.pools.iter() {
        assert_eq!(Family::of_net(&pool.network), family);
        assert!(pool.subnet_min <= pool.subnet_max, "{pool:?}");
        for first in [pool.subnet_min, pool.subnet_max] {
            let subnet = ipnet::IpNet::new(first, pool.subnet_len).expect("a length of the family");
            assert_eq!(subnet.network(), first, "{pool:?}");
            assert!(
                pool.network.contains(&subnet) && pool.allows(&subnet),
                "{pool:?}"
            );
        }
        assert!(pool.step() > 0);
    }
}

//! The network config: the JSON document at `<prefix>/config`, its defaults and its rules.
//!
//! Behaves as upstream's `pkg/subnet/config.go`. What this agent cannot do is refused by name; nothing is silently
//! dropped. [`pool`] has the fields of an address family, [`backend`] those of the backends.

pub mod backend;
mod fields;
pub mod pool;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

pub use backend::{Backend, Extension, Ipip, Udp, Vxlan};
use pool::Allocation;
pub use pool::Pool;

use crate::family::{Family, PerFamily};
use fields::{Fields, Findings, Noted, Reader};

/// Why a network config cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is no JSON object.
    #[error("not a JSON object: {0}")]
    Json(String),
    /// A field is missing or has a value that breaks a rule.
    #[error("{field} = {value}: {rule}")]
    Field {
        /// Path of the field as upstream spells it.
        field: String,
        /// The value as JSON, or `absent`.
        value: String,
        /// What it should be, or what to do.
        rule: String,
    },
}

/// The network config with all defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The network of each family that is enabled; at least one is.
    pub pools: PerFamily<Pool>,
    /// Whether rules are written with nftables instead of iptables; absent if the config does not say.
    pub enable_nftables: Option<bool>,
    /// How packets travel between nodes.
    pub backend: Backend,
}

/// A config document as it was found.
#[derive(Debug)]
pub struct Check {
    /// The config, if there is no error.
    pub config: Option<NetworkConfig>,
    /// All errors.
    pub errors: Vec<Error>,
    /// What has no effect, or another than one might think.
    pub warnings: Vec<String>,
}

impl NetworkConfig {
    /// Reads and checks a config document; what has no effect is logged.
    ///
    /// # Errors
    /// When it is not JSON, or a field breaks a rule; the first such field is named.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        Self::checked(check(json))
    }

    /// Reads a config document for a store where somebody else assigns the subnets: any network will do that holds
    /// them, and SubnetLen, SubnetMin and SubnetMax have no effect.
    ///
    /// # Errors
    /// When it is not JSON, or a field breaks a rule; the first such field is named.
    pub fn parse_assigned(json: &[u8]) -> Result<Self, Error> {
        Self::checked(check_for(json, Allocation::Elsewhere))
    }

    fn checked(mut check: Check) -> Result<Self, Error> {
        match check.config {
            Some(config) => {
                for warning in check.warnings {
                    tracing::warn!("network config: {warning}");
                }
                Ok(config)
            }
            None => Err(check.errors.swap_remove(0)),
        }
    }

    /// Whether `subnets` are ones that this config could allocate, for each family that is enabled and no other.
    pub fn allows(&self, subnets: &PerFamily<IpNet>) -> bool {
        Family::ALL.into_iter().all(
            |family| match (self.pools.get(family), subnets.get(family)) {
                (Some(pool), Some(subnet)) => pool.allows(subnet),
                (None, None) => true,
                _ => false,
            },
        )
    }

    /// The flannel networks.
    pub fn networks(&self) -> PerFamily<IpNet> {
        self.pools.map(|_, pool| pool.network)
    }
}

/// Reads a config document and finds all that is wrong with it.
pub fn check(json: &[u8]) -> Check {
    check_for(json, Allocation::Here)
}

fn check_for(json: &[u8], allocation: Allocation) -> Check {
    let mut findings = Findings::default();
    let config = match serde_json::from_slice::<Fields>(json) {
        Ok(fields) => read(fields, allocation, &mut findings).ok(),
        Err(error) => {
            findings.errors.push(Error::Json(error.to_string()));
            None
        }
    };
    Check {
        config: config.filter(|_| findings.errors.is_empty()),
        errors: findings.errors,
        warnings: findings.warnings,
    }
}

fn read(
    fields: Fields,
    allocation: Allocation,
    findings: &mut Findings,
) -> Result<NetworkConfig, Noted> {
    let mut reader = Reader::new(fields, "", findings);
    let enable_v4 = reader.boolean("EnableIPv4").map(|on| on.unwrap_or(true));
    let enable_v6 = reader.boolean("EnableIPv6").map(|on| on.unwrap_or(false));
    let enable_nftables = reader.boolean("EnableNFTables");
    if (enable_v4, enable_v6) == (Ok(false), Ok(false)) {
        reader.fail(
            "EnableIPv4",
            false,
            "with EnableIPv6 = false there is no network: enable one of them",
        );
    }
    let v4 = pool::read(
        &mut reader,
        Family::V4,
        enable_v4.unwrap_or(false),
        allocation,
    );
    let v6 = pool::read(
        &mut reader,
        Family::V6,
        enable_v6.unwrap_or(false),
        allocation,
    );
    let backend = reader.get("Backend");
    reader.finish();
    let backend = backend::read(backend, findings)?;
    if enable_v6 == Ok(true) && !backend.has_ipv6() {
        findings.error(
            "EnableIPv6",
            true,
            format!(
                "the backend {} carries IPv4 only: disable IPv6, or choose vxlan or host-gw",
                backend.name()
            ),
        );
    }
    Ok(NetworkConfig {
        pools: PerFamily { v4: v4?, v6: v6? },
        enable_nftables: enable_nftables?,
        backend,
    })
}

/// The effective config in upstream's spelling.
impl Serialize for NetworkConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;

        let mut map = serializer.serialize_map(None)?;
        if self.pools.v4.is_none() {
            map.serialize_entry("EnableIPv4", &false)?;
        }
        if let Some(pool) = &self.pools.v4 {
            map.serialize_entry("Network", &pool.network)?;
            map.serialize_entry("SubnetLen", &pool.subnet_len)?;
            map.serialize_entry("SubnetMin", &pool.subnet_min)?;
            map.serialize_entry("SubnetMax", &pool.subnet_max)?;
        }
        if let Some(pool) = &self.pools.v6 {
            map.serialize_entry("EnableIPv6", &true)?;
            map.serialize_entry("IPv6Network", &pool.network)?;
            map.serialize_entry("IPv6SubnetLen", &pool.subnet_len)?;
            map.serialize_entry("IPv6SubnetMin", &pool.subnet_min)?;
            map.serialize_entry("IPv6SubnetMax", &pool.subnet_max)?;
        }
        map.serialize_entry("EnableNFTables", &self.enable_nftables.unwrap_or(false))?;
        map.serialize_entry("Backend", &self.backend)?;
        map.end()
    }
}

#[cfg(test)]
mod tests;

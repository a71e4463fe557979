//! A Node object, of which only what leases need is kept: 5 000 Nodes of 15 KB each must not be held, nor one of them
//! for longer than it takes to read it.

use std::borrow::Cow;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    annotations::{Annotations, Names},
    condition::{self, Condition},
};
use crate::{
    family::{Family, PerFamily},
    lease::{Entry, Lease},
};

/// What is kept of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`, which tells a Node from one of the same name before it.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// Flannel's annotations.
    pub annotations: Annotations,
    /// `spec.podCIDRs`, or without those `spec.podCIDR`.
    pub pod_cidrs: Vec<String>,
    /// The condition `NetworkUnavailable`.
    pub condition: Option<Condition>,
}

#[derive(Deserialize)]
struct Object<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(default)]
    spec: Option<Spec>,
    #[serde(borrow, default)]
    status: Option<Status<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    name: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    resource_version: String,
    #[serde(borrow, default)]
    annotations: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct Spec {
    #[serde(rename = "podCIDR", default)]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs", default)]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Status<'a> {
    #[serde(borrow, default)]
    conditions: Option<Vec<AnyCondition<'a>>>,
}

#[derive(Deserialize)]
struct AnyCondition<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(borrow, default)]
    reason: Option<Cow<'a, str>>,
}

/// As much of an object as is needed to say which one it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// `metadata`.
    pub metadata: IdentityMetadata,
}

/// `metadata` of an [`Identity`].
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityMetadata {
    /// `name`; empty for a bookmark.
    #[serde(default)]
    pub name: String,
    /// `resourceVersion`.
    #[serde(default)]
    pub resource_version: String,
}

impl Node {
    /// Reads a Node object.
    ///
    /// # Errors
    /// When it is none, or an annotation of flannel's is no string.
    pub fn read(json: &str, names: &Names) -> Result<Self, serde_json::Error> {
        let object: Object<'_> = serde_json::from_str(json)?;
        let annotations = match object.metadata.annotations {
            Some(annotations) if annotations.get() != "null" => {
                Annotations::read(annotations.get(), names)?
            }
            _ => Annotations::default(),
        };
        let spec = object.spec.unwrap_or_default();
        let pod_cidrs = spec.pod_cidrs.unwrap_or_default();
        let pod_cidrs = if pod_cidrs.is_empty() {
            spec.pod_cidr
                .into_iter()
                .filter(|cidr| !cidr.is_empty())
                .collect()
        } else {
            pod_cidrs
        };
        let conditions = object.status.and_then(|status| status.conditions);
        let condition = conditions
            .unwrap_or_default()
            .into_iter()
            .find(|condition| condition.kind == condition::NETWORK_UNAVAILABLE)
            .map(|condition| Condition {
                status: condition.status.into_owned(),
                reason: condition.reason.unwrap_or_default().into_owned(),
            });
        Ok(Self {
            name: object.metadata.name,
            uid: object.metadata.uid,
            version: object.metadata.resource_version,
            annotations,
            pod_cidrs,
            condition,
        })
    }

    /// Its subnets of `families`: podCIDRs of others are somebody else's.
    ///
    /// # Errors
    /// When a podCIDR is none, or there are more than one of a family; the value is named.
    pub fn subnets(&self, families: &PerFamily<()>) -> Result<PerFamily<IpNet>, String> {
        let mut subnets = PerFamily::default();
        for cidr in &self.pod_cidrs {
            let subnet: IpNet = cidr.parse().map_err(|_| {
                format!("spec.podCIDRs has {cidr}: no prefix such as 10.244.1.0/24")
            })?;
            let family = Family::of_net(&subnet);
            let place: &mut Option<IpNet> = subnets.get_mut(family);
            if let Some(other) = place.replace(subnet.trunc()) {
                let family = family.name();
                return Err(format!(
                    "spec.podCIDRs has both {other} and {cidr}: at most one may be {family}"
                ));
            }
        }
        Ok(subnets.filter_map(|family, subnet| families.get(family).map(|()| *subnet)))
    }

    /// As an entry of the store; absent for a node that no subnet manager has annotated.
    pub fn entry(&self, families: &PerFamily<()>, names: &Names) -> Option<Entry> {
        self.annotations
            .managed()
            .then(|| self.lease(families, names))
    }

    fn lease(&self, families: &PerFamily<()>, names: &Names) -> Entry {
        let subnets = self.subnets(families)?;
        if subnets.is_empty() {
            let wanted: Vec<_> = families.iter().map(|(family, ())| family.name()).collect();
            return Err(format!("it has no podCIDR of {}", wanted.join(" or ")));
        }
        Ok(Lease {
            subnets,
            attributes: self.annotations.attributes(families, names)?,
        })
    }
}

#[cfg(test)]
mod tests;

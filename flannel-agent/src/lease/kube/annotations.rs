//! Annotations of a Node: upstream's names and values (`pkg/subnet/kube/annotations.go`, `kube.go`), byte for byte.
//!
//! Pure: what a node's annotations say, and which of them must be written so that they say what this node publishes.
//! As upstream's, annotations of an address family that is off are left as they are.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor},
};

use crate::{
    family::{Family, PerFamily},
    lease::{
        Attributes,
        value::{self, BackendData, Parts},
    },
};

/// The prefix that upstream uses unless it is told another.
pub const DEFAULT_PREFIX: &str = "flannel.alpha.coreos.com";
/// `kube-subnet-manager` of a node that has a lease.
const MANAGED: &str = "true";
/// What Go makes of backend data that is not there.
const NO_DATA: &str = "null";

/// An annotation without its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Whether a subnet manager has written the others.
    Managed,
    /// Name of the backend.
    BackendType,
    /// What others must know of the backend's IPv4 part, as JSON.
    BackendData,
    /// The same of its IPv6 part.
    BackendV6Data,
    /// The node's IPv4 address.
    PublicIp,
    /// Its IPv6 address.
    PublicIpv6,
    /// Input: what to publish as the IPv4 address.
    PublicIpOverwrite,
    /// Input: what to publish as the IPv6 address.
    PublicIpv6Overwrite,
    /// Input: IPv4 address of the interface between nodes.
    NodePublicIp,
    /// Input: its IPv6 address.
    NodePublicIpv6,
}

impl Key {
    const ALL: [Self; 10] = [
        Self::Managed,
        Self::BackendType,
        Self::BackendData,
        Self::BackendV6Data,
        Self::PublicIp,
        Self::PublicIpv6,
        Self::PublicIpOverwrite,
        Self::PublicIpv6Overwrite,
        Self::NodePublicIp,
        Self::NodePublicIpv6,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Managed => "kube-subnet-manager",
            Self::BackendType => "backend-type",
            Self::BackendData => "backend-data",
            Self::BackendV6Data => "backend-v6-data",
            Self::PublicIp => "public-ip",
            Self::PublicIpv6 => "public-ipv6",
            Self::PublicIpOverwrite => "public-ip-overwrite",
            Self::PublicIpv6Overwrite => "public-ipv6-overwrite",
            Self::NodePublicIp => "node-public-ip",
            Self::NodePublicIpv6 => "node-public-ipv6",
        }
    }
}

/// Why a prefix cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--kube-annotation-prefix = {prefix}: must be a domain such as {DEFAULT_PREFIX}, with at most one / and a name of \
     lower case letters, digits, _ and - behind it"
)]
pub struct PrefixError {
    prefix: String,
}

/// The full names of all annotations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// What comes before a [`Key`]'s name: `domain/` or `domain/name-`.
    prefix: String,
}

impl Names {
    /// Names that begin with a domain, or with a domain, a slash and a name.
    ///
    /// # Errors
    /// When `prefix` is nothing like that.
    pub fn new(prefix: &str) -> Result<Self, PrefixError> {
        let wrong = || PrefixError {
            prefix: prefix.to_owned(),
        };
        let (domain, name) = prefix.split_once('/').unwrap_or((prefix, ""));
        let letters = |text: &str| {
            text.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte)
            })
        };
        let labels = domain.split('.');
        if labels.clone().count() < 2
            || !labels
                .clone()
                .all(|label| !label.is_empty() && letters(label))
            || !letters(name)
        {
            return Err(wrong());
        }
        let dash = if name.is_empty() || name.ends_with('-') {
            ""
        } else {
            "-"
        };
        Ok(Self {
            prefix: format!("{domain}/{name}{dash}"),
        })
    }

    /// The full name of an annotation.
    pub fn full(&self, key: Key) -> String {
        format!("{}{}", self.prefix, key.name())
    }

    fn key(&self, full: &str) -> Option<Key> {
        let name = full.strip_prefix(&self.prefix)?;
        Key::ALL.into_iter().find(|key| key.name() == name)
    }
}

/// Those annotations of a node that are flannel's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations([Option<String>; Key::ALL.len()]);

impl Annotations {
    /// Reads flannel's out of the JSON object of all annotations.
    ///
    /// # Errors
    /// When it is no object, or one of flannel's is no string.
    pub fn read(json: &str, names: &Names) -> Result<Self, serde_json::Error> {
        Picked(names).deserialize(&mut serde_json::Deserializer::from_str(json))
    }

    /// The value of an annotation.
    pub fn get(&self, key: Key) -> Option<&str> {
        self.0[key as usize].as_deref()
    }

    /// Whether the node has a lease.
    pub fn managed(&self) -> bool {
        self.get(Key::Managed) == Some(MANAGED)
    }

    /// An input that is given: upstream takes an empty one for none.
    fn input(&self, key: Key) -> Option<&str> {
        self.get(key).filter(|value| !value.is_empty())
    }

    /// What the node publishes for `families`.
    ///
    /// # Errors
    /// When that is not what flannel writes; the annotation, its value and the rule are named.
    pub fn attributes(
        &self,
        families: &PerFamily<()>,
        names: &Names,
    ) -> Result<Attributes, String> {
        let of = |family, key| families.get(family).and_then(|()| self.get(key));
        Attributes::from_parts(&Parts {
            public_ip: of(Family::V4, Key::PublicIp),
            public_ipv6: of(Family::V6, Key::PublicIpv6),
            backend_type: self.get(Key::BackendType).unwrap_or_default(),
            backend_data: of(Family::V4, Key::BackendData),
            backend_v6_data: of(Family::V6, Key::BackendV6Data),
        })
        .map_err(|error| match error {
            value::Error::Field { field, value, rule } => {
                let field = field.strip_suffix(".VtepMAC").unwrap_or(field);
                let key = match field {
                    "PublicIP" => Key::PublicIp,
                    "PublicIPv6" => Key::PublicIpv6,
                    "BackendV6Data" => Key::BackendV6Data,
                    _ => Key::BackendData,
                };
                format!("annotation {} = {value}: {rule}", names.full(key))
            }
            error @ value::Error::Json { .. } => error.to_string(),
        })
    }

    /// The addresses that `node-public-ip` and `node-public-ipv6` ask for.
    ///
    /// # Errors
    /// When one is no address of its family; annotation, value and remedy are named.
    pub fn node_public(&self, names: &Names) -> Result<PerFamily<IpAddr>, String> {
        let mut public = PerFamily::default();
        for (family, key) in [
            (Family::V4, Key::NodePublicIp),
            (Family::V6, Key::NodePublicIpv6),
        ] {
            let Some(text) = self.input(key) else {
                continue;
            };
            let address = text.parse::<IpAddr>().ok();
            let address = address.filter(|address| Family::of(*address) == family);
            *public.get_mut(family) = Some(address.ok_or_else(|| {
                format!(
                    "annotation {} = {text}: must be an {} address of this node; correct it, or remove it with \
                     kubectl annotate node",
                    names.full(key),
                    family.name()
                )
            })?);
        }
        Ok(public)
    }

    /// What has to be written so that this node's annotations publish `attributes`; empty if they do.
    pub fn changes(&self, attributes: &Attributes) -> BTreeMap<Key, String> {
        let data = |family| {
            attributes
                .data(family)
                .unwrap_or_else(|| NO_DATA.to_owned())
        };
        let address = |address: Option<IpAddr>, unspecified: &str, overwrite| {
            self.input(overwrite).map_or_else(
                || address.map_or_else(|| unspecified.to_owned(), |address| address.to_string()),
                str::to_owned,
            )
        };
        let mut wanted = BTreeMap::from([
            (Key::Managed, MANAGED.to_owned()),
            (Key::BackendType, attributes.backend.kind().to_owned()),
        ]);
        let (v4, v6) = match &attributes.backend {
            BackendData::Vxlan(vteps) => (vteps.v4.is_some(), vteps.v6.is_some()),
            BackendData::HostGw | BackendData::Extension(_) => {
                (true, attributes.addresses.v6.is_some())
            }
            BackendData::Ipip | BackendData::Other(_) => (true, false),
        };
        if v4 {
            wanted.insert(Key::BackendData, data(Family::V4));
            let value = address(attributes.addresses.v4, "0.0.0.0", Key::PublicIpOverwrite);
            wanted.insert(Key::PublicIp, value);
        }
        if v6 {
            wanted.insert(Key::BackendV6Data, data(Family::V6));
            let value = address(attributes.addresses.v6, "::", Key::PublicIpv6Overwrite);
            wanted.insert(Key::PublicIpv6, value);
        }
        wanted.retain(|key, value| self.get(*key) != Some(value));
        wanted
    }
}

/// The patch that writes `changes`: a strategic merge patch of a Node.
pub fn patch(changes: &BTreeMap<Key, String>, names: &Names) -> String {
    let annotations: BTreeMap<String, &String> = changes
        .iter()
        .map(|(key, value)| (names.full(*key), value))
        .collect();
    serde_json::json!({"metadata": {"annotations": annotations}}).to_string()
}

/// Picks flannel's annotations out of all.
struct Picked<'a>(&'a Names);

impl<'de> DeserializeSeed<'de> for Picked<'_> {
    type Value = Annotations;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Annotations, D::Error> {
        deserializer.deserialize_map(self)
    }
}

/// A key of any annotation, which nobody keeps.
#[derive(Deserialize)]
struct Full<'a>(#[serde(borrow)] std::borrow::Cow<'a, str>);

impl<'de> Visitor<'de> for Picked<'_> {
    type Value = Annotations;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of annotations")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations, A::Error> {
        let mut annotations = Annotations::default();
        while let Some(Full(full)) = map.next_key()? {
            match self.0.key(&full) {
                Some(key) => annotations.0[key as usize] = Some(map.next_value()?),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(annotations)
    }
}

#[cfg(test)]
mod tests;

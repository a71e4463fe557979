//! The network config: the JSON document at `<prefix>/config`, its defaults and its rules.
//!
//! Behaves as upstream's `pkg/subnet/config.go` for IPv4: keys match without regard to case, the last of several wins,
//! unknown keys are ignored, `null` is as good as absent, nothing is coerced. What this agent cannot do yet is refused
//! by name; nothing is silently dropped.

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{
    Deserialize, Serialize,
    de::{MapAccess, Visitor},
};
use serde_json::Value;

/// Largest VXLAN network identifier (RFC 7348, section 5: 24 bits).
const VNI_MAX: u64 = (1 << 24) - 1;
/// Subnets are at least this long by default, if the network allows.
const DEFAULT_SUBNET_LEN: u8 = 24;
/// The longest network that still holds four subnets of four addresses.
const LONGEST_NETWORK: u8 = 28;
/// The longest subnet: room for the tunnel device and a bridge.
const LONGEST_SUBNET: u8 = 30;
/// A network must hold at least four subnets, since the first is not used.
const SUBNET_BITS_MIN: u8 = 2;
/// Smallest MTU of an IPv4 link (RFC 791), plus what encapsulation takes.
const UNDERLAY_MTU_MIN: u64 = 68 + 50;
/// Largest MTU that an IPv4 packet can use.
const MTU_MAX: u64 = 65_535;

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
        field: &'static str,
        /// The value as JSON, or `absent`.
        value: String,
        /// What it should be, or what to do.
        rule: String,
    },
}

/// The network config with all defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkConfig {
    /// The flannel network.
    pub network: Ipv4Net,
    /// Prefix length of each node's subnet.
    pub subnet_len: u8,
    /// First subnet that may be allocated.
    pub subnet_min: Ipv4Addr,
    /// Last subnet that may be allocated.
    pub subnet_max: Ipv4Addr,
    /// Whether rules are written with nftables instead of iptables.
    #[serde(rename = "EnableNFTables")]
    pub enable_nftables: bool,
    /// How packets travel between nodes.
    pub backend: Backend,
}

/// How packets travel between nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "Type")]
pub enum Backend {
    /// Encapsulated by a VXLAN device.
    #[serde(rename = "vxlan")]
    Vxlan(Vxlan),
    /// Routed on a shared link.
    #[serde(rename = "host-gw")]
    HostGw,
}

/// Options of the vxlan backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vxlan {
    /// VXLAN network identifier.
    #[serde(rename = "VNI")]
    pub vni: u32,
    /// UDP destination port; 0 is the kernel's default, 8472.
    #[serde(rename = "Port")]
    pub port: u16,
    /// MTU of the underlay in bytes; absent for that of the interface.
    #[serde(rename = "MTU", skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Whether the group policy extension is on.
    #[serde(rename = "GBP")]
    pub gbp: bool,
    /// Whether the device learns FDB entries.
    #[serde(rename = "Learning")]
    pub learning: bool,
    /// Whether peers on the same link are routed to without encapsulation.
    #[serde(rename = "DirectRouting")]
    pub direct_routing: bool,
}

impl NetworkConfig {
    /// Reads and checks a config document.
    ///
    /// # Errors
    /// When it is not JSON, or a field breaks a rule; the first such field is named.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let fields: Fields =
            serde_json::from_slice(json).map_err(|error| Error::Json(error.to_string()))?;
        let enable_v4 = fields.boolean("EnableIPv4", true)?;
        if !enable_v4 {
            return Err(field(
                "EnableIPv4",
                false,
                "an IPv4 network is required; remove the field",
            ));
        }
        // Checked even though unused, so that a typing error shows now and not when IPv6 is switched on.
        fields.parsed::<Ipv6Net>("IPv6Network", "an IPv6 prefix such as fd00:10::/48")?;
        fields.integer("IPv6SubnetLen", 0..=126)?;
        fields.parsed::<Ipv6Addr>("IPv6SubnetMin", "an IPv6 address")?;
        fields.parsed::<Ipv6Addr>("IPv6SubnetMax", "an IPv6 address")?;
        if fields.boolean("EnableIPv6", false)? {
            return Err(field(
                "EnableIPv6",
                true,
                "not supported yet; set it to false or remove it",
            ));
        }
        let network = fields
            .parsed::<Ipv4Net>("Network", "an IPv4 prefix such as 10.5.0.0/16")?
            .ok_or_else(|| absent("Network", "required: an IPv4 prefix such as 10.5.0.0/16"))?
            .trunc();
        let subnet_len = subnet_len(&fields, network)?;
        let size = 1u32 << (32 - subnet_len);
        let first = u32::from(network.network()).saturating_add(size);
        let last = u32::from(network.broadcast()) - (size - 1);
        let subnet_min = bound(&fields, "SubnetMin", network, subnet_len)?.unwrap_or(first.into());
        let subnet_max = bound(&fields, "SubnetMax", network, subnet_len)?.unwrap_or(last.into());
        if subnet_min > subnet_max {
            return Err(field(
                "SubnetMin",
                subnet_min,
                format!("must not be above SubnetMax = {subnet_max}"),
            ));
        }
        Ok(Self {
            network,
            subnet_len,
            subnet_min,
            subnet_max,
            enable_nftables: fields.boolean("EnableNFTables", false)?,
            backend: backend(&fields)?,
        })
    }

    /// Whether `subnet` is one that this config could allocate.
    pub fn allows(&self, subnet: Ipv4Net) -> bool {
        subnet.prefix_len() == self.subnet_len
            && subnet.network() >= self.subnet_min
            && subnet.network() <= self.subnet_max
    }
}

fn subnet_len(fields: &Fields, network: Ipv4Net) -> Result<u8, Error> {
    let shortest = network.prefix_len() + SUBNET_BITS_MIN;
    match fields.integer("SubnetLen", 0..=32)?.unwrap_or(0) as u8 {
        0 if network.prefix_len() > LONGEST_NETWORK => Err(field(
            "Network",
            network,
            format!("too small: the longest useful prefix is /{LONGEST_NETWORK}"),
        )),
        0 => Ok(DEFAULT_SUBNET_LEN.max(shortest)),
        len if len > LONGEST_SUBNET => Err(field(
            "SubnetLen",
            len,
            format!("must be at most {LONGEST_SUBNET}"),
        )),
        len if len < shortest => Err(field(
            "SubnetLen",
            len,
            format!("must be at least {shortest}, so that {network} holds four subnets"),
        )),
        len => Ok(len),
    }
}

fn bound(
    fields: &Fields,
    name: &'static str,
    network: Ipv4Net,
    subnet_len: u8,
) -> Result<Option<Ipv4Addr>, Error> {
    let Some(address) = fields
        .parsed::<Ipv4Addr>(name, "an IPv4 address")?
        .filter(|address| !address.is_unspecified())
    else {
        return Ok(None);
    };
    if !network.contains(&address) {
        return Err(field(
            name,
            address,
            format!("must lie in Network = {network}"),
        ));
    }
    if Ipv4Net::new(address, subnet_len).is_ok_and(|subnet| subnet.network() != address) {
        return Err(field(
            name,
            address,
            format!("must be on a boundary of SubnetLen = {subnet_len}"),
        ));
    }
    Ok(Some(address))
}

fn backend(fields: &Fields) -> Result<Backend, Error> {
    const SUPPORTED: &str = "this agent has vxlan and host-gw; set it to one of them";
    let options = match fields.get("Backend") {
        // Without a backend upstream means udp, whatever its documentation says.
        None => return Err(absent("Backend.Type", format!("means udp; {SUPPORTED}"))),
        Some(value) => serde_json::from_value::<Fields>(value.clone()).map_err(|_| {
            field(
                "Backend",
                value,
                "must be an object such as {\"Type\":\"vxlan\"}",
            )
        })?,
    };
    let kind = options.string("Type", "Backend.Type")?;
    match kind.as_deref().map(str::to_ascii_lowercase).as_deref() {
        Some("vxlan") => Ok(Backend::Vxlan(vxlan(&options)?)),
        Some("host-gw") => Ok(Backend::HostGw),
        Some(other) => Err(field("Backend.Type", Value::from(other), SUPPORTED)),
        None => Err(absent("Backend.Type", SUPPORTED)),
    }
}

fn vxlan(options: &Fields) -> Result<Vxlan, Error> {
    let integer = |name, path, range| options.integer_at(name, path, range);
    let boolean = |name, path| options.boolean_at(name, path, false);
    Ok(Vxlan {
        vni: integer("VNI", "Backend.VNI", 0..=VNI_MAX)?.unwrap_or(1) as u32,
        port: integer("Port", "Backend.Port", 0..=u16::MAX.into())?.unwrap_or(0) as u16,
        mtu: match integer("MTU", "Backend.MTU", 0..=MTU_MAX)? {
            None | Some(0) => None,
            Some(mtu) if mtu < UNDERLAY_MTU_MIN => {
                return Err(field(
                    "Backend.MTU",
                    mtu,
                    format!(
                        "must be at least {UNDERLAY_MTU_MIN}: it is the underlay's, before encapsulation"
                    ),
                ));
            }
            Some(mtu) => Some(mtu as u32),
        },
        gbp: boolean("GBP", "Backend.GBP")?,
        learning: boolean("Learning", "Backend.Learning")?,
        direct_routing: boolean("DirectRouting", "Backend.DirectRouting")?,
    })
}

fn field(field: &'static str, value: impl fmt::Display, rule: impl Into<String>) -> Error {
    Error::Field {
        field,
        value: value.to_string(),
        rule: rule.into(),
    }
}

fn absent(name: &'static str, rule: impl Into<String>) -> Error {
    field(name, "absent", rule)
}

/// A JSON object with lower-cased keys.
struct Fields(BTreeMap<String, Value>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, Value>()? {
                    // As Go's decoder: null leaves the field as it was.
                    if !value.is_null() {
                        fields.insert(key.to_ascii_lowercase(), value);
                    }
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

impl Fields {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(&name.to_ascii_lowercase())
    }

    fn boolean(&self, name: &'static str, default: bool) -> Result<bool, Error> {
        self.boolean_at(name, name, default)
    }

    fn boolean_at(&self, name: &str, path: &'static str, default: bool) -> Result<bool, Error> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(field(path, other, "must be true or false")),
        }
    }

    fn integer(
        &self,
        name: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, Error> {
        self.integer_at(name, name, range)
    }

    fn integer_at(
        &self,
        name: &str,
        path: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, Error> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.as_u64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(field(
                path,
                value,
                format!(
                    "must be a whole number from {} to {}",
                    range.start(),
                    range.end()
                ),
            )),
        }
    }

    fn string(&self, name: &str, path: &'static str) -> Result<Option<String>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(field(path, other, "must be a string")),
        }
    }

    fn parsed<T: std::str::FromStr>(
        &self,
        name: &'static str,
        rule: &str,
    ) -> Result<Option<T>, Error> {
        let text = self.string(name, name)?;
        text.map(|text| {
            text.parse()
                .map_err(|_| field(name, Value::from(text), format!("must be {rule}")))
        })
        .transpose()
    }
}

#[cfg(test)]
mod tests;

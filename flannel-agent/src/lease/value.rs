//! The value of a lease in the store, upstream's `LeaseAttrs`: byte for byte what flanneld writes.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use flannel_common::addr::Mac;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::family::{Family, PerFamily};

/// Why a value cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is not JSON of the expected shape.
    #[error("value = {value}: {reason}")]
    Json {
        /// The value, shortened.
        value: String,
        /// What the parser said.
        reason: String,
    },
    /// A field has a value that breaks a rule.
    #[error("{field} = {value}: {rule}")]
    Field {
        /// Path of the field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        rule: &'static str,
    },
}

/// What a node publishes about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The node's addresses.
    pub addresses: PerFamily<IpAddr>,
    /// Its backend, with what others must know about it.
    pub backend: BackendData,
}

/// A node's backend as its lease tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendData {
    /// vxlan, with its device of each family.
    Vxlan(PerFamily<Vtep>),
    /// host-gw.
    HostGw,
    /// ipip.
    Ipip,
    /// extension: what its first command has printed; absent if there is none.
    Extension(Option<String>),
    /// One that this agent does not have; empty for `udp` and `alloc`, which write none.
    Other(String),
}

/// A node's VXLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vtep {
    /// VXLAN network identifier; old versions of flannel left it out.
    pub vni: Option<u32>,
    /// Its MAC.
    pub mac: Mac,
}

impl BackendData {
    /// `BackendType` in the value.
    pub fn kind(&self) -> &str {
        match self {
            Self::Vxlan(_) => VXLAN,
            Self::HostGw => HOST_GW,
            Self::Ipip => IPIP,
            Self::Extension(_) => EXTENSION,
            Self::Other(kind) => kind,
        }
    }

    /// The MAC of the node's VXLAN device of a family.
    pub fn vtep(&self, family: Family) -> Option<Mac> {
        match self {
            Self::Vxlan(vteps) => vteps.get(family).map(|vtep| vtep.mac),
            _ => None,
        }
    }
}

const VXLAN: &str = "vxlan";
const HOST_GW: &str = "host-gw";
const IPIP: &str = "ipip";
const EXTENSION: &str = "extension";
/// Data that is not there, in JSON.
const NULL: &str = "null";
/// How much of a value an error message repeats, in characters.
const SHOWN: usize = 200;

/// The JSON document. The order of the fields is the order in which Go writes them.
#[derive(Serialize, Deserialize)]
struct Document {
    #[serde(rename = "PublicIP")]
    public_ip: String,
    #[serde(rename = "PublicIPv6", default)]
    public_ipv6: Option<String>,
    #[serde(
        rename = "BackendType",
        default,
        skip_serializing_if = "String::is_empty"
    )]
    backend_type: String,
    #[serde(
        rename = "BackendData",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    backend_data: Option<Box<RawValue>>,
    #[serde(
        rename = "BackendV6Data",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    backend_v6_data: Option<Box<RawValue>>,
}

/// The fields of a value; an empty type is that of `udp` and `alloc`, data are JSON.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts<'a> {
    /// `PublicIP`.
    pub public_ip: Option<&'a str>,
    /// `PublicIPv6`.
    pub public_ipv6: Option<&'a str>,
    /// `BackendType`.
    pub backend_type: &'a str,
    /// `BackendData`.
    pub backend_data: Option<&'a str>,
    /// `BackendV6Data`.
    pub backend_v6_data: Option<&'a str>,
}

#[derive(Serialize, Deserialize)]
struct VxlanData {
    #[serde(rename = "VNI", default, skip_serializing_if = "Option::is_none")]
    vni: Option<u32>,
    #[serde(rename = "VtepMAC")]
    vtep_mac: String,
}

impl Attributes {
    /// Whether these are the same node's as `addresses`: by the IPv4 address, as upstream tells, or without one by the
    /// IPv6 address.
    pub fn is_of(&self, addresses: &PerFamily<IpAddr>) -> bool {
        match (self.addresses.v4, addresses.v4) {
            (None, None) => self.addresses.v6.is_some() && self.addresses.v6 == addresses.v6,
            (one, other) => one == other,
        }
    }

    /// The value to store.
    pub fn to_json(&self) -> String {
        let document = Document {
            public_ip: self
                .addresses
                .v4
                .unwrap_or(Ipv4Addr::UNSPECIFIED.into())
                .to_string(),
            public_ipv6: self.addresses.v6.map(|address| address.to_string()),
            backend_type: self.backend.kind().to_owned(),
            backend_data: self.raw_data(Family::V4),
            backend_v6_data: self.raw_data(Family::V6),
        };
        serde_json::to_string(&document).expect("a struct of plain fields")
    }

    /// The backend's data of a family as JSON; absent if it has none.
    pub fn data(&self, family: Family) -> Option<String> {
        self.raw_data(family).map(|data| data.get().to_owned())
    }

    fn raw_data(&self, family: Family) -> Option<Box<RawValue>> {
        match (&self.backend, family) {
            (BackendData::Vxlan(vteps), _) => vteps.get(family).map(|vtep| {
                raw(&VxlanData {
                    vni: vtep.vni,
                    vtep_mac: vtep.mac.to_string(),
                })
            }),
            (BackendData::Extension(output), Family::V4) => output.as_deref().map(go_string),
            _ => None,
        }
    }

    /// Reads a stored value.
    ///
    /// # Errors
    /// When it is not what flannel writes; the field, its value and the rule are named.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let document: Document = serde_json::from_slice(json).map_err(|error| Error::Json {
            value: String::from_utf8_lossy(json).chars().take(SHOWN).collect(),
            reason: error.to_string(),
        })?;
        Self::from_parts(&Parts {
            public_ip: Some(&document.public_ip),
            public_ipv6: document.public_ipv6.as_deref(),
            backend_type: &document.backend_type,
            backend_data: document.backend_data.as_deref().map(RawValue::get),
            backend_v6_data: document.backend_v6_data.as_deref().map(RawValue::get),
        })
    }

    /// Reads the fields of a value, for stores that keep them apart.
    ///
    /// # Errors
    /// When they are not what flannel writes; the field, its value and the rule are named.
    pub fn from_parts(parts: &Parts<'_>) -> Result<Self, Error> {
        let v4 = parts
            .public_ip
            .map(|text| address::<Ipv4Addr>("PublicIP", text, "must be an IPv4 address"))
            .transpose()?;
        let v6 = parts
            .public_ipv6
            .filter(|text| !text.is_empty())
            .map(|text| address::<Ipv6Addr>("PublicIPv6", text, "must be an IPv6 address"))
            .transpose()?;
        let backend = match parts.backend_type {
            VXLAN => BackendData::Vxlan(PerFamily {
                v4: vxlan("BackendData", parts.backend_data)?,
                v6: vxlan("BackendV6Data", parts.backend_v6_data)?,
            }),
            HOST_GW => BackendData::HostGw,
            IPIP => BackendData::Ipip,
            EXTENSION => {
                let data = parts.backend_data.filter(|data| *data != NULL);
                BackendData::Extension(data.map(output))
            }
            other => BackendData::Other(other.to_owned()),
        };
        if let BackendData::Vxlan(vteps) = &backend
            && vteps.is_empty()
        {
            return Err(Error::Field {
                field: "BackendData",
                value: "absent".into(),
                rule: VXLAN_RULE,
            });
        }
        // A node without an address of a family writes zeros.
        let given = |address: &IpAddr| !address.is_unspecified();
        Ok(Self {
            addresses: PerFamily {
                v4: v4.filter(given),
                v6: v6.filter(given),
            },
            backend,
        })
    }
}

/// A value that is passed on as it is.
fn raw(value: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("plain fields")
}

/// A string as Go's `encoding/json` writes it: fit for HTML, and for JavaScript.
fn go_string(text: &str) -> Box<RawValue> {
    let mut json = raw(&text).get().to_owned();
    for (character, escaped) in [
        ('<', "\\u003c"),
        ('>', "\\u003e"),
        ('&', "\\u0026"),
        ('\u{2028}', "\\u2028"),
        ('\u{2029}', "\\u2029"),
    ] {
        json = json.replace(character, escaped);
    }
    RawValue::from_string(json).expect("a JSON string with some characters escaped")
}

fn address<A: FromStr + Into<IpAddr>>(
    field: &'static str,
    text: &str,
    rule: &'static str,
) -> Result<IpAddr, Error> {
    text.parse::<A>().map(Into::into).map_err(|_| Error::Field {
        field,
        value: text.to_owned(),
        rule,
    })
}

const VXLAN_RULE: &str = "must be {\"VNI\":<number>,\"VtepMAC\":\"<address>\"}";

fn vxlan(field: &'static str, data: Option<&str>) -> Result<Option<Vtep>, Error> {
    let text = data.unwrap_or(NULL);
    if text == NULL {
        return Ok(None);
    }
    let data: VxlanData = serde_json::from_str(text).map_err(|_| Error::Field {
        field,
        value: text.to_owned(),
        rule: VXLAN_RULE,
    })?;
    let mac = parse_mac(&data.vtep_mac)
        .filter(crate::kernel::decode::is_unicast)
        .ok_or_else(|| Error::Field {
            field: match field {
                "BackendData" => "BackendData.VtepMAC",
                _ => "BackendV6Data.VtepMAC",
            },
            value: data.vtep_mac.clone(),
            rule: "must be a unicast Ethernet address such as 0e:de:d4:9c:3c:d8",
        })?;
    Ok(Some(Vtep { vni: data.vni, mac }))
}

/// What an extension's command has printed: a JSON string; anything else is passed on as it is.
fn output(data: &str) -> String {
    serde_json::from_str(data).unwrap_or_else(|_| data.to_owned())
}

fn parse_mac(text: &str) -> Option<Mac> {
    let mut mac = Mac::default();
    let mut parts = text.split([':', '-']);
    for byte in &mut mac.0 {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(address: [u8; 4]) -> PerFamily<IpAddr> {
        PerFamily::v4(IpAddr::from(address))
    }

    #[test]
    fn values_are_upstreams_to_the_byte() {
        let vtep = |last| Vtep {
            vni: Some(1),
            mac: Mac([0x0e, 0xde, 0xd4, 0x9c, 0x3c, last]),
        };
        let addresses = v4([192, 168, 100, 2]);
        let of = |backend| Attributes { addresses, backend };
        let dual = Attributes {
            addresses: PerFamily {
                v6: Some("fd00:100::2".parse().unwrap()),
                ..addresses
            },
            backend: BackendData::Vxlan(PerFamily {
                v4: Some(vtep(0xd8)),
                v6: Some(vtep(0xd9)),
            }),
        };
        let none = Attributes {
            addresses: v4([1, 2, 3, 4]),
            backend: BackendData::Other(String::new()),
        };
        for (attributes, json) in [
            (
                of(BackendData::Vxlan(PerFamily::v4(vtep(0xd8)))),
                r#"{"PublicIP":"192.168.100.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:de:d4:9c:3c:d8"}}"#,
            ),
            (
                dual,
                r#"{"PublicIP":"192.168.100.2","PublicIPv6":"fd00:100::2","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:de:d4:9c:3c:d8"},"BackendV6Data":{"VNI":1,"VtepMAC":"0e:de:d4:9c:3c:d9"}}"#,
            ),
            (
                of(BackendData::HostGw),
                r#"{"PublicIP":"192.168.100.2","PublicIPv6":null,"BackendType":"host-gw"}"#,
            ),
            (
                of(BackendData::Ipip),
                r#"{"PublicIP":"192.168.100.2","PublicIPv6":null,"BackendType":"ipip"}"#,
            ),
            (
                of(BackendData::Extension(Some("a \"key\"".into()))),
                r#"{"PublicIP":"192.168.100.2","PublicIPv6":null,"BackendType":"extension","BackendData":"a \"key\""}"#,
            ),
            (
                of(BackendData::Extension(Some("<a>\n&".into()))),
                r#"{"PublicIP":"192.168.100.2","PublicIPv6":null,"BackendType":"extension","BackendData":"\u003ca\u003e\n\u0026"}"#,
            ),
            (
                of(BackendData::Extension(Some(String::new()))),
                r#"{"PublicIP":"192.168.100.2","PublicIPv6":null,"BackendType":"extension","BackendData":""}"#,
            ),
            (
                of(BackendData::Extension(None)),
                r#"{"PublicIP":"192.168.100.2","PublicIPv6":null,"BackendType":"extension"}"#,
            ),
            (none, r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#),
        ] {
            assert_eq!(attributes.to_json(), json);
            assert_eq!(Attributes::parse(json.as_bytes()), Ok(attributes));
        }
    }

    #[test]
    fn values_of_other_versions_are_understood() {
        let parse = |json: &str| Attributes::parse(json.as_bytes()).unwrap().backend;
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let vtep = Vtep { vni: None, mac };
        assert_eq!(
            parse(
                r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:00:00:00:01"}}"#
            ),
            BackendData::Vxlan(PerFamily::v4(vtep))
        );
        assert_eq!(
            parse(
                r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::1","BackendType":"vxlan","BackendData":null,"BackendV6Data":{"VtepMAC":"02:00:00:00:00:01"}}"#
            ),
            BackendData::Vxlan(PerFamily {
                v4: None,
                v6: Some(vtep)
            })
        );
        assert_eq!(
            parse(
                r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"k"}}"#
            ),
            BackendData::Other("wireguard".into())
        );
    }

    #[test]
    fn a_node_is_known_by_its_ipv4_address_first() {
        let of = |v4: Option<&str>, v6: Option<&str>| PerFamily {
            v4: v4.map(|text| text.parse().unwrap()),
            v6: v6.map(|text| text.parse().unwrap()),
        };
        let is = |own: PerFamily<IpAddr>, other| {
            let backend = BackendData::HostGw;
            let addresses = own;
            Attributes { addresses, backend }.is_of(&other)
        };
        assert!(is(
            of(Some("1.2.3.4"), None),
            of(Some("1.2.3.4"), Some("fd00::1"))
        ));
        assert!(!is(
            of(Some("1.2.3.4"), Some("fd00::1")),
            of(Some("1.2.3.5"), Some("fd00::1"))
        ));
        assert!(is(of(None, Some("fd00::1")), of(None, Some("fd00::1"))));
        assert!(!is(of(None, None), of(None, None)));
    }

    #[test]
    fn errors_name_field_and_value() {
        let error = |json: &str| Attributes::parse(json.as_bytes()).unwrap_err().to_string();
        assert_eq!(
            error(r#"{"PublicIP":"nowhere"}"#),
            "PublicIP = nowhere: must be an IPv4 address"
        );
        assert!(error("garbage").starts_with("value = garbage: "));
        assert!(
            error(r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan"}"#)
                .starts_with("BackendData = absent: ")
        );
        for mac in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "0g:00:00:00:00:01",
        ] {
            let json = format!(
                r#"{{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
            );
            assert!(
                error(&json).starts_with(&format!("BackendData.VtepMAC = {mac}: ")),
                "{mac}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_value_makes_it_panic(bytes: Vec<u8>) {
            let _ = Attributes::parse(&bytes);
        }
    }
}

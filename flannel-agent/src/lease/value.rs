//! The value of a lease in the store, upstream's `LeaseAttrs`: byte for byte what flanneld writes.

use std::net::{Ipv4Addr, Ipv6Addr};

use flannel_common::addr::Mac;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

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
    /// The node's address.
    pub public_ip: Ipv4Addr,
    /// Its backend, with what others must know about it.
    pub backend: BackendData,
}

/// A node's backend as its lease tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendData {
    /// vxlan.
    Vxlan {
        /// VXLAN network identifier; old versions of flannel left it out.
        vni: Option<u32>,
        /// MAC of the node's VXLAN device.
        mac: Mac,
    },
    /// host-gw.
    HostGw,
    /// One that this agent does not have; empty for `udp` and `alloc`, which write none.
    Other(String),
}

impl BackendData {
    /// `BackendType` in the value.
    pub fn kind(&self) -> &str {
        match self {
            Self::Vxlan { .. } => VXLAN,
            Self::HostGw => HOST_GW,
            Self::Other(kind) => kind,
        }
    }
}

const VXLAN: &str = "vxlan";
const HOST_GW: &str = "host-gw";
/// How much of a value an error message repeats, in characters.
const SHOWN: usize = 200;

/// The JSON document. The order of the fields is the order in which Go writes them.
#[derive(Serialize, Deserialize)]
struct Document {
    #[serde(rename = "PublicIP")]
    public_ip: String,
    #[serde(rename = "PublicIPv6", default)]
    public_ipv6: Option<Ipv6Addr>,
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
}

#[derive(Serialize, Deserialize)]
struct VxlanData {
    #[serde(rename = "VNI", default, skip_serializing_if = "Option::is_none")]
    vni: Option<u32>,
    #[serde(rename = "VtepMAC")]
    vtep_mac: String,
}

impl Attributes {
    /// The value to store.
    pub fn to_json(&self) -> String {
        let backend_data = match &self.backend {
            BackendData::Vxlan { vni, mac } => {
                let data = VxlanData {
                    vni: *vni,
                    vtep_mac: mac.to_string(),
                };
                Some(serde_json::value::to_raw_value(&data).expect("a struct of plain fields"))
            }
            BackendData::HostGw | BackendData::Other(_) => None,
        };
        let document = Document {
            public_ip: self.public_ip.to_string(),
            public_ipv6: None,
            backend_type: self.backend.kind().to_owned(),
            backend_data,
        };
        serde_json::to_string(&document).expect("a struct of plain fields")
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
        let public_ip = document.public_ip.parse().map_err(|_| Error::Field {
            field: "PublicIP",
            value: document.public_ip.clone(),
            rule: "must be an IPv4 address",
        })?;
        let backend = match document.backend_type.as_str() {
            VXLAN => vxlan(document.backend_data.as_deref())?,
            HOST_GW => BackendData::HostGw,
            _ => BackendData::Other(document.backend_type),
        };
        Ok(Self { public_ip, backend })
    }
}

fn vxlan(data: Option<&RawValue>) -> Result<BackendData, Error> {
    let text = data.map_or("absent", RawValue::get);
    let fail = |rule| Error::Field {
        field: "BackendData",
        value: text.to_owned(),
        rule,
    };
    let data: VxlanData = serde_json::from_str(text)
        .map_err(|_| fail("must be {\"VNI\":<number>,\"VtepMAC\":\"<address>\"}"))?;
    let mac = parse_mac(&data.vtep_mac)
        .filter(crate::kernel::decode::is_unicast)
        .ok_or_else(|| Error::Field {
            field: "BackendData.VtepMAC",
            value: data.vtep_mac.clone(),
            rule: "must be a unicast Ethernet address such as 0e:de:d4:9c:3c:d8",
        })?;
    Ok(BackendData::Vxlan { vni: data.vni, mac })
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

    #[test]
    fn values_are_upstreams_to_the_byte() {
        let vxlan = Attributes {
            public_ip: Ipv4Addr::new(192, 168, 100, 2),
            backend: BackendData::Vxlan {
                vni: Some(1),
                mac: Mac([0x0e, 0xde, 0xd4, 0x9c, 0x3c, 0xd8]),
            },
        };
        assert_eq!(
            vxlan.to_json(),
            r#"{"PublicIP":"192.168.100.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:de:d4:9c:3c:d8"}}"#
        );
        let host_gw = Attributes {
            backend: BackendData::HostGw,
            ..vxlan.clone()
        };
        assert_eq!(
            host_gw.to_json(),
            r#"{"PublicIP":"192.168.100.2","PublicIPv6":null,"BackendType":"host-gw"}"#
        );
        let none = Attributes {
            backend: BackendData::Other(String::new()),
            public_ip: Ipv4Addr::new(1, 2, 3, 4),
        };
        assert_eq!(
            none.to_json(),
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#
        );
        for attributes in [vxlan, host_gw, none] {
            assert_eq!(
                Attributes::parse(attributes.to_json().as_bytes()),
                Ok(attributes)
            );
        }
    }

    #[test]
    fn values_of_other_versions_are_understood() {
        let parse = |json: &str| Attributes::parse(json.as_bytes()).unwrap().backend;
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        assert_eq!(
            parse(
                r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:00:00:00:01"}}"#
            ),
            BackendData::Vxlan { vni: None, mac }
        );
        assert_eq!(
            parse(
                r#"{"PublicIP":"1.2.3.4","PublicIPv6":"fd00::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}}"#
            ),
            BackendData::Vxlan { vni: Some(1), mac }
        );
        assert_eq!(
            parse(
                r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"k"}}"#
            ),
            BackendData::Other("wireguard".into())
        );
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

//! Subnets and leases, as they stand in etcd: key `<prefix>/subnets/<ip>-<length>`, in dual stack
//! `<prefix>/subnets/<ip>-<length>&<ipv6>-<length>`; value compact JSON (upstream `pkg/subnet/etcd/registry.go`).

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::Deserialize;

use crate::error::{Error, Result};

/// An IPv4 prefix, such as a node's subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subnet {
    /// First address of the prefix.
    pub address: Ipv4Addr,
    /// Prefix length in bits, 0 to 32.
    pub length: u8,
}

impl Subnet {
    /// The `n`th address of the subnet; the gateway of flannel's pods is number 1.
    pub fn host(self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address) + n)
    }

    /// How many addresses it holds.
    pub fn size(self) -> u64 {
        1 << (u32::BITS - u32::from(self.length))
    }

    /// Whether the address lies in the subnet.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        let offset = u32::from(address).wrapping_sub(u32::from(self.address));
        u64::from(offset) < self.size()
    }

    /// As it stands in a lease's key: `10.5.9.0-24`.
    pub fn key(self) -> String {
        format!("{}-{}", self.address, self.length)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Subnet {
    type Err = Error;

    /// Reads `10.5.9.0/24`, and `10.5.9.0-24` as in keys. Bits behind the prefix are cleared, as flannel does.
    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.split_once(['/', '-']).and_then(|(address, length)| {
            let (address, length) = (
                address.parse::<Ipv4Addr>().ok()?,
                length.parse::<u8>().ok()?,
            );
            let mask = u32::MAX
                .checked_shl(u32::BITS.checked_sub(u32::from(length))?)
                .unwrap_or(0);
            Some(Self {
                address: Ipv4Addr::from(u32::from(address) & mask),
                length,
            })
        });
        parsed.ok_or_else(|| Error::Parse {
            what: "subnet".to_owned(),
            reason: "expected <IPv4 address>/<length>".to_owned(),
            text: text.to_owned(),
        })
    }
}

/// An IPv6 prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subnet6 {
    /// First address of the prefix.
    pub address: Ipv6Addr,
    /// Prefix length in bits, 0 to 128.
    pub length: u8,
}

impl Subnet6 {
    /// The `n`th address of the subnet.
    pub fn host(self, n: u128) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.address.to_bits() + n)
    }

    /// Whether the address lies in the subnet.
    pub fn contains(self, address: Ipv6Addr) -> bool {
        address.to_bits() & mask(self.length) == self.address.to_bits()
    }

    /// As it stands in a lease's key, behind `&`: `fd00:5:0:11::-64`.
    pub fn key(self) -> String {
        format!("{}-{}", self.address, self.length)
    }
}

/// The bits of a prefix of this length, at most 128.
fn mask(length: u8) -> u128 {
    u128::MAX
        .checked_shl(u128::BITS.saturating_sub(length.into()))
        .unwrap_or(0)
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Subnet6 {
    type Err = Error;

    /// Reads `fd00:5::/48`, and `fd00:5::-48` as in keys. Bits behind the prefix are cleared.
    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.split_once(['/', '-']).and_then(|(address, length)| {
            let address = address.parse::<Ipv6Addr>().ok()?;
            let length = length.parse::<u8>().ok()?;
            (u32::from(length) <= u128::BITS).then(|| Self {
                address: Ipv6Addr::from_bits(address.to_bits() & mask(length)),
                length,
            })
        });
        parsed.ok_or_else(|| Error::Parse {
            what: "IPv6 subnet".to_owned(),
            reason: "expected <IPv6 address>/<length>".to_owned(),
            text: text.to_owned(),
        })
    }
}

/// What comes behind `<prefix>/subnets/` in a lease's key.
pub fn key(subnet: Subnet, subnet6: Option<Subnet6>) -> String {
    match subnet6 {
        None => subnet.key(),
        Some(subnet6) => format!("{}&{}", subnet.key(), subnet6.key()),
    }
}

/// A node's lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The node's subnet, from the key.
    pub subnet: Subnet,
    /// Its IPv6 subnet in dual stack, from the key.
    pub subnet6: Option<Subnet6>,
    /// The rest, from the value.
    pub value: LeaseValue,
}

/// The value of a lease's key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct LeaseValue {
    /// The address at which other nodes reach the node.
    #[serde(rename = "PublicIP")]
    pub public_ip: Ipv4Addr,
    /// The same over IPv6, in dual stack.
    #[serde(rename = "PublicIPv6", default)]
    pub public_ipv6: Option<Ipv6Addr>,
    /// `vxlan`, `host-gw`, …
    pub backend_type: Option<String>,
    /// What the backend publishes; none if it is not of VXLAN's form.
    #[serde(default, deserialize_with = "vxlan_or_none")]
    pub backend_data: Option<BackendData>,
    /// The same of the IPv6 device.
    #[serde(rename = "BackendV6Data", default, deserialize_with = "vxlan_or_none")]
    pub backend_v6_data: Option<BackendData>,
}

/// Other backends publish other forms: a string (`extension`), a key and a port (`wireguard`).
fn vxlan_or_none<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<BackendData>, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).ok())
}

/// What the VXLAN backend publishes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct BackendData {
    /// VXLAN network identifier.
    #[serde(rename = "VNI")]
    pub vni: Option<u32>,
    /// MAC address of the node's VXLAN device.
    #[serde(rename = "VtepMAC")]
    pub vtep_mac: Option<String>,
}

impl Lease {
    /// Reads one key and its value.
    ///
    /// # Errors
    /// [`Error::Parse`] with the part that is malformed.
    pub fn parse(key: &str, value: &str) -> Result<Self> {
        let name = key.rsplit('/').next().unwrap_or(key);
        let (subnet, subnet6) = match name.split_once('&') {
            None => (name.parse()?, None),
            Some((subnet, subnet6)) => (subnet.parse()?, Some(subnet6.parse()?)),
        };
        let value = serde_json::from_str(value).map_err(|error| Error::Parse {
            what: format!("lease {key}"),
            reason: error.to_string(),
            text: value.to_owned(),
        })?;
        Ok(Self {
            subnet,
            subnet6,
            value,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets() {
        let subnet: Subnet = "10.5.15.65/26".parse().unwrap();
        assert_eq!(
            (subnet.to_string(), subnet.key()),
            ("10.5.15.64/26".to_owned(), "10.5.15.64-26".to_owned())
        );
        assert_eq!("10.5.15.64-26".parse::<Subnet>().unwrap(), subnet);
        assert_eq!(
            (subnet.host(1), subnet.size()),
            (Ipv4Addr::new(10, 5, 15, 65), 64)
        );
        assert!(subnet.contains(Ipv4Addr::new(10, 5, 15, 127)));
        assert!(
            !subnet.contains(Ipv4Addr::new(10, 5, 15, 128))
                && !subnet.contains(Ipv4Addr::new(10, 5, 15, 63))
        );
        assert_eq!(
            "1.2.3.4/0".parse::<Subnet>().unwrap().address,
            Ipv4Addr::UNSPECIFIED
        );
        for bad in ["10.5.15.0", "10.5.15.0/33", "10.5/16", "a-b", ""] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn leases_as_upstream_writes_them() {
        let key = "/coreos.com/network/subnets/10.5.11.0-24";
        let vxlan = r#"{"PublicIP":"192.168.100.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:de:d4:9c:3c:d8"}}"#;
        let lease = Lease::parse(key, vxlan).unwrap();
        assert_eq!(lease.subnet.to_string(), "10.5.11.0/24");
        assert_eq!(lease.value.public_ip, Ipv4Addr::new(192, 168, 100, 2));
        assert_eq!(
            lease.value.backend_data.unwrap().vtep_mac.as_deref(),
            Some("0e:de:d4:9c:3c:d8")
        );
        let host_gw = r#"{"PublicIP":"192.168.100.2","PublicIPv6":null,"BackendType":"host-gw"}"#;
        assert_eq!(Lease::parse(key, host_gw).unwrap().value.backend_data, None);
        assert!(
            Lease::parse(key, "{}")
                .unwrap_err()
                .to_string()
                .contains("PublicIP")
        );
    }

    #[test]
    fn dual_stack_leases_as_upstream_writes_them() {
        let key = "/coreos.com/network/subnets/10.5.3.0-24&fd00:5:0:11::-64";
        let value = r#"{"PublicIP":"192.168.101.3","PublicIPv6":"fd00:101::3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"4a:65:e6:66:57:bd"},"BackendV6Data":{"VNI":1,"VtepMAC":"a2:e7:c6:44:5f:98"}}"#;
        let lease = Lease::parse(key, value).unwrap();
        let subnet6 = lease.subnet6.unwrap();
        assert_eq!(
            super::key(lease.subnet, lease.subnet6),
            "10.5.3.0-24&fd00:5:0:11::-64"
        );
        assert_eq!(subnet6.to_string(), "fd00:5:0:11::/64");
        assert_eq!(
            subnet6.host(1),
            "fd00:5:0:11::1".parse::<Ipv6Addr>().unwrap()
        );
        assert!(subnet6.contains("fd00:5:0:11::2".parse().unwrap()));
        assert!(!subnet6.contains("fd00:5:0:12::2".parse().unwrap()));
        assert_eq!(lease.value.public_ipv6, "fd00:101::3".parse().ok());
        let mac = lease.value.backend_v6_data.unwrap().vtep_mac;
        assert_eq!(mac.as_deref(), Some("a2:e7:c6:44:5f:98"));
        assert!(Lease::parse("/x/10.5.3.0-24&fd00::-129", value).is_err());
        assert!(
            "fd00::1/0"
                .parse::<Subnet6>()
                .unwrap()
                .address
                .is_unspecified()
        );
    }

    #[test]
    fn data_of_other_backends_is_passed_by() {
        let value = r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"extension","BackendData":"anything"}"#;
        let lease = Lease::parse("10.5.3.0-24", value).unwrap();
        assert_eq!(lease.value.backend_data, None);
    }
}

//! Values that exist once per address family: a node has a subnet, an address, a VXLAN device for IPv4, for IPv6, or for
//! both.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The family of a prefix.
    pub const fn of_net(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// Bits of an address.
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// `IPv4` or `IPv6`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The address with this number, the inverse of [`number`]; none if the family has no such number.
    pub fn address(self, number: u128) -> Option<IpAddr> {
        match self {
            Self::V4 => Some(IpAddr::V4(u32::try_from(number).ok()?.into())),
            Self::V6 => Some(IpAddr::V6(number.into())),
        }
    }
}

/// An address as a number, the first bit the most significant.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// Up to one value of a kind for each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PerFamily<T> {
    /// For IPv4.
    pub v4: Option<T>,
    /// For IPv6.
    pub v6: Option<T>,
}

impl<T> Default for PerFamily<T> {
    fn default() -> Self {
        Self { v4: None, v6: None }
    }
}

impl<T> PerFamily<T> {
    /// For IPv4 only.
    pub const fn v4(value: T) -> Self {
        Self {
            v4: Some(value),
            v6: None,
        }
    }

    /// The value of a family.
    pub const fn get(&self, family: Family) -> Option<&T> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// The value of a family, to change it.
    pub const fn get_mut(&mut self, family: Family) -> &mut Option<T> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// All values with their families, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        Family::ALL
            .into_iter()
            .filter_map(|family| Some((family, self.get(family)?)))
    }

    /// The values alone, IPv4 first.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.v4.iter().chain(&self.v6)
    }

    /// Other values from these.
    pub fn map<U>(&self, mut change: impl FnMut(Family, &T) -> U) -> PerFamily<U> {
        self.filter_map(|family, value| Some(change(family, value)))
    }

    /// Other values from some of these.
    pub fn filter_map<U>(&self, mut change: impl FnMut(Family, &T) -> Option<U>) -> PerFamily<U> {
        PerFamily {
            v4: self.v4.as_ref().and_then(|value| change(Family::V4, value)),
            v6: self.v6.as_ref().and_then(|value| change(Family::V6, value)),
        }
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}

impl<T: ToString> PerFamily<T> {
    /// The values as text, separated by commas.
    pub fn join(&self) -> String {
        let texts: Vec<String> = self.values().map(ToString::to_string).collect();
        texts.join(",")
    }
}

/// The address that pods of a subnet use as their gateway: its first host address.
pub fn gateway(net: IpNet) -> IpAddr {
    let first = net.network();
    // Only a prefix that is no node's subnet, such as a damaged file may name, has no other address than its first.
    number(first)
        .checked_add(1)
        .and_then(|number| Family::of(first).address(number))
        .filter(|gateway| net.contains(gateway))
        .unwrap_or(first)
}

/// The prefix that holds `address` alone.
pub fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// Whether no router passes packets to an address on (RFC 3927, RFC 4291 section 2.5.6).
pub const fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Whether two prefixes have an address in common.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_are_the_first_host_address() {
        let of = |net: &str| gateway(net.parse().unwrap()).to_string();
        assert_eq!(of("10.5.9.0/24"), "10.5.9.1");
        assert_eq!(of("fd00:5:9::/64"), "fd00:5:9::1");
        assert_eq!(of("10.5.9.7/32"), "10.5.9.7");
        assert_eq!(of("255.255.255.255/32"), "255.255.255.255");
        let last = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        assert_eq!(of(&format!("{last}/128")), last);
    }

    #[test]
    fn values_come_in_order_of_families() {
        let both = PerFamily {
            v4: Some(4),
            v6: Some(6),
        };
        assert_eq!(both.values().copied().collect::<Vec<_>>(), [4, 6]);
        assert_eq!(
            both.filter_map(|family, value| (family == Family::V6).then_some(value * 2)),
            PerFamily {
                v4: None,
                v6: Some(12)
            }
        );
        assert!(PerFamily::<()>::default().is_empty());
    }

    #[test]
    fn prefixes_overlap_only_within_their_family() {
        let overlaps = |a: &str, b: &str| overlap(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(overlaps("10.5.0.0/16", "10.5.9.0/24"));
        assert!(overlaps("fd00::/56", "fd00::/48"));
        assert!(!overlaps("10.5.0.0/24", "10.5.1.0/24"));
        assert!(!overlaps("0.0.0.0/0", "::/0"));
    }
}

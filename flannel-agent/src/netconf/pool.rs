//! The subnets that may be allocated of one address family: `Network`, `SubnetLen`, `SubnetMin` and `SubnetMax`, and
//! their IPv6 counterparts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::fields::{Noted, Reader};
use crate::family::{Family, number};

/// A network must hold at least four subnets, since the first is not used.
const SUBNET_BITS_MIN: u8 = 2;

/// The flannel network of one family, and which of its subnets may be allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The flannel network.
    pub network: IpNet,
    /// Prefix length of each node's subnet.
    pub subnet_len: u8,
    /// First subnet that may be allocated.
    pub subnet_min: IpAddr,
    /// Last subnet that may be allocated.
    pub subnet_max: IpAddr,
}

impl Pool {
    /// Whether `subnet` is one that could be allocated.
    pub fn allows(&self, subnet: &IpNet) -> bool {
        Family::of_net(subnet) == Family::of_net(&self.network)
            && subnet.prefix_len() == self.subnet_len
            && subnet.network() >= self.subnet_min
            && subnet.network() <= self.subnet_max
    }

    /// Distance between the first addresses of two subnets that follow each other.
    pub fn step(&self) -> u128 {
        1 << (Family::of_net(&self.network).bits() - self.subnet_len)
    }
}

/// Who chooses the nodes' subnets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allocation {
    /// The nodes themselves, by upstream's rules.
    Here,
    /// Somebody else, such as Kubernetes: the rules are not ours.
    Elsewhere,
}

/// How the fields of a family are called, and upstream's limits.
struct Rules {
    family: Family,
    network: &'static str,
    subnet_len: &'static str,
    subnet_min: &'static str,
    subnet_max: &'static str,
    /// Subnets are at least this long by default, if the network allows.
    default_len: u8,
    /// The longest network that still holds four subnets of four addresses.
    longest_network: u8,
    /// The longest subnet: room for the tunnel device and a bridge.
    longest_subnet: u8,
    prefix: &'static str,
}

const V4: Rules = Rules {
    family: Family::V4,
    network: "Network",
    subnet_len: "SubnetLen",
    subnet_min: "SubnetMin",
    subnet_max: "SubnetMax",
    default_len: 24,
    longest_network: 28,
    longest_subnet: 30,
    prefix: "an IPv4 prefix such as 10.5.0.0/16",
};

const V6: Rules = Rules {
    family: Family::V6,
    network: "IPv6Network",
    subnet_len: "IPv6SubnetLen",
    subnet_min: "IPv6SubnetMin",
    subnet_max: "IPv6SubnetMax",
    default_len: 64,
    longest_network: 124,
    longest_subnet: 126,
    prefix: "an IPv6 prefix such as fd00:10::/48",
};

/// Reads the fields of `family`. With `enabled` false they are only checked for their form, so that a typing error
/// shows now and not when the family is switched on.
pub(super) fn read(
    reader: &mut Reader<'_>,
    family: Family,
    enabled: bool,
    allocation: Allocation,
) -> Result<Option<Pool>, Noted> {
    let rules = match family {
        Family::V4 => V4,
        Family::V6 => V6,
    };
    let network = rules.prefix(reader);
    let len = reader.integer(rules.subnet_len, 0..=u64::from(family.bits()));
    let min = rules.address(reader, rules.subnet_min);
    let max = rules.address(reader, rules.subnet_max);
    let (network, len, min, max) = (network?, len?.unwrap_or(0) as u8, min?, max?);
    if !enabled {
        return Ok(None);
    }
    let Some(network) = network else {
        return Err(reader.fail(
            rules.network,
            "absent",
            format!("required: {}", rules.prefix),
        ));
    };
    if allocation == Allocation::Elsewhere {
        return Ok(Some(Pool {
            network,
            subnet_len: rules.default_len.max(network.prefix_len()),
            subnet_min: network.network(),
            subnet_max: network.broadcast(),
        }));
    }
    let subnet_len = rules.subnet_len(reader, network, len)?;
    let step = 1u128 << (family.bits() - subnet_len);
    let edge = |number: u128| family.address(number).unwrap_or(network.network());
    let first = edge(number(network.network()).saturating_add(step));
    let last = edge(number(network.broadcast()) - (step - 1));
    let min = rules.bound(reader, rules.subnet_min, min, network, subnet_len);
    let max = rules.bound(reader, rules.subnet_max, max, network, subnet_len);
    let (subnet_min, subnet_max) = (min?.unwrap_or(first), max?.unwrap_or(last));
    if subnet_min > subnet_max {
        return Err(reader.fail(
            rules.subnet_min,
            subnet_min,
            format!("must not be above {} = {subnet_max}", rules.subnet_max),
        ));
    }
    Ok(Some(Pool {
        network,
        subnet_len,
        subnet_min,
        subnet_max,
    }))
}

impl Rules {
    fn prefix(&self, reader: &mut Reader<'_>) -> Result<Option<IpNet>, Noted> {
        let (name, kind) = (self.network, self.prefix);
        Ok(match self.family {
            Family::V4 => reader.parsed::<Ipv4Net>(name, kind)?.map(IpNet::V4),
            Family::V6 => reader.parsed::<Ipv6Net>(name, kind)?.map(IpNet::V6),
        }
        .map(|network| network.trunc()))
    }

    fn address(
        &self,
        reader: &mut Reader<'_>,
        name: &'static str,
    ) -> Result<Option<IpAddr>, Noted> {
        let address = match self.family {
            Family::V4 => reader
                .parsed::<Ipv4Addr>(name, "an IPv4 address")?
                .map(IpAddr::V4),
            Family::V6 => reader
                .parsed::<Ipv6Addr>(name, "an IPv6 address")?
                .map(IpAddr::V6),
        };
        // Upstream takes zero for absent.
        Ok(address.filter(|address| !address.is_unspecified()))
    }

    fn subnet_len(&self, reader: &mut Reader<'_>, network: IpNet, len: u8) -> Result<u8, Noted> {
        let shortest = network.prefix_len() + SUBNET_BITS_MIN;
        match len {
            0 if network.prefix_len() > self.longest_network => Err(reader.fail(
                self.network,
                network,
                format!(
                    "too small: the longest useful prefix is /{}",
                    self.longest_network
                ),
            )),
            0 => Ok(self.default_len.max(shortest)),
            len if len > self.longest_subnet => Err(reader.fail(
                self.subnet_len,
                len,
                format!("must be at most {}", self.longest_subnet),
            )),
            len if len < shortest => Err(reader.fail(
                self.subnet_len,
                len,
                format!("must be at least {shortest}, so that {network} holds four subnets"),
            )),
            len => Ok(len),
        }
    }

    fn bound(
        &self,
        reader: &mut Reader<'_>,
        name: &'static str,
        address: Option<IpAddr>,
        network: IpNet,
        subnet_len: u8,
    ) -> Result<Option<IpAddr>, Noted> {
        let Some(address) = address else {
            return Ok(None);
        };
        if !network.contains(&address) {
            return Err(reader.fail(
                name,
                address,
                format!("must lie in {} = {network}", self.network),
            ));
        }
        if IpNet::new(address, subnet_len).is_ok_and(|subnet| subnet.network() != address) {
            return Err(reader.fail(
                name,
                address,
                format!(
                    "must be on a boundary of {} = {subnet_len}",
                    self.subnet_len
                ),
            ));
        }
        Ok(Some(address))
    }
}

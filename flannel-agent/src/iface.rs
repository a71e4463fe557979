//! Which interface carries traffic between nodes, and which address the node publishes.
//!
//! Follows upstream's `pkg/ipmatch`: `--iface` in order, then `--iface-regex`, then `--iface-can-reach`; with none of
//! them `--public-ip` if it is given, else the device of the first default route. The choice is pure; [`Candidates`]
//! is what it needs to know.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use regex::Regex;

use crate::kernel::{
    netlink::{Error as NetlinkError, Netlink},
    objects::Link,
    observe::{self, Hop},
};

/// What the operator asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--iface`: names or addresses, first match wins.
    pub iface: Vec<String>,
    /// `--iface-regex`: matched with addresses, then with names.
    pub iface_regex: Vec<Regex>,
    /// `--iface-can-reach`.
    pub can_reach: Option<Ipv4Addr>,
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
}

/// What the node has.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    /// All interfaces, by index.
    pub links: BTreeMap<u32, Link>,
    /// All IPv4 addresses, by interface index, in the kernel's order.
    pub addresses: BTreeMap<u32, Vec<Ipv4Net>>,
    /// Device of the first default route.
    pub default_route: Option<u32>,
    /// How the kernel reaches `--iface-can-reach`.
    pub reach: Option<Hop>,
}

/// The choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// The interface's address.
    pub address: Ipv4Addr,
    /// The address that the node publishes: `--public-ip`, or that of the interface.
    pub public_ip: Ipv4Addr,
}

/// Why no interface could be chosen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel could not be asked.
    #[error("reading interfaces: {0}")]
    Netlink(#[from] NetlinkError),
    /// Nothing matches.
    #[error("{option} = {value}: no interface matches; interfaces are {present}")]
    NoMatch {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What there is.
        present: String,
    },
    /// There is no default route to choose by.
    #[error(
        "no default route to choose an interface by: give --iface, --iface-regex or --iface-can-reach"
    )]
    NoDefaultRoute,
    /// The interface has no address.
    #[error("interface {0} has no IPv4 address: give it one, or choose another with --iface")]
    NoAddress(String),
}

/// Reads what the choice needs.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn candidates(netlink: &mut Netlink, options: &Options) -> Result<Candidates, NetlinkError> {
    let targets: Vec<Ipv4Addr> = options.can_reach.into_iter().collect();
    Ok(Candidates {
        links: observe::links(netlink)?,
        addresses: observe::addresses(netlink)?,
        default_route: observe::default_route_device(netlink)?,
        reach: observe::hops(netlink, &targets)?.pop().flatten(),
    })
}

impl Candidates {
    /// Chooses.
    ///
    /// # Errors
    /// When nothing matches, or what matches has no IPv4 address.
    pub fn choose(&self, options: &Options) -> Result<Uplink, Error> {
        let (link, address) = self.matching(options)?;
        let address = address
            .or_else(|| self.preferred(link.index))
            .ok_or_else(|| Error::NoAddress(link.name.clone()))?;
        Ok(Uplink {
            index: link.index,
            name: link.name.clone(),
            mtu: link.mtu,
            address,
            public_ip: options.public_ip.unwrap_or(address),
        })
    }

    fn matching(&self, options: &Options) -> Result<(&Link, Option<Ipv4Addr>), Error> {
        if options.iface.is_empty() && options.iface_regex.is_empty() && options.can_reach.is_none()
        {
            return match options.public_ip {
                Some(address) => self.by_address(address).ok_or_else(|| {
                    self.no_match("--public-ip (which without --iface chooses it)", address)
                }),
                None => self
                    .default_route
                    .and_then(|index| self.links.get(&index))
                    .map(|link| (link, None))
                    .ok_or(Error::NoDefaultRoute),
            };
        }
        let named = options
            .iface
            .iter()
            .find_map(|wanted| self.by_name_or_address(wanted));
        let matched = || {
            options
                .iface_regex
                .iter()
                .find_map(|wanted| self.by_regex(wanted))
        };
        let reached = || {
            let hop = self.reach.filter(|_| options.can_reach.is_some())?;
            Some((self.links.get(&hop.device)?, hop.source))
        };
        named.or_else(matched).or_else(reached).ok_or_else(|| {
            if let Some(target) = options.can_reach {
                self.no_match("--iface-can-reach", target)
            } else if options.iface_regex.is_empty() {
                self.no_match("--iface", options.iface.join(","))
            } else {
                let wanted: Vec<&str> = options.iface_regex.iter().map(Regex::as_str).collect();
                self.no_match("--iface-regex", wanted.join(","))
            }
        })
    }

    fn by_name_or_address(&self, wanted: &str) -> Option<(&Link, Option<Ipv4Addr>)> {
        match wanted.parse() {
            Ok(address) => self.by_address(address),
            Err(_) => self
                .links
                .values()
                .find(|link| link.name == wanted)
                .map(|link| (link, None)),
        }
    }

    fn by_address(&self, address: Ipv4Addr) -> Option<(&Link, Option<Ipv4Addr>)> {
        let (index, _) = self
            .addresses
            .iter()
            .find(|(_, list)| list.iter().any(|net| net.addr() == address))?;
        Some((self.links.get(index)?, Some(address)))
    }

    fn by_regex(&self, wanted: &Regex) -> Option<(&Link, Option<Ipv4Addr>)> {
        let by_address = self.links.values().find_map(|link| {
            let address = self.preferred(link.index)?;
            wanted
                .is_match(&address.to_string())
                .then_some((link, Some(address)))
        });
        by_address.or_else(|| {
            self.links
                .values()
                .find(|link| wanted.is_match(&link.name))
                .map(|link| (link, None))
        })
    }

    /// The address that stands for the interface: the first that is not link-local, else the first.
    fn preferred(&self, index: u32) -> Option<Ipv4Addr> {
        let addresses = || {
            self.addresses
                .get(&index)
                .into_iter()
                .flatten()
                .map(|net| net.addr())
        };
        addresses()
            .find(|address| !address.is_link_local())
            .or_else(|| addresses().next())
    }

    fn no_match(&self, option: &'static str, value: impl ToString) -> Error {
        let present: Vec<String> = self
            .links
            .values()
            .map(|link| match self.preferred(link.index) {
                Some(address) => format!("{} ({address})", link.name),
                None => link.name.clone(),
            })
            .collect();
        Error::NoMatch {
            option,
            value: value.to_string(),
            present: present.join(", "),
        }
    }
}

#[cfg(test)]
mod tests;

//! Which interface carries traffic between nodes, and which addresses the node publishes.
//!
//! Follows upstream's `pkg/ipmatch`: `--iface` in order, then `--iface-regex`, then `--iface-can-reach`; with none of
//! them `--public-ip` if it is given, else the device of the first default route. In dual stack one interface carries both
//! families. The choice is pure; [`Candidates`]
//! is what it needs to know.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use regex::Regex;

use crate::{
    family::{Family, PerFamily},
    kernel::{
        netlink::{Error as NetlinkError, Netlink},
        objects::Link,
        observe::{self, Hop},
    },
};

/// What the operator asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--iface`: names or addresses, first match wins.
    pub iface: Vec<String>,
    /// `--iface-regex`: matched with addresses, then with names.
    pub iface_regex: Vec<Regex>,
    /// `--iface-can-reach`.
    pub can_reach: Option<IpAddr>,
    /// `--public-ip` and `--public-ipv6`.
    pub public: PerFamily<IpAddr>,
    /// The families that need an address.
    pub families: PerFamily<()>,
}

/// What the node has.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    /// All interfaces, by index.
    pub links: BTreeMap<u32, Link>,
    /// All addresses, by interface index, the most suitable first.
    pub addresses: BTreeMap<u32, Vec<IpNet>>,
    /// Device of each family's first default route.
    pub default_route: PerFamily<u32>,
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
    /// The interface's address of each family that is needed.
    pub addresses: PerFamily<IpAddr>,
    /// The addresses that the node publishes: those of the options, or those of the interface.
    pub public: PerFamily<IpAddr>,
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
    #[error("interface {0} has no {family} address: give it one, or choose another with --iface", family = .1.name())]
    NoAddress(String, Family),
}

/// Reads what the choice needs.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn candidates(netlink: &mut Netlink, options: &Options) -> Result<Candidates, NetlinkError> {
    let targets: Vec<IpAddr> = options.can_reach.into_iter().collect();
    let mut default_route = PerFamily::default();
    for family in Family::ALL {
        *default_route.get_mut(family) = observe::default_route_device(netlink, family)?;
    }
    Ok(Candidates {
        links: observe::links(netlink)?,
        addresses: observe::addresses(netlink)?,
        default_route,
        reach: observe::hops(netlink, &targets)?.pop().flatten(),
    })
}

impl Candidates {
    /// Chooses.
    ///
    /// # Errors
    /// When nothing matches, or what matches has no address of a family that is needed.
    pub fn choose(&self, options: &Options) -> Result<Uplink, Error> {
        let (link, matched) = self.matching(options)?;
        let mut addresses = PerFamily::default();
        for (family, ()) in options.families.iter() {
            let address = matched
                .filter(|address| Family::of(*address) == family)
                .or_else(|| self.preferred(link.index, family))
                .ok_or_else(|| Error::NoAddress(link.name.clone(), family))?;
            *addresses.get_mut(family) = Some(address);
        }
        Ok(Uplink {
            index: link.index,
            name: link.name.clone(),
            mtu: link.mtu,
            addresses,
            public: addresses.map(|family, address| *options.public.get(family).unwrap_or(address)),
        })
    }

    fn matching(&self, options: &Options) -> Result<(&Link, Option<IpAddr>), Error> {
        if options.iface.is_empty() && options.iface_regex.is_empty() && options.can_reach.is_none()
        {
            let public = || {
                options
                    .public
                    .iter()
                    .find(|(family, _)| options.families.get(*family).is_some())
            };
            return match public() {
                Some((family, address)) => self.by_address(*address).ok_or_else(|| {
                    let option = match family {
                        Family::V4 => "--public-ip (which without --iface chooses it)",
                        Family::V6 => "--public-ipv6 (which without --iface chooses it)",
                    };
                    self.no_match(option, address)
                }),
                None => options
                    .families
                    .iter()
                    .find_map(|(family, ())| self.default_route.get(family))
                    .and_then(|index| self.links.get(index))
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

    fn by_name_or_address(&self, wanted: &str) -> Option<(&Link, Option<IpAddr>)> {
        match wanted.parse() {
            Ok(address) => self.by_address(address),
            Err(_) => self
                .links
                .values()
                .find(|link| link.name == wanted)
                .map(|link| (link, None)),
        }
    }

    fn by_address(&self, address: IpAddr) -> Option<(&Link, Option<IpAddr>)> {
        let (index, _) = self
            .addresses
            .iter()
            .find(|(_, list)| list.iter().any(|net| net.addr() == address))?;
        Some((self.links.get(index)?, Some(address)))
    }

    fn by_regex(&self, wanted: &Regex) -> Option<(&Link, Option<IpAddr>)> {
        let by_address = Family::ALL.into_iter().find_map(|family| {
            self.links.values().find_map(|link| {
                // Any of its addresses, as upstream's `matchIP`: the first is not the only one to ask for.
                self.of_family(link.index, family)
                    .find(|address| wanted.is_match(&address.to_string()))
                    .map(|address| (link, Some(address)))
            })
        });
        by_address.or_else(|| {
            self.links
                .values()
                .find(|link| wanted.is_match(&link.name))
                .map(|link| (link, None))
        })
    }

    /// The address that stands for the interface.
    fn preferred(&self, index: u32, family: Family) -> Option<IpAddr> {
        self.of_family(index, family).next()
    }

    /// The interface's addresses of a family, the most suitable first.
    fn of_family(&self, index: u32, family: Family) -> impl Iterator<Item = IpAddr> {
        let addresses = self.addresses.get(&index).into_iter().flatten();
        addresses
            .map(IpNet::addr)
            .filter(move |address| Family::of(*address) == family)
    }

    fn no_match(&self, option: &'static str, value: impl ToString) -> Error {
        let present: Vec<String> = self
            .links
            .values()
            .map(|link| {
                let addresses: Vec<String> = Family::ALL
                    .into_iter()
                    .filter_map(|family| self.preferred(link.index, family))
                    .map(|address| address.to_string())
                    .collect();
                match addresses.is_empty() {
                    true => link.name.clone(),
                    false => format!("{} ({})", link.name, addresses.join(", ")),
                }
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

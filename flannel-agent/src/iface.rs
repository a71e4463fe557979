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
mod tests {
    use super::*;
    use crate::kernel::objects::LinkKind;

    fn candidates() -> Candidates {
        let mut candidates = Candidates {
            default_route: Some(3),
            ..Candidates::default()
        };
        for (index, name, addresses) in [
            (1, "lo", &["127.0.0.1/8"][..]),
            (
                2,
                "eth0",
                &["169.254.7.7/16", "192.168.1.1/24", "192.168.1.9/24"],
            ),
            (3, "eth1", &["10.0.0.3/8"]),
            (4, "eth2", &[]),
        ] {
            let link = Link {
                index,
                name: name.into(),
                mac: None,
                mtu: 1500,
                up: true,
                loopback: index == 1,
                ethernet: true,
                master: None,
                peer: None,
                kind: LinkKind::Other,
            };
            candidates.links.insert(index, link);
            candidates.addresses.insert(
                index,
                addresses.iter().map(|a| a.parse().unwrap()).collect(),
            );
        }
        candidates
    }

    fn choose(options: Options) -> Result<(String, String, String), String> {
        let chosen = candidates()
            .choose(&options)
            .map_err(|error| error.to_string())?;
        Ok((
            chosen.name,
            chosen.address.to_string(),
            chosen.public_ip.to_string(),
        ))
    }

    fn chosen(name: &str, address: &str, public: &str) -> Result<(String, String, String), String> {
        Ok((name.into(), address.into(), public.into()))
    }

    fn iface(wanted: &[&str]) -> Options {
        Options {
            iface: wanted.iter().map(ToString::to_string).collect(),
            ..Options::default()
        }
    }

    fn regex(wanted: &str) -> Options {
        Options {
            iface_regex: vec![Regex::new(wanted).unwrap()],
            ..Options::default()
        }
    }

    #[test]
    fn the_default_route_decides_without_options() {
        assert_eq!(
            choose(Options::default()),
            chosen("eth1", "10.0.0.3", "10.0.0.3")
        );
    }

    #[test]
    fn the_first_name_or_address_that_exists_wins() {
        assert_eq!(
            choose(iface(&["wlan0", "eth0", "eth1"])),
            chosen("eth0", "192.168.1.1", "192.168.1.1")
        );
        assert_eq!(
            choose(iface(&["192.168.1.9"])),
            chosen("eth0", "192.168.1.9", "192.168.1.9")
        );
    }

    #[test]
    fn a_regex_meets_addresses_before_names() {
        assert_eq!(
            choose(regex("^10\\.")),
            chosen("eth1", "10.0.0.3", "10.0.0.3")
        );
        assert_eq!(
            choose(regex("^eth[01]$")),
            chosen("eth0", "192.168.1.1", "192.168.1.1")
        );
        let both = Options {
            iface: vec!["eth1".into()],
            ..regex("eth0")
        };
        assert_eq!(choose(both), chosen("eth1", "10.0.0.3", "10.0.0.3"));
    }

    #[test]
    fn public_ip_chooses_only_when_nothing_else_does() {
        let public_ip = Some(Ipv4Addr::new(192, 168, 1, 9));
        let alone = Options {
            public_ip,
            ..Options::default()
        };
        assert_eq!(choose(alone), chosen("eth0", "192.168.1.9", "192.168.1.9"));
        let with = Options {
            public_ip,
            ..iface(&["eth1"])
        };
        assert_eq!(choose(with), chosen("eth1", "10.0.0.3", "192.168.1.9"));
    }

    #[test]
    fn can_reach_takes_device_and_source_of_the_route() {
        let mut candidates = candidates();
        let source = Some(Ipv4Addr::new(192, 168, 1, 9));
        candidates.reach = Some(Hop {
            device: 2,
            gateway: None,
            source,
            local: false,
        });
        let options = Options {
            can_reach: Some(Ipv4Addr::new(192, 168, 1, 77)),
            ..Options::default()
        };
        let chosen = candidates.choose(&options).unwrap();
        assert_eq!(
            (chosen.name.as_str(), Some(chosen.address)),
            ("eth0", source)
        );
    }

    #[test]
    fn failures_name_option_value_and_what_there_is() {
        let error = choose(iface(&["wlan0"])).unwrap_err();
        assert_eq!(
            error,
            "--iface = wlan0: no interface matches; interfaces are lo (127.0.0.1), eth0 (192.168.1.1), eth1 (10.0.0.3), eth2"
        );
        assert!(
            choose(iface(&["eth2"]))
                .unwrap_err()
                .contains("eth2 has no IPv4 address")
        );
        assert!(
            choose(regex("^wlan"))
                .unwrap_err()
                .starts_with("--iface-regex = ^wlan: ")
        );
    }
}

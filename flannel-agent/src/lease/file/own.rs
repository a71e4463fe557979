//! Which lease of the file is this node's, and whether it says what is so. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use crate::{
    family::{Family, PerFamily},
    lease::{Attributes, Entry, Lease, value::BackendData},
    netconf::{Backend, NetworkConfig},
};

/// Why the file holds no lease that this node can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// None has an address of this node.
    #[error(
        "no lease with PublicIP = {addresses}, which is this node: add one such as \"10.5.34.0-24\": {example}{skipped}",
        addresses = addresses.join(" or "),
        skipped = skipped.as_ref().map_or_else(String::new, |reason| format!("; one is not understood: {reason}"))
    )]
    Missing {
        /// The addresses that were looked for.
        addresses: Vec<String>,
        /// What this node's lease could say.
        example: String,
        /// Why a lease was not understood, if there is one: it may be this node's.
        skipped: Option<String>,
    },
    /// Several have one.
    #[error(
        "leases {first} and {second} both are this node's, by its addresses {addresses}: leave one, or give --public-ip",
        addresses = addresses.join(" and ")
    )]
    Several {
        /// One of them.
        first: String,
        /// Another.
        second: String,
        /// Their addresses.
        addresses: Vec<String>,
    },
    /// Its subnets are not those of the network.
    #[error("lease {name}: {rule}")]
    Subnets {
        /// Its name.
        name: String,
        /// What is wrong.
        rule: String,
    },
    /// It says something else of this node than is so.
    #[error(
        "lease {name} says of this node {differences}: other nodes go by the file, so correct it there{remedy}"
    )]
    Differs {
        /// Its name.
        name: String,
        /// Field, what the file says and what is so.
        differences: String,
        /// What can be done on this node instead.
        remedy: &'static str,
    },
}

/// What to do about a device that is not as the file wants it.
const REMAKE: &str = ", or delete the VXLAN device and start the agent again, which makes it with the MAC in the file";

/// This node's lease: the one whose address is one of `addresses`, by IPv4, or by IPv6 where it has no IPv4 address.
///
/// # Errors
/// When there is none, or more than one.
pub fn find<'a>(
    config: &NetworkConfig,
    leases: &'a BTreeMap<String, Entry>,
    addresses: &[IpAddr],
) -> Result<(&'a str, &'a Lease), Error> {
    let node = |lease: &Lease| lease.attributes.addresses.values().next().copied();
    let mut own = leases.iter().filter_map(|(name, entry)| {
        let lease = entry.as_ref().ok()?;
        let address = node(lease).filter(|address| addresses.contains(address))?;
        Some((name.as_str(), lease, address))
    });
    let Some((name, lease, address)) = own.next() else {
        return Err(Error::Missing {
            addresses: addresses.iter().map(ToString::to_string).collect(),
            example: example(config, addresses),
            skipped: leases.values().find_map(|entry| entry.clone().err()),
        });
    };
    match own.next() {
        None => Ok((name, lease)),
        Some((second, _, other)) => {
            let mut addresses = vec![address.to_string(), other.to_string()];
            addresses.dedup();
            Err(Error::Several {
                first: name.to_owned(),
                second: second.to_owned(),
                addresses,
            })
        }
    }
}

/// What a lease of a node with these addresses could say.
fn example(config: &NetworkConfig, addresses: &[IpAddr]) -> String {
    let address = match addresses.iter().min_by_key(|address| Family::of(**address)) {
        Some(IpAddr::V6(address)) => format!(r#""PublicIP":"0.0.0.0","PublicIPv6":"{address}""#),
        Some(IpAddr::V4(address)) => format!(r#""PublicIP":"{address}""#),
        None => r#""PublicIP":"<its address>""#.to_owned(),
    };
    let backend = match &config.backend {
        Backend::Vxlan(options) => format!(
            r#","BackendType":"vxlan","BackendData":{{"VNI":{},"VtepMAC":"<the MAC that its device is to get>"}}"#,
            options.vni
        ),
        // These write none.
        Backend::Udp(_) | Backend::Alloc => String::new(),
        other => format!(r#","BackendType":"{}""#, other.name()),
    };
    format!("{{{address}{backend}}}")
}

/// Whether the subnets are of the network: one of each family that is enabled, and inside of it. Its length and place
/// are for whoever has written the file to choose.
///
/// # Errors
/// When they are not.
pub fn fits(config: &NetworkConfig, name: &str, subnets: &PerFamily<IpNet>) -> Result<(), Error> {
    let fail = |rule| Error::Subnets {
        name: name.to_owned(),
        rule,
    };
    for family in Family::ALL {
        let network = config.pools.get(family).map(|pool| pool.network);
        let rule = match (network, subnets.get(family)) {
            (None, None) => continue,
            (Some(network), Some(subnet)) if inside(&network, subnet) => continue,
            (Some(network), Some(subnet)) => {
                format!("{subnet} is no part of the network {network}")
            }
            (Some(network), None) => format!(
                "config has the {} network {network}: name a subnet of it, after & for IPv6",
                family.name()
            ),
            (None, Some(subnet)) => format!(
                "{subnet} is {}, which config does not enable: set Enable{}, or take it away",
                family.name(),
                family.name()
            ),
        };
        return Err(fail(rule));
    }
    Ok(())
}

/// Whether `subnet` is a part of `network`, and not all of it.
fn inside(network: &IpNet, subnet: &IpNet) -> bool {
    network.contains(subnet) && subnet.prefix_len() > network.prefix_len()
}

/// Whether the lease says of this node what is so, in each family that the node has an address of.
///
/// # Errors
/// When it does not; all differences are named.
pub fn agrees(name: &str, said: &Attributes, real: &Attributes) -> Result<(), Error> {
    let mut differences = Vec::new();
    let mut differ = |field: &str, said: String, real: String| {
        if said != real {
            differences.push(format!("{field} = {said}, where it is {real}"));
        }
    };
    let text = |value: Option<String>| {
        value
            .filter(|value| !value.is_empty())
            .unwrap_or_else(|| "absent".into())
    };
    for (field, family) in [("PublicIP", Family::V4), ("PublicIPv6", Family::V6)] {
        if let Some(address) = real.addresses.get(family) {
            let said = said.addresses.get(family).map(ToString::to_string);
            differ(field, text(said), address.to_string());
        }
    }
    differ(
        "BackendType",
        text(Some(said.backend.kind().to_owned())),
        text(Some(real.backend.kind().to_owned())),
    );
    let mut remedy = "";
    match (&said.backend, &real.backend) {
        (BackendData::Vxlan(said), BackendData::Vxlan(real)) => {
            for (field, family) in [("BackendData", Family::V4), ("BackendV6Data", Family::V6)] {
                let Some(real) = real.get(family) else {
                    continue;
                };
                let said = said.get(family);
                // Old versions of flannel left it out.
                if let (Some(said), Some(real)) = (said.and_then(|vtep| vtep.vni), real.vni) {
                    differ(&format!("{field}.VNI"), said.to_string(), real.to_string());
                }
                if said.is_some_and(|said| said.mac != real.mac) {
                    remedy = REMAKE;
                }
                let said = text(said.map(|vtep| vtep.mac.to_string()));
                differ(&format!("{field}.VtepMAC"), said, real.mac.to_string());
            }
        }
        (BackendData::Extension(said), BackendData::Extension(real)) => {
            differ("BackendData", text(said.clone()), text(real.clone()));
        }
        _ => {}
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::Differs {
        name: name.to_owned(),
        differences: differences.join(", "),
        remedy,
    })
}

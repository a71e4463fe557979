//! How a stock node comes to its subnets: by choice among the free ones in etcd, as flanneld's with etcd, or by its
//! number, as Kubernetes' controller manager or whoever writes a file gives them out.

use std::net::Ipv4Addr;

use super::netconf::Networks;
use crate::{
    error::{Error, Result},
    etcd::{Etcd, PREFIX},
    lease::{self, Subnet, Subnet6},
};

/// Time to live of flannel's leases, in seconds.
const LEASE_TTL: &str = "86400";

/// Publishes the lease for the first free subnet from the end of the network; agents choose from the beginning, but
/// other stock nodes do not, so the compare-and-swap may have to be tried again.
pub(super) fn in_etcd(
    etcd: &Etcd,
    networks: &Networks,
    value: &str,
) -> Result<(Subnet, Option<Subnet6>)> {
    let granted = etcd.ctl(&["lease", "grant", LEASE_TTL])?;
    let id = granted
        .split_ascii_whitespace()
        .nth(1)
        .ok_or_else(|| Error::Parse {
            what: "answer of `etcdctl lease grant`".to_owned(),
            reason: "no lease id".to_owned(),
            text: granted.clone(),
        })?;
    let quoted = value.replace('"', "\\\"");
    let taken = etcd.leases()?;
    for (subnet, subnet6) in candidates(networks) {
        if taken.iter().any(|lease| lease.subnet == subnet) {
            continue;
        }
        let key = format!("{PREFIX}/subnets/{}", lease::key(subnet, subnet6));
        let transaction =
            format!("ver(\"{key}\") = \"0\"\n\nput {key} \"{quoted}\" --lease={id}\n\n\n");
        if etcd
            .ctl_with_input(&["txn"], &transaction)?
            .starts_with("SUCCESS")
        {
            return Ok((subnet, subnet6));
        }
    }
    let network = networks.network;
    Err(Error::Unsupported(format!("no free subnet in {network}")))
}

/// The subnets of a number; 0 is the first of the network.
pub(super) fn by_number(networks: &Networks, number: u8) -> Result<(Subnet, Option<Subnet6>)> {
    let length = networks.subnet_length;
    let size = 1_u64 << (u32::BITS - u32::from(length));
    let offset = u64::from(number) * size;
    let network = networks.network;
    if offset >= network.size() {
        let reason = format!("{network} has no /{length} for node number {number}");
        return Err(Error::Unsupported(reason));
    }
    let subnet = Subnet {
        address: network.host(u32::try_from(offset).unwrap_or(u32::MAX)),
        length,
    };
    let subnet6 = networks.ipv6.map(|(network, length)| Subnet6 {
        address: network.host(u128::from(number) << (u128::BITS - u32::from(length))),
        length,
    });
    Ok((subnet, subnet6))
}

/// The subnets that a node may take, from the end of the network; IPv6's counted from its network's end alike. The
/// first of the network is never given out, as in upstream's default of `SubnetMin`.
fn candidates(networks: &Networks) -> impl Iterator<Item = (Subnet, Option<Subnet6>)> {
    let length = networks.subnet_length;
    let step = 1_usize << (u32::BITS - u32::from(length));
    let first = networks.network.address.to_bits();
    let size = u32::try_from(networks.network.size()).unwrap_or(u32::MAX);
    let subnets = (first..first + size).step_by(step).skip(1).rev();
    subnets.zip(1_u128..).map(move |(first, back)| {
        let subnet = Subnet {
            address: Ipv4Addr::from(first),
            length,
        };
        let subnet6 = networks.ipv6.map(|(network, length)| {
            let end = 1_u128 << (u128::BITS - u32::from(network.length));
            let step = 1_u128 << (u128::BITS - u32::from(length));
            Subnet6 {
                address: network.host(end - back * step),
                length,
            }
        });
        (subnet, subnet6)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_of_numbers() {
        let dual = r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"wireguard"}}"#;
        let (subnet, subnet6) = by_number(&Networks::parse(dual).unwrap(), 7).unwrap();
        assert_eq!(lease::key(subnet, subnet6), "10.5.7.0-24&fd00:5:0:7::-64");
        let small = Networks::parse(r#"{"Network":"10.5.0.0/24","SubnetLen":26}"#).unwrap();
        assert_eq!(by_number(&small, 3).unwrap().0.to_string(), "10.5.0.192/26");
        assert!(by_number(&small, 4).is_err());
    }
}

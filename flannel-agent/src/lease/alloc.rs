//! Which subnet a node takes. Pure: the caller lists the leases, and claims the result by compare-and-swap.

use std::collections::BTreeMap;

use ipnet::IpNet;
use rand::Rng;

use crate::{
    family::{Family, number},
    netconf::Pool,
};

/// A free subnet: none of `taken` overlaps it. Random, so that nodes that boot together rarely collide.
pub fn allocate(
    pool: &Pool,
    taken: impl IntoIterator<Item = IpNet>,
    rng: &mut impl Rng,
) -> Option<IpNet> {
    let family = Family::of_net(&pool.network);
    let taken = Taken::new(family, taken);
    let step = pool.step();
    let first = number(pool.subnet_min);
    let count = (number(pool.subnet_max) - first) / step + 1;
    let start = rng.random_range(0..count);
    (0..count)
        .map(|offset| first + (start + offset) % count * step)
        .filter_map(|number| IpNet::new(family.address(number)?, pool.subnet_len).ok())
        .find(|subnet| !taken.overlaps(subnet))
}

/// Whether one of `taken` overlaps `subnet`.
pub fn overlaps(taken: impl IntoIterator<Item = IpNet>, subnet: &IpNet) -> bool {
    Taken::new(Family::of_net(subnet), taken).overlaps(subnet)
}

/// Address ranges of one family that are in use: first address to last, overlapping ones merged.
struct Taken(BTreeMap<u128, u128>);

fn range(subnet: &IpNet) -> (u128, u128) {
    (number(subnet.network()), number(subnet.broadcast()))
}

impl Taken {
    fn new(family: Family, subnets: impl IntoIterator<Item = IpNet>) -> Self {
        let mut ranges: Vec<(u128, u128)> = subnets
            .into_iter()
            .filter(|subnet| Family::of_net(subnet) == family)
            .map(|subnet| range(&subnet))
            .collect();
        ranges.sort_unstable();
        let mut merged = BTreeMap::new();
        let mut current: Option<(u128, u128)> = None;
        for (start, end) in ranges {
            match &mut current {
                Some((_, last)) if start <= *last => *last = end.max(*last),
                _ => merged.extend(current.replace((start, end))),
            }
        }
        merged.extend(current);
        Self(merged)
    }

    fn overlaps(&self, subnet: &IpNet) -> bool {
        let (first, last) = range(subnet);
        self.0
            .range(..=last)
            .next_back()
            .is_some_and(|(_, end)| *end >= first)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ipnet::Ipv4Net;
    use proptest::prelude::*;
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;
    use crate::netconf::NetworkConfig;

    fn pool(family: Family, json: &str) -> Pool {
        let config = NetworkConfig::parse(json.as_bytes()).unwrap();
        *config.pools.get(family).unwrap()
    }

    #[test]
    fn every_subnet_is_found_and_then_none() {
        for (family, json, first, last) in [
            (
                Family::V4,
                r#"{"Network":"10.5.0.0/16","SubnetLen":26,"SubnetMin":"10.5.10.0","SubnetMax":"10.5.11.192","Backend":{"Type":"vxlan"}}"#,
                "10.5.10.0/26",
                "10.5.11.192/26",
            ),
            (
                Family::V6,
                r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetMin":"fc00:0:0:fff8::","Backend":{"Type":"vxlan"}}"#,
                "fc00:0:0:fff8::/64",
                "fc00:0:0:ffff::/64",
            ),
        ] {
            let pool = pool(family, json);
            let mut rng = StdRng::seed_from_u64(1);
            let mut taken = BTreeSet::new();
            while let Some(subnet) = allocate(&pool, taken.iter().copied(), &mut rng) {
                assert!(pool.allows(&subnet));
                assert!(taken.insert(subnet));
            }
            assert_eq!(taken.len(), 8);
            assert_eq!(taken.first().unwrap().to_string(), first);
            assert_eq!(taken.last().unwrap().to_string(), last);
        }
    }

    proptest! {
        #[test]
        fn an_allocation_overlaps_no_lease_and_stays_in_bounds(
            seed: u64,
            network: u32,
            network_len in 8u8..=28,
            others in prop::collection::vec((any::<u32>(), 0u8..=32), 0..40),
        ) {
            let network = Ipv4Net::new(network.into(), network_len).unwrap().trunc();
            let pool = pool(Family::V4, &format!(r#"{{"Network":"{network}","Backend":{{"Type":"host-gw"}}}}"#));
            // Half of them inside the network, or nearly nothing would ever overlap.
            let taken: Vec<IpNet> = others.iter().enumerate().map(|(i, (address, len))| {
                let inside = u32::from(network.network()) | (address & u32::from(network.hostmask()));
                let (address, len) = if i % 2 == 0 { (inside, (*len).max(network_len + 1)) } else { (*address, *len) };
                IpNet::V4(Ipv4Net::new(address.into(), len).unwrap().trunc())
            }).collect();
            let clash = |subnet: &IpNet| taken.iter().any(|t| t.contains(subnet) || subnet.contains(t));
            match allocate(&pool, taken.iter().copied(), &mut StdRng::seed_from_u64(seed)) {
                Some(subnet) => {
                    prop_assert!(pool.allows(&subnet) && IpNet::V4(network).contains(&subnet));
                    prop_assert!(!clash(&subnet));
                    prop_assert!(!overlaps(taken.iter().copied(), &subnet));
                }
                None => {
                    let all = network.subnets(pool.subnet_len).unwrap().map(IpNet::V4).filter(|s| pool.allows(s));
                    prop_assert!(all.take(4096).all(|subnet| clash(&subnet)));
                }
            }
        }
    }
}

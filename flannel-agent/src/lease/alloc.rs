//! Which subnet a node takes. Pure: the caller lists the leases, and claims the result by compare-and-swap.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;
use rand::Rng;

use crate::netconf::NetworkConfig;

/// A free subnet: none of `taken` overlaps it. Random, so that nodes that boot together rarely collide.
pub fn allocate(
    config: &NetworkConfig,
    taken: impl IntoIterator<Item = Ipv4Net>,
    rng: &mut impl Rng,
) -> Option<Ipv4Net> {
    let taken = Taken::new(taken);
    let size = 1u64 << (32 - config.subnet_len);
    let first = u64::from(u32::from(config.subnet_min));
    let count = (u64::from(u32::from(config.subnet_max)) - first) / size + 1;
    let start = rng.random_range(0..count);
    (0..count)
        .map(|step| first + (start + step) % count * size)
        .filter_map(|address| {
            Ipv4Net::new(u32::try_from(address).ok()?.into(), config.subnet_len).ok()
        })
        .find(|subnet| !taken.overlaps(*subnet))
}

/// Whether one of `taken` overlaps `subnet`.
pub fn overlaps(taken: impl IntoIterator<Item = Ipv4Net>, subnet: Ipv4Net) -> bool {
    Taken::new(taken).overlaps(subnet)
}

/// Address ranges that are in use: first address to last, overlapping ones merged.
struct Taken(BTreeMap<u32, u32>);

impl Taken {
    fn new(subnets: impl IntoIterator<Item = Ipv4Net>) -> Self {
        let mut ranges: Vec<(u32, u32)> = subnets
            .into_iter()
            .map(|s| (s.network().into(), s.broadcast().into()))
            .collect();
        ranges.sort_unstable();
        let mut merged = BTreeMap::new();
        let mut current: Option<(u32, u32)> = None;
        for (start, end) in ranges {
            match &mut current {
                Some((_, last)) if start <= *last => *last = end.max(*last),
                _ => merged.extend(current.replace((start, end))),
            }
        }
        merged.extend(current);
        Self(merged)
    }

    fn overlaps(&self, subnet: Ipv4Net) -> bool {
        let (first, last): (u32, u32) = (subnet.network().into(), subnet.broadcast().into());
        self.0
            .range(..=last)
            .next_back()
            .is_some_and(|(_, end)| *end >= first)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    fn config(json: &str) -> NetworkConfig {
        NetworkConfig::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn every_subnet_is_found_and_then_none() {
        let config = config(
            r#"{"Network":"10.5.0.0/16","SubnetLen":26,"SubnetMin":"10.5.10.0","SubnetMax":"10.5.11.192","Backend":{"Type":"vxlan"}}"#,
        );
        let mut rng = StdRng::seed_from_u64(1);
        let mut taken = BTreeSet::new();
        while let Some(subnet) = allocate(&config, taken.iter().copied(), &mut rng) {
            assert!(config.allows(subnet));
            assert!(taken.insert(subnet));
        }
        assert_eq!(taken.len(), 8);
        assert_eq!(taken.first().unwrap().to_string(), "10.5.10.0/26");
        assert_eq!(taken.last().unwrap().to_string(), "10.5.11.192/26");
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
            let config = config(&format!(r#"{{"Network":"{network}","Backend":{{"Type":"host-gw"}}}}"#));
            // Half of them inside the network, or nearly nothing would ever overlap.
            let taken: Vec<Ipv4Net> = others.iter().enumerate().map(|(i, (address, len))| {
                let inside = u32::from(network.network()) | (address & u32::from(network.hostmask()));
                let (address, len) = if i % 2 == 0 { (inside, (*len).max(network_len + 1)) } else { (*address, *len) };
                Ipv4Net::new(address.into(), len).unwrap().trunc()
            }).collect();
            let clash = |subnet: &Ipv4Net| taken.iter().any(|t| t.contains(subnet) || subnet.contains(t));
            match allocate(&config, taken.iter().copied(), &mut StdRng::seed_from_u64(seed)) {
                Some(subnet) => {
                    prop_assert!(config.allows(subnet) && network.contains(&subnet));
                    prop_assert!(!clash(&subnet));
                    prop_assert!(!overlaps(taken.iter().copied(), subnet));
                }
                None => {
                    let all = network.subnets(config.subnet_len).unwrap().filter(|s| config.allows(*s));
                    prop_assert!(all.take(4096).all(|subnet| clash(&subnet)));
                }
            }
        }
    }
}

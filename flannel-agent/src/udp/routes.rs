//! Which node has an address: the longest prefix that contains it. Pure.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;

/// The nodes' subnets, of any lengths. A look-up asks once per length that there is, so for one length, as in most
/// clusters, it takes as long with 10 000 subnets as with one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Nodes by the network bits of their subnets, by prefix length, the longest first. No table is empty.
    tables: BTreeMap<Reverse<u8>, HashMap<u32, Ipv4Addr>>,
}

impl Routes {
    /// The node that has `address`.
    pub fn find(&self, address: Ipv4Addr) -> Option<Ipv4Addr> {
        self.tables.iter().find_map(|(Reverse(length), nodes)| {
            nodes.get(&(address.to_bits() & mask(*length))).copied()
        })
    }

    /// Makes `node` the one that has `subnet`, or none.
    pub fn set(&mut self, subnet: Ipv4Net, node: Option<Ipv4Addr>) {
        let length = Reverse(subnet.prefix_len());
        let network = subnet.network().to_bits();
        if let Some(node) = node {
            self.tables.entry(length).or_default().insert(network, node);
        } else if let Some(nodes) = self.tables.get_mut(&length) {
            nodes.remove(&network);
            if nodes.is_empty() {
                self.tables.remove(&length);
            }
        }
    }

    /// How many subnets there are.
    pub fn len(&self) -> usize {
        self.tables.values().map(HashMap::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }
}

impl FromIterator<(Ipv4Net, Ipv4Addr)> for Routes {
    fn from_iter<T: IntoIterator<Item = (Ipv4Net, Ipv4Addr)>>(subnets: T) -> Self {
        let mut routes = Self::default();
        for (subnet, node) in subnets {
            routes.set(subnet, Some(node));
        }
        routes
    }
}

fn mask(length: u8) -> u32 {
    u32::MAX
        .checked_shl(u32::BITS - u32::from(length))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Few networks, so that they overlap and are hit.
    fn address() -> impl Strategy<Value = Ipv4Addr> {
        (0u32..4, 0u32..4)
            .prop_map(|(high, low)| Ipv4Addr::from_bits(0x0a05_0000 | high << 14 | low))
    }

    fn subnet() -> impl Strategy<Value = Ipv4Net> {
        (address(), 0u8..=32).prop_map(|(address, length)| Ipv4Net::new(address, length).unwrap())
    }

    proptest! {
        #[test]
        fn the_longest_prefix_wins_after_any_changes(
            changes in prop::collection::vec((subnet(), prop::option::weighted(0.7, any::<u32>())), 0..40),
            asked in prop::collection::vec(address(), 1..20),
        ) {
            let mut routes = Routes::default();
            let mut model = BTreeMap::new();
            for (subnet, node) in changes {
                let node = node.map(Ipv4Addr::from_bits);
                routes.set(subnet, node);
                match node {
                    Some(node) => model.insert(subnet.trunc(), node),
                    None => model.remove(&subnet.trunc()),
                };
            }
            prop_assert_eq!(routes.len(), model.len());
            prop_assert_eq!(routes.is_empty(), model.is_empty());
            for address in asked {
                let containing = model.iter().filter(|(subnet, _)| subnet.contains(&address));
                let longest = containing.max_by_key(|(subnet, _)| subnet.prefix_len());
                prop_assert_eq!(routes.find(address), longest.map(|(_, node)| *node));
            }
            prop_assert_eq!(&model.into_iter().collect::<Routes>(), &routes);
        }
    }
}

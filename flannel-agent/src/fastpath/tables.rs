//! The maps as a whole: what a topology puts into them, and in which order.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use aya::Ebpf;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use flannel_common::maps::{CONFIG_SLOTS, Config, FLAG_ACTIVE, FLAG_OTHER_LENGTHS, LocalPod, Peer};
use flannel_common::outcome::{self, Hook, Outcome};
use flannel_common::wire::Be32;
use ipnet::Ipv4Net;

use super::Error;
use super::plain::Plain;
use super::table::Table;
use super::topology::PeerRoute;
use crate::status::Counters;

type Hash<V> = HashMap<MapData, Plain<Be32>, Plain<V>>;
type Trie<V> = LpmTrie<MapData, Plain<Be32>, Plain<V>>;

/// All maps.
pub struct Tables {
    slot: Array<MapData, u32>,
    config: Array<MapData, Plain<Config>>,
    subnets: Table<Hash<Peer>, Ipv4Addr, Peer>,
    other_lengths: Table<Trie<Peer>, Ipv4Net, Peer>,
    pods: Table<Hash<LocalPod>, Ipv4Addr, LocalPod>,
    counters: PerCpuArray<MapData, u64>,
}

/// What the maps should hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The config, without [`FLAG_OTHER_LENGTHS`], which follows from the subnets.
    pub config: Config,
    /// Peers whose subnets have the length that the config's mask says.
    pub subnets: BTreeMap<Ipv4Addr, Peer>,
    /// All other peers.
    pub other_lengths: BTreeMap<Ipv4Net, Peer>,
    /// Pods with all their hooks in place.
    pub pods: BTreeMap<Ipv4Addr, LocalPod>,
}

impl Contents {
    /// Sorts peers by the length of their subnet.
    pub fn set_peers(&mut self, peers: &[PeerRoute], length: u8) {
        for peer in peers {
            let value = Peer {
                node_ip: peer.node_ip.into(),
                next_hop: peer.next_hop.into(),
                vtep_mac: peer.vtep_mac.unwrap_or_default(),
                ..Peer::default()
            };
            if peer.subnet.prefix_len() == length {
                self.subnets.insert(peer.subnet.network(), value);
            } else {
                self.other_lengths.insert(peer.subnet.trunc(), value);
            }
        }
    }
}

fn take<T: TryFrom<Map, Error = aya::maps::MapError>>(
    bpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, Error> {
    let map = bpf.take_map(name).ok_or(Error::Missing { name })?;
    T::try_from(map).map_err(|source| Error::Map {
        map: name,
        source: Box::new(source),
    })
}

impl Tables {
    /// Takes the maps out of a loaded object, with what they hold.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Map`].
    pub fn adopt(bpf: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            slot: take(bpf, "CONFIG_SLOT")?,
            config: take(bpf, "CONFIG")?,
            subnets: Table::adopt("SUBNETS", take(bpf, "SUBNETS")?)?,
            other_lengths: Table::adopt("SUBNETS_LPM", take(bpf, "SUBNETS_LPM")?)?,
            pods: Table::adopt("PODS", take(bpf, "PODS")?)?,
            counters: take(bpf, "COUNTERS")?,
        })
    }

    /// Brings all maps in line. What is no longer true goes first, so that nothing is sent where it does not belong;
    /// what is new is usable when the config, which is last, says so.
    ///
    /// # Errors
    /// [`Error::Map`] for the last entry that failed; all are tried.
    pub fn sync(&mut self, contents: &Contents) -> Result<(), Error> {
        let mut config = contents.config;
        if !contents.other_lengths.is_empty() {
            config.flags |= FLAG_OTHER_LENGTHS;
        }
        let current = self.current()?;
        // Keys of the hash map mean something else under another mask.
        if current.subnet_mask != config.subnet_mask && current.flags & FLAG_ACTIVE != 0 {
            self.set_config(Config {
                flags: 0,
                ..current
            })?;
        }
        let results = [
            self.pods.prune(&contents.pods),
            self.subnets.prune(&contents.subnets),
            self.other_lengths.prune(&contents.other_lengths),
            self.subnets.fill(&contents.subnets),
            self.other_lengths.fill(&contents.other_lengths),
            self.pods.fill(&contents.pods),
        ];
        if self.current()? != config {
            self.set_config(config)?;
        }
        results.into_iter().collect()
    }

    /// Tells the programs to leave everything to the kernel.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn deactivate(&mut self) -> Result<(), Error> {
        let current = self.current()?;
        self.set_config(Config {
            flags: current.flags & !FLAG_ACTIVE,
            ..current
        })
    }

    fn current(&self) -> Result<Config, Error> {
        let slot = self
            .slot
            .get(&0, 0)
            .map_err(|source| map_error("CONFIG_SLOT", source))?;
        let config = self
            .config
            .get(&slot, 0)
            .map_err(|source| map_error("CONFIG", source))?;
        Ok(config.0)
    }

    fn set_config(&mut self, config: Config) -> Result<(), Error> {
        let slot = self
            .slot
            .get(&0, 0)
            .map_err(|source| map_error("CONFIG_SLOT", source))?;
        let other = (slot + 1) % CONFIG_SLOTS;
        self.config
            .set(other, Plain(config), 0)
            .map_err(|source| map_error("CONFIG", source))?;
        self.slot
            .set(0, other, 0)
            .map_err(|source| map_error("CONFIG_SLOT", source))
    }

    /// The counters, summed over the CPUs.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn counters(&self) -> Result<Counters, Error> {
        let mut counters = Counters::default();
        for hook in Hook::ALL {
            for &outcome in Outcome::ALL {
                let values = self
                    .counters
                    .get(&outcome::slot(hook, outcome), 0)
                    .map_err(|source| map_error("COUNTERS", source))?;
                let packets = values.iter().sum();
                match (outcome, hook) {
                    (Outcome::Fast, Hook::PodEgress | Hook::BridgeEgress) => {
                        counters.fast_egress += packets
                    }
                    (Outcome::Fast, Hook::NicIngress | Hook::VtepIngress) => {
                        counters.fast_ingress += packets
                    }
                    _ if packets > 0 => {
                        counters
                            .declined
                            .insert(format!("{}/{}", hook.name(), outcome.name()), packets);
                    }
                    _ => {}
                }
            }
        }
        Ok(counters)
    }
}

fn map_error(map: &'static str, source: aya::maps::MapError) -> Error {
    Error::Map {
        map,
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use flannel_common::addr::Mac;

    use super::*;

    #[test]
    fn peers_are_sorted_by_the_length_of_their_subnet() {
        let peer = |subnet: &str, vtep_mac| PeerRoute {
            subnet: subnet.parse().expect("a prefix"),
            node_ip: Ipv4Addr::new(192, 168, 100, 2),
            next_hop: Ipv4Addr::new(192, 168, 100, 254),
            vtep_mac,
        };
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let mut contents = Contents::default();
        contents.set_peers(
            &[peer("10.5.9.0/24", Some(mac)), peer("10.5.64.0/26", None)],
            24,
        );
        let usual = contents.subnets[&Ipv4Addr::new(10, 5, 9, 0)];
        assert_eq!(usual.vtep_mac, mac);
        assert_eq!(
            Ipv4Addr::from(usual.next_hop),
            Ipv4Addr::new(192, 168, 100, 254)
        );
        assert!(contents.other_lengths[&"10.5.64.0/26".parse().expect("a prefix")].is_direct());
        assert_eq!(
            (contents.subnets.len(), contents.other_lengths.len()),
            (1, 1)
        );
    }
}

//! The maps as a whole: what a topology puts into them, and in which order.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, Map, MapData, PerCpuArray};
use flannel_common::flow::{Flow, FlowKey};
use flannel_common::maps::{
    CONFIG_SLOTS, Config, Control, FLAG_ACTIVE, FLAG_OTHER_LENGTHS, LocalPod, Peer, subnet_number,
};
use flannel_common::outcome::{self, Hook, Outcome};
use flannel_common::wire::Be32;
use ipnet::{IpNet, Ipv4Net};
use rustix::time::{ClockId, clock_gettime};

use super::Error;
use super::indexed::Indexed;
use super::plain::Plain;
use super::sys;
use super::table::Table;
use super::topology::{PeerRoute, Peers};
use crate::status::Counters;

type Trie<V> = LpmTrie<MapData, Plain<Be32>, Plain<V>>;

/// All maps.
pub struct Tables {
    control: Array<MapData, Plain<Control>>,
    config: Array<MapData, Plain<Config>>,
    subnets: Table<Indexed<Peer>, Ipv4Addr, Peer>,
    other_lengths: Table<Trie<Peer>, Ipv4Net, Peer>,
    pods: Table<Indexed<LocalPod>, Ipv4Addr, LocalPod>,
    flows: MapData,
    counters: PerCpuArray<MapData, u64>,
}

/// What the maps should hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The config, without [`FLAG_OTHER_LENGTHS`], which follows from the subnets.
    pub config: Config,
    /// Peers whose subnets have the length that the config's mask says, each with a number of its own.
    pub subnets: BTreeMap<Ipv4Addr, Peer>,
    /// All other peers.
    pub other_lengths: BTreeMap<Ipv4Net, Peer>,
    /// Pods with all their hooks in place.
    pub pods: BTreeMap<Ipv4Addr, LocalPod>,
}

impl Contents {
    /// Sorts peers by the length of their subnet. Should two subnets have one number, the lower one keeps it.
    pub fn set_peers<'a>(&mut self, peers: impl IntoIterator<Item = &'a PeerRoute>, length: u8) {
        let host_bits = u32::BITS - u32::from(length);
        let mut numbers = BTreeSet::new();
        let mut peers: Vec<_> = peers.into_iter().filter_map(entry).collect();
        peers.sort_by_key(|(subnet, _)| *subnet);
        for (subnet, value) in peers {
            let usual = subnet.prefix_len() == length;
            if usual && numbers.insert(subnet_number(value.subnet, host_bits)) {
                self.subnets.insert(subnet.network(), value);
            } else {
                self.other_lengths.insert(subnet.trunc(), value);
            }
        }
    }
}

/// A peer as the maps hold it; none if it is of the other family.
fn entry(route: &PeerRoute) -> Option<(Ipv4Net, Peer)> {
    let (IpNet::V4(subnet), IpAddr::V4(node_ip), IpAddr::V4(next_hop)) =
        (route.subnet, route.node_ip, route.next_hop)
    else {
        return None;
    };
    let value = Peer {
        subnet: subnet.network().into(),
        node_ip: node_ip.into(),
        next_hop: next_hop.into(),
        vtep_mac: route.vtep_mac.unwrap_or_default(),
        ..Peer::default()
    };
    Some((subnet, value))
}

/// A peer with the time since when it is so: that of the entry that is there, if nothing else differs.
fn dated(old: Option<&Peer>, new: Peer, now: u64) -> Peer {
    let since = old.map_or(now, |old| old.since);
    let as_before = Peer { since, ..new };
    if old == Some(&as_before) {
        as_before
    } else {
        Peer { since: now, ..new }
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
        let control = take(bpf, "CONTROL")?;
        let config = take(bpf, "CONFIG")?;
        let host_bits = in_force(&control, &config)?.host_bits;
        let peers = Indexed::adopt(take(bpf, "SUBNET_INDEX")?, take(bpf, "PEERS")?, host_bits);
        let pods = Indexed::adopt(take(bpf, "POD_INDEX")?, take(bpf, "PODS")?, host_bits);
        Ok(Self {
            control,
            config,
            subnets: Table::adopt("PEERS", peers.map_err(|source| map_error("PEERS", source))?)?,
            other_lengths: Table::adopt("SUBNETS_LPM", take(bpf, "SUBNETS_LPM")?)?,
            pods: Table::adopt("PODS", pods.map_err(|source| map_error("PODS", source))?)?,
            flows: match bpf.take_map("FLOWS") {
                Some(Map::LruHashMap(data)) => data,
                _ => return Err(Error::Missing { name: "FLOWS" }),
            },
            counters: take(bpf, "COUNTERS")?,
        })
    }

    /// Brings all maps in line. What is no longer true goes first, so that nothing is sent where it does not belong;
    /// what is new is usable when the config, which is last, says so.
    ///
    /// # Errors
    /// [`Error::Map`] for the last entry that failed; all are tried.
    pub fn sync(&mut self, mut contents: Contents) -> Result<(), Error> {
        self.date(&mut contents);
        let contents = &contents;
        let mut config = contents.config;
        if !contents.other_lengths.is_empty() {
            config.flags |= FLAG_OTHER_LENGTHS;
        }
        let current = self.current()?;
        // Numbers mean something else under another mask.
        if current.subnet_mask != config.subnet_mask {
            if current.flags & FLAG_ACTIVE != 0 {
                self.set_config(Config {
                    flags: 0,
                    ..current
                })?;
            }
            self.subnets.prune(&BTreeMap::new())?;
            self.subnets.map_mut().renumber(config.host_bits);
        }
        let results = [
            self.pods.prune(&contents.pods),
            self.subnets.prune(&contents.subnets),
            self.other_lengths.prune(&contents.other_lengths),
            self.subnets.fill(&contents.subnets),
            self.other_lengths.fill(&contents.other_lengths),
            self.pods.fill(&contents.pods),
        ];
        self.next_generation()?;
        if self.current()? != config {
            self.set_config(config)?;
        }
        results.into_iter().collect()
    }

    /// After every change, so that nothing is taken for checked that was looked up before.
    fn next_generation(&mut self) -> Result<(), Error> {
        let mut control = self.control()?;
        control.generation = control.generation.checked_add(1).unwrap_or(1);
        self.set_control(control)
    }

    /// Brings these subnets in line with `peers`. Says whether that was possible without looking at the others.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn change_peers(&mut self, peers: &Peers, subnets: &[IpNet]) -> Result<bool, Error> {
        let config = self.current()?;
        let mask = Ipv4Addr::from(config.subnet_mask);
        let now = nanoseconds(monotonic());
        for subnet in subnets {
            let IpNet::V4(subnet_v4) = subnet else {
                continue;
            };
            if config.flags & FLAG_OTHER_LENGTHS != 0 || subnet_v4.netmask() != mask {
                return Ok(false);
            }
            let address = subnet_v4.network();
            let value = peers.get(subnet).and_then(entry);
            let value = value.map(|(_, new)| dated(self.subnets.get(&address), new, now));
            // It may have the number of another, which only all together can tell.
            if self.subnets.change(address, value).is_err() {
                return Ok(false);
            }
        }
        self.next_generation()?;
        Ok(true)
    }

    /// Tells programs that the agent is alive, and so until when they may believe it.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn beat(&mut self, until: Duration) -> Result<(), Error> {
        let mut control = self.control()?;
        control.expires = nanoseconds(until);
        self.set_control(control)
    }

    /// Gives entries that stay as they are the time of those that are there, and all others the present.
    fn date(&self, contents: &mut Contents) {
        let now = nanoseconds(monotonic());
        for (subnet, peer) in &mut contents.subnets {
            *peer = dated(self.subnets.get(subnet), *peer, now);
        }
        for (subnet, peer) in &mut contents.other_lengths {
            *peer = dated(self.other_lengths.get(subnet), *peer, now);
        }
        for (address, pod) in &mut contents.pods {
            let old = self.pods.get(address);
            let since = old.map_or(now, |old| old.since);
            let same = old == Some(&LocalPod { since, ..*pod });
            pod.since = if same { since } else { now };
        }
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

    /// How many flows are remembered.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn flows(&self) -> io::Result<u64> {
        sys::count_entries::<FlowKey, Flow>(self.flows.fd().as_fd())
    }

    /// The age from which the programs probe a flow; zero if there is none.
    pub fn revalidation(&self) -> Duration {
        let config = self.current().unwrap_or_default();
        Duration::from_nanos(config.revalidate_after)
    }

    fn current(&self) -> Result<Config, Error> {
        in_force(&self.control, &self.config)
    }

    fn set_config(&mut self, config: Config) -> Result<(), Error> {
        let mut control = self.control()?;
        control.slot = (control.slot + 1) % CONFIG_SLOTS;
        self.config
            .set(control.slot, Plain(config), 0)
            .map_err(|source| map_error("CONFIG", source))?;
        self.set_control(control)
    }

    fn control(&self) -> Result<Control, Error> {
        control(&self.control)
    }

    fn set_control(&mut self, control: Control) -> Result<(), Error> {
        self.control
            .set(0, Plain(control), 0)
            .map_err(|source| map_error("CONTROL", source))
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
                    (Outcome::Decapsulated, _) => counters.decapsulated += packets,
                    _ if packets > 0 => {
                        let counters = if Hook::ATTESTING.contains(&hook) {
                            &mut counters.attest
                        } else {
                            &mut counters.declined
                        };
                        counters.insert(format!("{}/{}", hook.name(), outcome.name()), packets);
                    }
                    _ => {}
                }
            }
        }
        Ok(counters)
    }
}

fn control(map: &Array<MapData, Plain<Control>>) -> Result<Control, Error> {
    let control = map.get(&0, 0);
    let control = control.map_err(|source| map_error("CONTROL", source))?;
    Ok(control.0)
}

/// The config that the programs go by.
fn in_force(
    map: &Array<MapData, Plain<Control>>,
    configs: &Array<MapData, Plain<Config>>,
) -> Result<Config, Error> {
    let config = configs.get(&control(map)?.slot, 0);
    let config = config.map_err(|source| map_error("CONFIG", source))?;
    Ok(config.0)
}

/// The present, on the clock of the maps' times.
pub fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or_default(),
        u32::try_from(now.tv_nsec).unwrap_or_default(),
    )
}

/// A duration as the maps hold it.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
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
    use flannel_common::maps::PeerEntry as _;

    use super::*;

    #[test]
    fn peers_are_sorted_by_the_length_of_their_subnet() {
        let peer = |subnet: &str, vtep_mac| PeerRoute {
            subnet: subnet.parse().expect("a prefix"),
            node_ip: [192, 168, 100, 2].into(),
            next_hop: [192, 168, 100, 254].into(),
            vtep_mac,
        };
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let mut contents = Contents::default();
        contents.set_peers(
            &[peer("10.5.9.0/24", Some(mac)), peer("10.5.64.0/26", None)],
            24,
        );
        // As far from the first as there are numbers.
        contents.set_peers(
            &[peer("10.5.9.0/24", Some(mac)), peer("12.5.9.0/24", None)],
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
            (1, 2)
        );
    }
}

//! What is remembered of flows, read from the pinned maps: with the agent or without it, and changing nothing.
//!
//! Whether a flow is fast is not guessed: its entry is shown to the very decision that the programs take
//! ([`permit_flow`]), as if a packet of each direction came now.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::{self, LpmTrie};
use aya::maps::{Array, Map, MapData, MapError};
use bytemuck::Pod;
use flannel_common::decide::permit::{Terms, permit_flow};
use flannel_common::decide::transport::Transport;
use flannel_common::family::Family;
use flannel_common::flow::{Clock, Flow, FlowKey, FlowKey6, Flows, Leg, SharedFlow};
use flannel_common::maps::{
    Config, Control, FLAG_ACTIVE, FLAG_DECAP, FLAG_FLOWS, FLAG_XDP, PeerEntry, PodEntry,
};
use flannel_common::outcome::Outcome;
use flannel_common::wire::{Be32, Be128, ip};

use super::indexed::{self, Numbered};
use super::pin::Pins;
use super::plain::Plain;
use super::routes::Mapped;
use super::sys;
use super::tables::{monotonic, nanoseconds};

/// Why the pins could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There are none: no agent of this version has pinned its maps there.
    #[error("no maps are pinned below {}", .0.display())]
    NoPins(PathBuf),
    /// The system refused.
    #[error("pinned map {}: {source}", path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else is pinned there.
    #[error("pinned map {}: not a map of this version of the agent", .0.display())]
    Foreign(PathBuf),
}

/// A flow of either family by its addresses and ports, the pod of this node first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Address of the pod of this node.
    pub pod: IpAddr,
    /// Address of the pod elsewhere.
    pub remote: IpAddr,
    /// Port of the pod of this node.
    pub pod_port: u16,
    /// Port of the pod elsewhere.
    pub remote_port: u16,
    /// Whether it is TCP; else it is UDP.
    pub tcp: bool,
}

/// What the maps say of a node or a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Since when it is so: nanoseconds of `CLOCK_MONOTONIC`.
    pub since: u64,
    /// Whether packets go there without a tunnel.
    pub direct: bool,
}

/// Other nodes with subnets of any length.
type Trie<A> = LpmTrie<MapData, Plain<A>, Plain<<A as Family>::Peer>>;

/// The flows of a node at one moment, with all that decides about them.
pub struct Remembered {
    /// The config in force.
    pub config: Config,
    /// All flows.
    pub flows: Vec<(Key, Flow)>,
    /// Nanoseconds of `CLOCK_MONOTONIC` when the flows had been read.
    pub now: u64,
    /// When programs stop acting.
    expires: u64,
    pods: HashMap<IpAddr, Known>,
    /// By their first address.
    subnets: HashMap<IpAddr, Known>,
    other_lengths: Option<Trie<Be32>>,
    other_lengths_v6: Option<Trie<Be128>>,
}

/// What would become of a packet of one direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// [`Outcome::Fast`], or the reason under which it would be counted.
    pub outcome: Outcome,
    /// Whether the direction was attested, but before its pod, its node or the config was what it is.
    pub outdated: bool,
}

impl Remembered {
    /// Reads the maps that are pinned below `pin_dir`.
    ///
    /// # Errors
    /// When there are none, or they cannot be read.
    pub fn read(pin_dir: &Path) -> Result<Self, Error> {
        let maps = Pins::new(pin_dir).maps();
        if !maps
            .join("FLOWS")
            .try_exists()
            .map_err(|source| Error::Pin {
                path: maps.clone(),
                source,
            })?
        {
            return Err(Error::NoPins(pin_dir.to_owned()));
        }
        let control: Control = element(&maps.join("CONTROL"), 0)?;
        let config: Config = element(&maps.join("CONFIG"), control.slot)?;
        let mut remembered = Self {
            config,
            flows: Vec::new(),
            now: 0,
            expires: control.expires,
            pods: HashMap::new(),
            subnets: HashMap::new(),
            other_lengths: Some(trie::<Be32>(&maps)?),
            other_lengths_v6: Some(trie::<Be128>(&maps)?),
        };
        remembered.add::<Be32>(&maps, |key: FlowKey| Key {
            pod: Ipv4Addr::from(key.pod).into(),
            remote: Ipv4Addr::from(key.remote).into(),
            pod_port: key.pod_port.get(),
            remote_port: key.remote_port.get(),
            tcp: key.protocol == u32::from(ip::TCP),
        })?;
        remembered.add::<Be128>(&maps, |key: FlowKey6| Key {
            pod: Ipv6Addr::from(key.pod).into(),
            remote: Ipv6Addr::from(key.remote).into(),
            pod_port: key.pod_port.get(),
            remote_port: key.remote_port.get(),
            tcp: key.protocol == u32::from(ip::TCP),
        })?;
        remembered.now = nanoseconds(monotonic());
        Ok(remembered)
    }

    /// Adds what the maps of a family hold.
    fn add<A: Mapped>(&mut self, maps: &Path, key: impl Fn(A::Key) -> Key) -> Result<(), Error> {
        let names = A::NAMES;
        let address = |address: A| -> IpAddr { A::Ip::from(address).into() };
        let pods = values::<A::Pod>(&maps.join(names.pod_index), &maps.join(names.pods))?;
        self.pods.extend(pods.iter().map(|pod| {
            let known = Known {
                since: pod.since(),
                direct: false,
            };
            (address(PodEntry::address(pod)), known)
        }));
        let peers = values::<A::Peer>(&maps.join(names.subnet_index), &maps.join(names.peers))?;
        let known = peers.iter().map(|peer| (address(peer.subnet()), of(peer)));
        self.subnets.extend(known);
        let flows = entries::<A::Key, Flow>(&maps.join(names.flows))?;
        let flows = flows.into_iter().map(|(own, flow)| (key(own), flow));
        self.flows.extend(flows);
        Ok(())
    }

    /// The pod of this node with that address, if the fast path serves it.
    pub fn pod(&self, address: IpAddr) -> Option<Known> {
        self.pods.get(&address).copied()
    }

    /// The node whose subnet holds that address, if the fast path leads there.
    pub fn peer(&self, address: IpAddr) -> Option<Known> {
        let config = &self.config;
        let subnet = match address {
            IpAddr::V4(address) => IpAddr::V4(Be32::from(address).and(config.subnet_mask).into()),
            IpAddr::V6(address) => IpAddr::V6(Be128::from(address).and(config.subnet6_mask).into()),
        };
        // As the programs do: without the flag the trie is empty.
        let longest = || match address {
            IpAddr::V4(address) => longest(config, self.other_lengths.as_ref()?, address.into()),
            IpAddr::V6(address) => longest(config, self.other_lengths_v6.as_ref()?, address.into()),
        };
        self.subnets.get(&subnet).copied().or_else(longest)
    }

    /// What would become of a packet of `leg` now.
    pub fn judge(&self, key: &Key, flow: &Flow, leg: Leg) -> Judgement {
        let of = |outcome| Judgement {
            outcome,
            outdated: false,
        };
        if self.config.flags & FLAG_ACTIVE == 0 {
            return of(Outcome::Inactive);
        }
        if self.now > self.expires {
            return of(Outcome::NoHeartbeat);
        }
        let Some(pod) = self.pod(key.pod) else {
            return of(Outcome::NoPod);
        };
        let Some(peer) = self.peer(key.remote) else {
            return of(Outcome::NoPeer);
        };
        if self.config.flags & FLAG_FLOWS == 0 {
            return of(Outcome::Fast);
        }
        let terms = Terms {
            config: &self.config,
            expires: self.expires,
            since: pod.since.max(peer.since),
            kernel_queues: self.config.flags & (FLAG_DECAP | FLAG_XDP) != 0
                && key.pod.is_ipv4()
                && !peer.direct,
        };
        let transport = Transport {
            tcp: key.tcp,
            ..Transport::default()
        };
        let alone = Alone {
            flow: SharedFlow::from(*flow),
            now: self.now,
        };
        let found = Some(&alone.flow);
        let outcome = match permit_flow(&alone, key, found, leg, &transport, &terms) {
            Ok(_) => Outcome::Fast,
            Err(outcome) => outcome,
        };
        Judgement {
            outcome,
            outdated: outcome == Outcome::NoFlow && flow.legs[leg as usize].attested != 0,
        }
    }
}

fn of<P: PeerEntry>(peer: &P) -> Known {
    Known {
        since: peer.since(),
        direct: peer.is_direct(),
    }
}

fn trie<A: Mapped>(maps: &Path) -> Result<Trie<A>, Error> {
    let path = maps.join(A::NAMES.subnets_lpm);
    let trie = Map::LpmTrie(open(&path)?).try_into();
    trie.map_err(|_| Error::Foreign(path))
}

fn longest<A: Mapped>(config: &Config, trie: &Trie<A>, address: A) -> Option<Known> {
    if config.flags & A::OTHER_LENGTHS == 0 {
        return None;
    }
    let key = lpm_trie::Key::new(u32::from(A::FAMILY.bits()), Plain(address));
    trie.get(&key, 0).ok().map(|peer| of(&peer.0))
}

/// A copy of one flow, as a map.
struct Alone {
    flow: SharedFlow,
    now: u64,
}

impl<K> Flows<K> for Alone {
    fn find(&self, _: &K) -> Option<&SharedFlow> {
        Some(&self.flow)
    }

    fn create(&self, _: &K, _: &Flow) {}

    fn forget(&self, _: &K) {}
}

impl Clock for Alone {
    fn now(&self) -> u64 {
        self.now
    }

    fn tick(&self) -> u64 {
        self.now
    }
}

fn open(path: &Path) -> Result<MapData, Error> {
    MapData::from_pin(path).map_err(|error| {
        let source = match error {
            MapError::SyscallError(error) => error.io_error,
            MapError::IoError(error) => error,
            error => io::Error::other(error.to_string()),
        };
        Error::Pin {
            path: path.to_owned(),
            source,
        }
    })
}

/// An element of an array with values of this type.
fn element<V: Pod>(path: &Path, index: u32) -> Result<V, Error> {
    let value = array::<Plain<V>>(path)?.get(&index, 0);
    value
        .map(|value| value.0)
        .map_err(|_| Error::Foreign(path.to_owned()))
}

/// An array with values of this type.
fn array<V: aya::Pod>(path: &Path) -> Result<Array<MapData, V>, Error> {
    Map::Array(open(path)?)
        .try_into()
        .map_err(|_| Error::Foreign(path.to_owned()))
}

/// The values that an index leads to.
fn values<V: Numbered>(index: &Path, values: &Path) -> Result<Vec<V>, Error> {
    let found = indexed::read::<V>(&array(index)?, &array(values)?);
    found.map_err(|_| Error::Foreign(values.to_owned()))
}

/// All entries of a hash map with keys and values of these types.
fn entries<K: Pod, V: Pod>(path: &Path) -> Result<Vec<(K, V)>, Error> {
    let map = open(path)?;
    // The kernel writes as many bytes as the map's own sizes say.
    let fits = map.info().is_ok_and(|info| {
        (info.key_size() as usize, info.value_size() as usize) == (size_of::<K>(), size_of::<V>())
    });
    if !fits {
        return Err(Error::Foreign(path.to_owned()));
    }
    let mut entries = Vec::new();
    sys::visit_entries(map.fd().as_fd(), |keys: &[K], values: &[V]| {
        entries.extend(keys.iter().copied().zip(values.iter().copied()));
    })
    .map_err(|source| Error::Pin {
        path: path.to_owned(),
        source,
    })?;
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use flannel_common::flow::LegTimes;
    use flannel_common::maps::{FLAG_FLOWS, FLAG_TCP};

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const NOW: u64 = 100 * SECOND;

    const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 5, 1, 2));
    const SUBNET: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 5, 2, 0));
    const POD6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 5, 0, 1, 0, 0, 0, 2));
    const SUBNET6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 5, 0, 2, 0, 0, 0, 0));

    /// A node that has been as it is since second 50, with a pod and a peer of each family.
    fn node() -> Remembered {
        let since = 50 * SECOND;
        let known = Known {
            since,
            direct: false,
        };
        Remembered {
            config: Config {
                since,
                revalidate_after: 2 * SECOND,
                stale_after: 2 * SECOND + SECOND / 2,
                flags: FLAG_ACTIVE | FLAG_FLOWS | FLAG_TCP,
                subnet_mask: Be32::new(0xffff_ff00),
                subnet6_mask: Be128::new(u128::MAX << 64),
                ..Config::default()
            },
            flows: Vec::new(),
            now: NOW,
            expires: NOW + SECOND,
            pods: [POD, POD6].map(|pod| (pod, known)).into(),
            subnets: [SUBNET, SUBNET6].map(|subnet| (subnet, known)).into(),
            other_lengths: None,
            other_lengths_v6: None,
        }
    }

    fn key() -> Key {
        Key {
            pod: POD,
            remote: IpAddr::V4(Ipv4Addr::new(10, 5, 2, 3)),
            pod_port: 0,
            remote_port: 0,
            tcp: true,
        }
    }

    fn attested(seconds: u64) -> Flow {
        let times = LegTimes {
            attested: seconds * SECOND,
            ..LegTimes::default()
        };
        Flow {
            legs: [times, LegTimes::default()],
            ..Flow::default()
        }
    }

    #[test]
    fn the_reason_is_that_of_the_programs() {
        let judged = |node: &Remembered, flow: &Flow, leg| {
            let Judgement { outcome, outdated } = node.judge(&key(), flow, leg);
            (outcome.name(), outdated)
        };
        let node = node();
        assert_eq!(judged(&node, &attested(99), Leg::Out), ("fast", false));
        assert_eq!(judged(&node, &attested(99), Leg::In), ("no-flow", false));
        assert_eq!(judged(&node, &attested(97), Leg::Out), ("stale", false));
        assert_eq!(judged(&node, &attested(49), Leg::Out), ("no-flow", true));
        let mut closing = attested(99);
        closing.legs[Leg::Out as usize].closing = 1;
        assert_eq!(judged(&node, &closing, Leg::Out), ("closing", false));
    }

    #[test]
    fn both_families_are_judged_alike() {
        let node = node();
        let key = Key {
            pod: POD6,
            remote: IpAddr::V6(Ipv6Addr::new(0xfd00, 5, 0, 2, 0, 0, 0, 3)),
            ..key()
        };
        let outcome = |key: &Key, leg| node.judge(key, &attested(99), leg).outcome;
        assert_eq!(outcome(&key, Leg::Out), Outcome::Fast);
        assert_eq!(outcome(&key, Leg::In), Outcome::NoFlow);
        let remote = IpAddr::V6(Ipv6Addr::new(0xfd00, 5, 0, 3, 0, 0, 0, 3));
        assert_eq!(outcome(&Key { remote, ..key }, Leg::Out), Outcome::NoPeer);
    }

    #[test]
    fn what_the_node_lacks_comes_before_the_flow() {
        let flow = attested(99);
        let outcome = |change: fn(&mut Remembered)| {
            let mut node = node();
            change(&mut node);
            node.judge(&key(), &flow, Leg::Out).outcome
        };
        assert_eq!(outcome(|node| node.config.flags = 0), Outcome::Inactive);
        assert_eq!(
            outcome(|node| node.config.flags = FLAG_ACTIVE | FLAG_FLOWS),
            Outcome::TcpStrict
        );
        assert_eq!(outcome(|node| node.expires = 0), Outcome::NoHeartbeat);
        assert_eq!(outcome(|node| node.pods.clear()), Outcome::NoPod);
        assert_eq!(outcome(|node| node.subnets.clear()), Outcome::NoPeer);
        assert_eq!(
            outcome(|node| node.config.flags = FLAG_ACTIVE),
            Outcome::Fast,
            "without flows the topology decides"
        );
    }
}

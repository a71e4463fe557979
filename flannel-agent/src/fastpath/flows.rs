//! What is remembered of flows, read from the pinned maps: with the agent or without it, and changing nothing.
//!
//! Whether a flow is fast is not guessed: its entry is shown to the very decision that the programs take
//! ([`permit_flow`]), as if a packet of each direction came now.

use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, Map, MapData, MapError};
use bytemuck::Pod;
use flannel_common::decide::permit::{Terms, permit_flow};
use flannel_common::decide::transport::Transport;
use flannel_common::flow::{Clock, Flow, FlowKey, Flows, Leg, SharedFlow};
use flannel_common::maps::{
    Config, Control, FLAG_ACTIVE, FLAG_DECAP, FLAG_FLOWS, FLAG_OTHER_LENGTHS, FLAG_XDP, LocalPod,
    Peer, PeerEntry as _,
};
use flannel_common::outcome::Outcome;
use flannel_common::wire::{Be32, ipv4};

use super::indexed::{self, Numbered};
use super::pin::Pins;
use super::plain::Plain;
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

/// The flows of a node at one moment, with all that decides about them.
pub struct Remembered {
    /// The config in force.
    pub config: Config,
    /// All flows.
    pub flows: Vec<(FlowKey, Flow)>,
    /// Nanoseconds of `CLOCK_MONOTONIC` when the flows had been read.
    pub now: u64,
    /// When programs stop acting.
    expires: u64,
    pods: HashMap<Be32, LocalPod>,
    subnets: HashMap<Be32, Peer>,
    other_lengths: Option<LpmTrie<MapData, Plain<Be32>, Plain<Peer>>>,
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
        let trie = maps.join("SUBNETS_LPM");
        let other_lengths = Map::LpmTrie(open(&trie)?).try_into();
        let pods = values(&maps.join("POD_INDEX"), &maps.join("PODS"))?;
        let subnets = values(&maps.join("SUBNET_INDEX"), &maps.join("PEERS"))?;
        let flows = entries(&maps.join("FLOWS"))?;
        Ok(Self {
            config,
            flows,
            now: nanoseconds(monotonic()),
            expires: control.expires,
            pods,
            subnets,
            other_lengths: Some(other_lengths.map_err(|_| Error::Foreign(trie))?),
        })
    }

    /// The pod of this node with that address, if the fast path serves it.
    pub fn pod(&self, address: Ipv4Addr) -> Option<LocalPod> {
        self.pods.get(&address.into()).copied()
    }

    /// The node whose subnet holds that address, if the fast path leads there.
    pub fn peer(&self, address: Ipv4Addr) -> Option<Peer> {
        let subnet = Be32::new(address.to_bits() & self.config.subnet_mask.get());
        let longest = || {
            // As the programs do: without the flag the trie is empty.
            let trie = self.other_lengths.as_ref()?;
            if self.config.flags & FLAG_OTHER_LENGTHS == 0 {
                return None;
            }
            let peer = trie.get(&Key::new(u32::BITS, Plain(address.into())), 0);
            peer.ok().map(|peer| peer.0)
        };
        self.subnets.get(&subnet).copied().or_else(longest)
    }

    /// What would become of a packet of `leg` now.
    pub fn judge(&self, key: &FlowKey, flow: &Flow, leg: Leg) -> Judgement {
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
        let Some(pod) = self.pod(key.pod.into()) else {
            return of(Outcome::NoPod);
        };
        let Some(peer) = self.peer(key.remote.into()) else {
            return of(Outcome::NoPeer);
        };
        if self.config.flags & FLAG_FLOWS == 0 {
            return of(Outcome::Fast);
        }
        let terms = Terms {
            config: &self.config,
            expires: self.expires,
            since: pod.since.max(peer.since),
            kernel_queues: self.config.flags & (FLAG_DECAP | FLAG_XDP) != 0 && !peer.is_direct(),
        };
        let transport = Transport {
            tcp: key.protocol == u32::from(ipv4::TCP),
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

/// The values that an index leads to, by their address.
fn values<V>(index: &Path, values: &Path) -> Result<HashMap<V::Address, V>, Error>
where
    V: Numbered,
    V::Address: Hash,
{
    let found = indexed::read::<V>(&array(index)?, &array(values)?);
    let found = found.map_err(|_| Error::Foreign(values.to_owned()))?;
    let with_address = found.into_iter().map(|value| (value.address(), value));
    Ok(with_address.collect())
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

    /// A node that has been as it is since second 50, with pod 10.5.1.2 and a peer with 10.5.2.0/24.
    fn node() -> Remembered {
        let since = 50 * SECOND;
        Remembered {
            config: Config {
                since,
                revalidate_after: 2 * SECOND,
                stale_after: 2 * SECOND + SECOND / 2,
                flags: FLAG_ACTIVE | FLAG_FLOWS | FLAG_TCP,
                subnet_mask: Be32::new(0xffff_ff00),
                ..Config::default()
            },
            flows: Vec::new(),
            now: NOW,
            expires: NOW + SECOND,
            pods: HashMap::from([(
                Ipv4Addr::new(10, 5, 1, 2).into(),
                LocalPod {
                    since,
                    ..LocalPod::default()
                },
            )]),
            subnets: HashMap::from([(
                Ipv4Addr::new(10, 5, 2, 0).into(),
                Peer {
                    since,
                    ..Peer::default()
                },
            )]),
            other_lengths: None,
        }
    }

    fn key() -> FlowKey {
        FlowKey {
            pod: Ipv4Addr::new(10, 5, 1, 2).into(),
            remote: Ipv4Addr::new(10, 5, 2, 3).into(),
            protocol: ipv4::TCP.into(),
            ..FlowKey::default()
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

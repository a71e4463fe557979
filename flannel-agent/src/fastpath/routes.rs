//! The maps of one address family: other nodes, pods, flows. Written once for both families.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;

use aya::Ebpf;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Map, MapData};
use flannel_common::family::Family;
use flannel_common::flow::Flow;
use flannel_common::maps::{
    FLAG_OTHER_LENGTHS, FLAG_OTHER_LENGTHS_V6, PeerEntry as _, PodEntry as _, subnet_number,
};
use flannel_common::wire::{Be32, Be128};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::indexed::{Indexed, Numbered};
use super::plain::Plain;
use super::table::{Prefix, Table};
use super::topology::{PeerRoute, Peers, Pod};
use super::{Error, sys, tables};
use crate::family;

/// The names of the maps of one family in the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// Where each number's subnet is.
    pub subnet_index: &'static str,
    /// Other nodes.
    pub peers: &'static str,
    /// Other nodes with subnets of any length.
    pub subnets_lpm: &'static str,
    /// Where each number's pod is.
    pub pod_index: &'static str,
    /// Pods of this node.
    pub pods: &'static str,
    /// Flows.
    pub flows: &'static str,
}

/// An address family that has maps.
pub trait Mapped:
    Family<Peer: Numbered<Address = Self>, Pod: Numbered<Address = Self>>
    + From<Self::Ip>
    + Into<Self::Ip>
{
    /// An address.
    type Ip: Copy + Ord + Display + From<Self> + Into<Self> + Into<IpAddr>;
    /// A prefix.
    type Net: Copy + Ord + Prefix<Address = Self>;

    /// The family.
    const FAMILY: family::Family;
    /// Its maps.
    const NAMES: Names;
    /// The flag that there are subnets without a number.
    const OTHER_LENGTHS: u32;

    /// An address of this family.
    fn ip(address: IpAddr) -> Option<Self::Ip>;

    /// A prefix of this family, and its first address.
    fn net(net: IpNet) -> Option<(Self::Net, Self::Ip)>;
}

impl Mapped for Be32 {
    type Ip = Ipv4Addr;
    type Net = Ipv4Net;

    const FAMILY: family::Family = family::Family::V4;
    const NAMES: Names = Names {
        subnet_index: "SUBNET_INDEX",
        peers: "PEERS",
        subnets_lpm: "SUBNETS_LPM",
        pod_index: "POD_INDEX",
        pods: "PODS",
        flows: "FLOWS",
    };
    const OTHER_LENGTHS: u32 = FLAG_OTHER_LENGTHS;

    fn ip(address: IpAddr) -> Option<Ipv4Addr> {
        match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }
    }

    fn net(net: IpNet) -> Option<(Ipv4Net, Ipv4Addr)> {
        match net {
            IpNet::V4(net) => Some((net.trunc(), net.network())),
            IpNet::V6(_) => None,
        }
    }
}

impl Mapped for Be128 {
    type Ip = Ipv6Addr;
    type Net = Ipv6Net;

    const FAMILY: family::Family = family::Family::V6;
    const NAMES: Names = Names {
        subnet_index: "SUBNET_INDEX_V6",
        peers: "PEERS_V6",
        subnets_lpm: "SUBNETS_LPM_V6",
        pod_index: "POD_INDEX_V6",
        pods: "PODS_V6",
        flows: "FLOWS_V6",
    };
    const OTHER_LENGTHS: u32 = FLAG_OTHER_LENGTHS_V6;

    fn ip(address: IpAddr) -> Option<Ipv6Addr> {
        match address {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        }
    }

    fn net(net: IpNet) -> Option<(Ipv6Net, Ipv6Addr)> {
        match net {
            IpNet::V6(net) => Some((net.trunc(), net.network())),
            IpNet::V4(_) => None,
        }
    }
}

/// What the maps of one family should hold.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted<A: Mapped> {
    /// Peers whose subnets have the usual length, each with a number of its own.
    pub subnets: BTreeMap<A::Ip, A::Peer>,
    /// All other peers.
    pub other_lengths: BTreeMap<A::Net, A::Peer>,
    /// Pods with all their hooks in place.
    pub pods: BTreeMap<A::Ip, A::Pod>,
}

impl<A: Mapped> Default for Wanted<A> {
    fn default() -> Self {
        Self {
            subnets: BTreeMap::new(),
            other_lengths: BTreeMap::new(),
            pods: BTreeMap::new(),
        }
    }
}

impl<A: Mapped> Wanted<A> {
    /// Sorts peers of this family by the length of their subnet. Should two subnets have one number, the lower one keeps
    /// it.
    pub fn set_peers<'a>(&mut self, peers: impl IntoIterator<Item = &'a PeerRoute>, length: u8) {
        let host_bits = u32::from(A::FAMILY.bits() - length);
        let mut numbers = BTreeSet::new();
        let mut peers: Vec<_> = peers
            .into_iter()
            .filter_map(|route| Some((A::net(route.subnet)?, route.subnet, entry::<A>(route)?)))
            .collect();
        peers.sort_by_key(|((subnet, _), ..)| *subnet);
        for ((subnet, first), net, value) in peers {
            let usual = net.prefix_len() == length;
            if usual && numbers.insert(subnet_number(value.subnet(), host_bits)) {
                self.subnets.insert(first, value);
            } else {
                self.other_lengths.insert(subnet, value);
            }
        }
    }

    /// Adds a pod, if it is of this family.
    pub fn add_pod(&mut self, pod: &Pod, flags: u16) {
        if let Some(address) = A::ip(pod.ip) {
            let value = A::Pod::new(address.into(), pod.host_index, pod.mac, flags);
            self.pods.insert(address, value);
        }
    }

    /// The flag that there are subnets without a number, if there are.
    pub fn flags(&self) -> u32 {
        if self.other_lengths.is_empty() {
            0
        } else {
            A::OTHER_LENGTHS
        }
    }
}

/// A peer as the maps hold it; none if it is of the other family.
fn entry<A: Mapped>(route: &PeerRoute) -> Option<A::Peer> {
    let (_, first) = A::net(route.subnet)?;
    Some(A::Peer::new(
        first.into(),
        A::ip(route.node_ip)?.into(),
        A::ip(route.next_hop)?.into(),
        route.vtep_mac.unwrap_or_default(),
    ))
}

/// A peer with the time since when it is so: that of the entry that is there, if nothing else differs.
fn dated<A: Mapped>(old: Option<&A::Peer>, new: A::Peer, now: u64) -> A::Peer {
    let as_before = old.map(|old| new.dated(old.since()));
    match as_before {
        Some(as_before) if old == Some(&as_before) => as_before,
        _ => new.dated(now),
    }
}

/// Other nodes with subnets of any length.
type Trie<A> = LpmTrie<MapData, Plain<A>, Plain<<A as Family>::Peer>>;

/// The maps.
pub struct Routes<A: Mapped> {
    subnets: Table<Indexed<A::Peer>, A::Ip, A::Peer>,
    other_lengths: Table<Trie<A>, A::Net, A::Peer>,
    pods: Table<Indexed<A::Pod>, A::Ip, A::Pod>,
    flows: MapData,
}

impl<A: Mapped> Routes<A> {
    /// Takes the maps out of a loaded object, with what they hold unless they are `new`, where subnets had that many bits
    /// for hosts.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Map`].
    pub fn adopt(bpf: &mut Ebpf, host_bits: u32, new: bool) -> Result<Self, Error> {
        let names = A::NAMES;
        let mut take = |name| tables::take(bpf, name);
        let peers = Indexed::adopt(
            take(names.subnet_index)?
                .try_into()
                .map_err(wrong(names.subnet_index))?,
            take(names.peers)?.try_into().map_err(wrong(names.peers))?,
            host_bits,
            new,
        );
        let pods = Indexed::adopt(
            take(names.pod_index)?
                .try_into()
                .map_err(wrong(names.pod_index))?,
            take(names.pods)?.try_into().map_err(wrong(names.pods))?,
            host_bits,
            new,
        );
        let trie = take(names.subnets_lpm)?
            .try_into()
            .map_err(wrong(names.subnets_lpm))?;
        Ok(Self {
            subnets: Table::adopt(names.peers, peers.map_err(wrong(names.peers))?)?,
            other_lengths: Table::adopt(names.subnets_lpm, trie)?,
            pods: Table::adopt(names.pods, pods.map_err(wrong(names.pods))?)?,
            flows: match take(names.flows)? {
                Map::LruHashMap(data) => data,
                _ => return Err(Error::Missing { name: names.flows }),
            },
        })
    }

    /// Gives entries that stay as they are the time of those that are there, and all others the present.
    pub fn date(&self, wanted: &mut Wanted<A>, now: u64) {
        for (subnet, peer) in &mut wanted.subnets {
            *peer = dated::<A>(self.subnets.get(subnet), *peer, now);
        }
        for (subnet, peer) in &mut wanted.other_lengths {
            *peer = dated::<A>(self.other_lengths.get(subnet), *peer, now);
        }
        for (address, pod) in &mut wanted.pods {
            let old = self.pods.get(address);
            let as_before = old.map(|old| pod.dated(old.since()));
            *pod = match as_before {
                Some(as_before) if old == Some(&as_before) => as_before,
                _ => pod.dated(now),
            };
        }
    }

    /// Numbers subnets with that many bits for hosts, after all of them are forgotten.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn renumber(&mut self, host_bits: u32) -> Result<(), Error> {
        self.subnets.prune(&BTreeMap::new())?;
        self.subnets.map_mut().renumber(host_bits);
        Ok(())
    }

    /// Removes what is no longer true.
    ///
    /// # Errors
    /// [`Error::Map`] for the last entry that failed; all are tried.
    pub fn prune(&mut self, wanted: &Wanted<A>) -> Result<(), Error> {
        let results = [
            self.pods.prune(&wanted.pods),
            self.subnets.prune(&wanted.subnets),
            self.other_lengths.prune(&wanted.other_lengths),
        ];
        results.into_iter().collect()
    }

    /// Adds what is new.
    ///
    /// # Errors
    /// [`Error::Map`] for the last entry that failed; all are tried.
    pub fn fill(&mut self, wanted: &Wanted<A>) -> Result<(), Error> {
        let results = [
            self.subnets.fill(&wanted.subnets),
            self.other_lengths.fill(&wanted.other_lengths),
            self.pods.fill(&wanted.pods),
        ];
        results.into_iter().collect()
    }

    /// Brings a subnet of this family in line with `peers`, where subnets usually have `length`. Says whether that was
    /// possible without looking at the others.
    pub fn change(&mut self, peers: &Peers, subnet: &IpNet, length: u8, now: u64) -> bool {
        let Some((_, first)) = A::net(*subnet) else {
            return false;
        };
        if subnet.prefix_len() != length {
            return false;
        }
        let value = peers.get(subnet).and_then(entry::<A>);
        let value = value.map(|new| dated::<A>(self.subnets.get(&first), new, now));
        // It may have the number of another, which only all together can tell.
        self.subnets.change(first, value).is_ok()
    }

    /// How many flows are remembered.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn flows(&self) -> io::Result<u64> {
        sys::count_entries::<A::Key, Flow>(self.flows.fd().as_fd())
    }
}

fn wrong(map: &'static str) -> impl Fn(aya::maps::MapError) -> Error {
    move |source| tables::map_error(map, source)
}

#[cfg(test)]
mod tests {
    use flannel_common::addr::Mac;

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn peer(subnet: &str, vtep_mac: Option<Mac>) -> PeerRoute {
        let subnet: IpNet = subnet.parse().expect("a prefix");
        let address = |host: u8| -> IpAddr {
            match subnet {
                IpNet::V4(_) => [192, 168, 100, host].into(),
                IpNet::V6(_) => [0xfd00, 7, 0, 0, 0, 0, 0, u16::from(host)].into(),
            }
        };
        PeerRoute {
            subnet,
            node_ip: address(2),
            next_hop: address(254),
            vtep_mac,
        }
    }

    #[test]
    fn peers_are_sorted_by_the_length_of_their_subnet() {
        let mut wanted = Wanted::<Be32>::default();
        wanted.set_peers(
            &[peer("10.5.9.0/24", Some(MAC)), peer("10.5.64.0/26", None)],
            24,
        );
        // As far from the first as there are numbers.
        wanted.set_peers(
            &[peer("10.5.9.0/24", Some(MAC)), peer("12.5.9.0/24", None)],
            24,
        );
        let usual = wanted.subnets[&Ipv4Addr::new(10, 5, 9, 0)];
        assert_eq!(usual.vtep_mac, MAC);
        assert_eq!(
            Ipv4Addr::from(usual.next_hop),
            Ipv4Addr::new(192, 168, 100, 254)
        );
        assert!(wanted.other_lengths[&"10.5.64.0/26".parse().expect("a prefix")].is_direct());
        assert_eq!((wanted.subnets.len(), wanted.other_lengths.len()), (1, 2));
        assert_eq!(wanted.flags(), FLAG_OTHER_LENGTHS);
    }

    #[test]
    fn each_family_takes_its_own() {
        let peers = [
            peer("10.5.9.0/24", Some(MAC)),
            peer("fd00:5:0:9::/64", Some(MAC)),
            // As far from the former as there are numbers.
            peer("fd00:5:2:9::/64", None),
            peer("fd00:5:1::/60", None),
        ];
        let mut wanted = Wanted::<Be128>::default();
        wanted.set_peers(&peers, 64);
        let first: Ipv6Addr = "fd00:5:0:9::".parse().expect("an address");
        let next_hop = Ipv6Addr::from(wanted.subnets[&first].next_hop);
        assert_eq!(IpAddr::V6(next_hop), peers[1].next_hop);
        assert_eq!((wanted.subnets.len(), wanted.other_lengths.len()), (1, 2));
        assert_eq!(wanted.flags(), FLAG_OTHER_LENGTHS_V6);
        let mut wanted = Wanted::<Be32>::default();
        wanted.set_peers(&peers, 24);
        assert_eq!((wanted.subnets.len(), wanted.flags()), (1, 0));
    }
}

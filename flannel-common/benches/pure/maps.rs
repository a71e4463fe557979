//! The maps that decisions ask, in memory and as cheap as can be: what is measured is the decision.

use flannel_common::decide::transport::Transport;
use flannel_common::decide::{Routes, Topology};
use flannel_common::flow::{Clock, Flow, FlowKey, Flows, Leg, SharedFlow};
use flannel_common::maps::{
    Config, FLAG_FLOWS, FLAG_OTHER_LENGTHS, FLAG_TCP, LocalPod, NO_SLOT, POD_NUMBERS, Peer,
    PeerEntry as _, SUBNET_NUMBERS, pod_number, subnet_number,
};
use flannel_common::testing::memory::{NOW, at};
use flannel_common::testing::node::Tables;
use flannel_common::wire::ipv4::Ipv4;
use flannel_common::wire::{Be32, Packet as _};

/// Ages of attestations in nanoseconds: of one that is believed, from which on it is asked for again, and from which on it
/// is not believed.
pub const YOUNG: u64 = 1_000_000_000;
const REVALIDATE: u64 = 2 * YOUNG;
const STALE: u64 = 3 * YOUNG;

/// Peers and pods by number, in arrays, as programs find them.
pub struct Arrays {
    tables: Tables,
    subnets: Vec<u32>,
    peers: Vec<Peer>,
    pod_index: Vec<u32>,
    pods: Vec<LocalPod>,
}

impl Arrays {
    /// What `tables` hold.
    pub fn new(tables: &Tables) -> Self {
        let host_bits = tables.config.host_bits;
        let mut arrays = Self {
            tables: tables.clone(),
            subnets: vec![NO_SLOT; SUBNET_NUMBERS as usize],
            peers: vec![Peer::default()],
            pod_index: vec![NO_SLOT; POD_NUMBERS as usize],
            pods: vec![LocalPod::default()],
        };
        for (subnet, peer) in &tables.subnets {
            let number = subnet_number(*subnet, host_bits) as usize;
            arrays.subnets[number] = arrays.peers.len() as u32;
            arrays.peers.push(*peer);
        }
        for (address, pod) in &tables.pods {
            arrays.pod_index[pod_number(*address) as usize] = arrays.pods.len() as u32;
            arrays.pods.push(*pod);
        }
        arrays
    }
}

fn in_slot<'a, V>(index: &[u32], number: u32, values: &'a [V]) -> Option<&'a V> {
    match *index.get(number as usize)? {
        NO_SLOT => None,
        slot => values.get(slot as usize),
    }
}

impl Topology for Arrays {
    fn config(&self) -> &Config {
        &self.tables.config
    }

    fn generation(&self) -> u32 {
        self.tables.generation
    }

    fn expires(&self) -> u64 {
        self.tables.expires()
    }
}

impl Routes<Be32> for Arrays {
    fn peer(&self, address: Be32) -> Option<&Peer> {
        let config = self.config();
        let number = subnet_number(address, config.host_bits);
        let peer = in_slot(&self.subnets, number, &self.peers)
            .filter(|peer| peer.holds(address, config.subnet_mask));
        if peer.is_none() && config.flags & FLAG_OTHER_LENGTHS != 0 {
            return self.tables.peer(address);
        }
        peer
    }

    fn pod(&self, address: Be32) -> Option<&LocalPod> {
        in_slot(&self.pod_index, pod_number(address), &self.pods)
            .filter(|pod| pod.address == address)
    }
}

/// A map with room for one flow and a clock that stands still. To add and to remove a flow does nothing, so that each call
/// of a decision finds what the first one found.
pub struct OneFlow(Option<(FlowKey, SharedFlow)>);

impl OneFlow {
    /// No flow.
    pub const fn none() -> Self {
        Self(None)
    }

    /// A flow with times as ages.
    pub fn new(key: FlowKey, ages: &Flow) -> Self {
        Self(Some((key, at(ages, NOW).into())))
    }

    /// The only flow of `tables`, if there is one.
    pub fn of(tables: &Tables) -> Self {
        assert!(tables.flows.len() <= 1, "a fixture with more than one flow");
        let only = tables.flows.iter().next();
        only.map_or(Self::none(), |(key, ages)| Self::new(*key, ages))
    }
}

impl Flows<FlowKey> for OneFlow {
    fn find(&self, key: &FlowKey) -> Option<&SharedFlow> {
        let (own, flow) = self.0.as_ref()?;
        (own == key).then_some(flow)
    }

    fn create(&self, _: &FlowKey, _: &Flow) {}

    fn forget(&self, _: &FlowKey) {}
}

impl Clock for OneFlow {
    fn now(&self) -> u64 {
        NOW
    }

    fn tick(&self) -> u64 {
        NOW
    }
}

/// Turns on that flows need permission, TCP's too.
pub fn ask_for_flows(config: &mut Config) {
    config.flags |= FLAG_FLOWS | FLAG_TCP;
    config.revalidate_after = REVALIDATE;
    config.stale_after = STALE;
}

/// The headers of a packet of `leg` whose IPv4 header is at `offset`, and its flow's key.
pub fn headers(frame: &[u8], offset: usize, leg: Leg) -> (Ipv4, Transport, FlowKey) {
    let ip: Ipv4 = frame.read(offset).expect("a fixture with an IPv4 header");
    let transport = Transport::read::<Be32, _>(frame, offset, &ip).expect("a fixture with ports");
    let key = transport.flow::<Be32>(&ip, leg);
    (ip, transport, key)
}

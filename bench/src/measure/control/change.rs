//! One lease after another changes, and the kernel follows.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use flannel_agent::kernel::{
    decode::Neighbour,
    events::{Event, Events},
};
use flannel_common::{
    maps::{self, ABI, NO_SLOT, subnet_number},
    wire::Be32,
};

use super::{
    peers::{HOST_BITS, Peer},
    store::Store,
};
use crate::{
    testbed::{Error, Result},
    variants::Backend,
};

/// A change may take so long.
const LIMIT: Duration = Duration::from_secs(5);
/// Between two changes: the agent has nothing left to do then.
const PAUSE: Duration = Duration::from_millis(30);

/// How long one change took.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// From the request to the store's answer.
    pub written: Duration,
    /// From then until the kernel had it; nothing if it had it before.
    pub beyond: Duration,
}

/// Changes leases one by one, over all nodes, and waits for each.
///
/// # Errors
/// If the kernel does not follow.
pub async fn run(
    store: &mut Store<'_>,
    maps: &Maps,
    backend: Backend,
    leases: u32,
    changes: u32,
) -> Result<Vec<Wait>> {
    let mut events = Events::open().map_err(|error| failed("events", &error))?;
    let mut waits = Vec::new();
    for change in 0..changes {
        let peer = Peer {
            // Spread over all nodes; with few of them, the same ones again.
            number: (u64::from(change) * u64::from(leases) / u64::from(changes)) as u32,
            changed: nth(backend, change),
        };
        tokio::time::sleep(PAUSE).await;
        let start = Instant::now();
        store.put(peer).await?;
        let answered = Instant::now();
        let seen = async {
            let mut missing = Missing::of(backend);
            while !missing.is_empty() {
                let heard = events.next().await;
                let heard = heard.map_err(|error| failed("events", &error))?;
                heard
                    .iter()
                    .for_each(|event| missing.strike(event, peer, backend));
            }
            while !maps.hold(peer, backend)? {
                tokio::task::yield_now().await;
            }
            Result::Ok(())
        };
        tokio::time::timeout(LIMIT, seen).await.map_err(|_| {
            Error::Control(format!(
                "the kernel did not follow the lease {}",
                peer.key()
            ))
        })??;
        waits.push(Wait {
            written: answered - start,
            beyond: answered.elapsed(),
        });
    }
    Ok(waits)
}

/// How often a lease has changed at the `change`th change: an address has less room for changes than a MAC, and
/// neighbours in time must differ.
pub const fn nth(backend: Backend, change: u32) -> u32 {
    1 + change
        % match backend {
            Backend::Vxlan => u8::MAX as u32,
            Backend::HostGw => 8,
        }
}

/// What the kernel has not got yet.
struct Missing {
    neighbour: bool,
    fdb: bool,
    route: bool,
}

impl Missing {
    /// A MAC is in two places, an address in one; a route to a VTEP stays as it is.
    fn of(backend: Backend) -> Self {
        let tunnel = backend == Backend::Vxlan;
        Self {
            neighbour: tunnel,
            fdb: tunnel,
            route: !tunnel,
        }
    }

    fn is_empty(&self) -> bool {
        !(self.neighbour || self.fdb || self.route)
    }

    fn strike(&mut self, event: &Event, peer: Peer, backend: Backend) {
        let subnet = peer.subnet().address;
        match event {
            Event::Neighbour(_, Neighbour::Address(address, entry), false) => {
                self.neighbour &= !(*address == subnet && entry.value.0 == peer.mac());
            }
            Event::Neighbour(_, Neighbour::Fdb(mac, _), false) => self.fdb &= mac.0 != peer.mac(),
            Event::Route(net, route, false) => {
                let gateway = Some(peer.address(backend).into());
                self.route &= !(net.addr() == subnet && route.gateway == gateway);
            }
            _ => {}
        }
    }
}

/// The agent's maps of other nodes.
pub struct Maps {
    index: Array<MapData, u32>,
    peers: Array<MapData, [u8; size_of::<maps::Peer>()]>,
}

impl Maps {
    /// Opens them where the agent has pinned them.
    ///
    /// # Errors
    /// If they are not there.
    pub fn open(pins: &Path) -> Result<Self> {
        let open = |name: &str| {
            let data = MapData::from_pin(pins.join(format!("v{ABI}/maps/{name}")));
            data.map(Map::Array).map_err(|error| failed(name, &error))
        };
        let index = Array::try_from(open("SUBNET_INDEX")?);
        let peers = Array::try_from(open("PEERS")?);
        Ok(Self {
            index: index.map_err(|error| failed("SUBNET_INDEX", &error))?,
            peers: peers.map_err(|error| failed("PEERS", &error))?,
        })
    }

    /// Whether they hold a node as its lease says.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn hold(&self, peer: Peer, backend: Backend) -> Result<bool> {
        let subnet = Be32::new(u32::from(peer.subnet().address));
        let slot = self.index.get(&subnet_number(subnet, HOST_BITS), 0);
        let slot = slot.map_err(|error| failed("SUBNET_INDEX", &error))?;
        if slot == NO_SLOT {
            return Ok(false);
        }
        let bytes = self.peers.get(&slot, 0);
        let bytes = bytes.map_err(|error| failed("PEERS", &error))?;
        let held: maps::Peer = bytemuck::pod_read_unaligned(&bytes);
        let mac = match backend {
            Backend::Vxlan => peer.mac(),
            Backend::HostGw => [0; 6],
        };
        let address = u32::from(peer.address(backend));
        Ok(held.subnet.get() == subnet.get()
            && held.node_ip.get() == address
            && held.vtep_mac.0 == mac)
    }
}

fn failed(what: &str, error: &dyn std::error::Error) -> Error {
    Error::Control(format!("{what}: {error}"))
}

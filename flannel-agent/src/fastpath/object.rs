//! The BPF object: embedded in this binary, and loaded with its maps pinned.

use std::path::Path;

use aya::maps::MapInfo;
use aya::{Ebpf, EbpfError, EbpfLoader};

use flannel_common::maps::{
    MAX_FLOWS, MAX_OTHER_SUBNETS, PEER_SLOTS, POD_NUMBERS, POD_SLOTS, SUBNET_NUMBERS,
};

use super::facts::Facts;

/// Maps that outlive the agent, under the names that `flannel-ebpf` gives them.
pub const MAPS: [&str; 15] = [
    "CONFIG",
    "CONTROL",
    "COUNTERS",
    "FLOWS",
    "FLOWS_V6",
    "PEERS",
    "PEERS_V6",
    "PODS",
    "PODS_V6",
    "POD_INDEX",
    "POD_INDEX_V6",
    "SUBNETS_LPM",
    "SUBNETS_LPM_V6",
    "SUBNET_INDEX",
    "SUBNET_INDEX_V6",
];

/// The maps of flows.
const FLOWS: [&str; 2] = ["FLOWS", FLOWS_V6];
const FLOWS_V6: &str = "FLOWS_V6";

/// The maps of IPv6 but that of flows, with the room that they have in the object.
const MAPS_V6: [(&str, u32); 5] = [
    ("PEERS_V6", PEER_SLOTS),
    ("PODS_V6", POD_SLOTS),
    ("POD_INDEX_V6", POD_NUMBERS),
    ("SUBNETS_LPM_V6", MAX_OTHER_SUBNETS),
    ("SUBNET_INDEX_V6", SUBNET_NUMBERS),
];

/// The least room that a map can have.
const NO_ROOM: u32 = 1;

/// How much room maps have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Flows that are remembered at most, of each family.
    pub flows: u32,
    /// Whether there is any for IPv6, whose maps take twice the memory of IPv4's.
    pub ipv6: bool,
}

impl Default for Room {
    /// As much as the object says.
    fn default() -> Self {
        Self {
            flows: MAX_FLOWS,
            ipv6: true,
        }
    }
}

impl Room {
    /// The maps whose room may differ from one agent to the next.
    fn maps(self) -> impl Iterator<Item = (&'static str, u32)> {
        let flows = FLOWS.map(|name| (name, self.flows));
        flows.into_iter().chain(MAPS_V6).map(move |(name, room)| {
            let is_v6 = !self.ipv6 && name != FLOWS[0];
            (name, if is_v6 { NO_ROOM } else { room })
        })
    }
}

#[cfg(embedded_bpf)]
const OBJECT: Option<&[u8]> = Some(aya::include_bytes_aligned!(concat!(
    env!("OUT_DIR"),
    "/flannel.bpf.o"
)));
#[cfg(not(embedded_bpf))]
const OBJECT: Option<&[u8]> = None;

/// The object's bytes; `None` if this binary was built without it.
pub fn bytes() -> Option<&'static [u8]> {
    OBJECT
}

/// Creates the maps, or opens those pinned in `maps` by an earlier run, and reads the programs without loading them
/// into the kernel, with the facts that they are to know. Without a directory the maps are private to the result: for
/// tests.
///
/// # Errors
/// When the kernel refuses a map, or a pin cannot be written.
pub fn load(
    object: &[u8],
    facts: &Facts,
    room: Room,
    maps: Option<&Path>,
) -> Result<Ebpf, EbpfError> {
    let mut loader = EbpfLoader::new();
    loader
        // Nothing in the object is relocated by the kernel's types, and reading them costs more than all else at start-up.
        .btf(None)
        .override_global("COARSE_CLOCK", &facts.coarse_clock, true)
        .override_global("NFCT", &facts.nfct, true)
        .override_global("CT_STATUS", &facts.ct_status, true)
        .override_global("CT_TUPLES", &facts.ct_tuples, true);
    for (name, room) in room.maps() {
        loader.map_max_entries(name, room);
    }
    if let Some(directory) = maps {
        for (name, room) in room.maps() {
            forget_another_size(&directory.join(name), room);
        }
        for name in MAPS {
            loader.map_pin_path(name, directory.join(name));
        }
    }
    loader.load(object)
}

/// A map keeps its size for life. What it holds is written or learned again in no time, so a map of another size is left
/// to the programs that still use it.
fn forget_another_size(pin: &Path, room: u32) {
    if MapInfo::from_pin(pin).is_ok_and(|info| info.max_entries() != room) {
        // If it stays, so does its size: less room than wanted, or more.
        let _ = std::fs::remove_file(pin);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn without_ipv6_its_maps_have_no_room_and_others_all() {
        let room = |ipv6| -> BTreeMap<_, _> { Room { flows: 7, ipv6 }.maps().collect() };
        let (with, without) = (room(true), room(false));
        assert_eq!((with["FLOWS"], with["FLOWS_V6"]), (7, 7));
        assert_eq!((without["FLOWS"], without["FLOWS_V6"]), (7, NO_ROOM));
        assert!(with.keys().eq(without.keys()));
        for (name, room) in MAPS_V6 {
            assert_eq!((with[name], without[name]), (room, NO_ROOM), "{name}");
        }
        // Those that are pinned are those that are made anew when their room changes.
        let of_ipv6 = MAPS.iter().filter(|name| name.ends_with("_V6"));
        assert_eq!(of_ipv6.count(), MAPS_V6.len() + 1);
        assert!(with.keys().all(|name| MAPS.contains(name)));
    }
}

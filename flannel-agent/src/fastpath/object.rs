//! The BPF object: embedded in this binary, and loaded with its maps pinned.

use std::path::Path;

use aya::maps::MapInfo;
use aya::{Ebpf, EbpfError, EbpfLoader};

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

/// The map of flows.
const FLOWS: &str = "FLOWS";

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
/// into the kernel, with the facts that they are to know and room for as many flows. Without a directory the maps are
/// private to the result: for tests.
///
/// # Errors
/// When the kernel refuses a map, or a pin cannot be written.
pub fn load(
    object: &[u8],
    facts: &Facts,
    flows: u32,
    maps: Option<&Path>,
) -> Result<Ebpf, EbpfError> {
    let mut loader = EbpfLoader::new();
    loader
        // Nothing in the object is relocated by the kernel's types, and reading them costs more than all else at start-up.
        .btf(None)
        .map_max_entries(FLOWS, flows)
        .override_global("COARSE_CLOCK", &facts.coarse_clock, true)
        .override_global("NFCT", &facts.nfct, true)
        .override_global("CT_STATUS", &facts.ct_status, true)
        .override_global("CT_TUPLES", &facts.ct_tuples, true);
    if let Some(directory) = maps {
        forget_flows_of_another_size(&directory.join(FLOWS), flows);
        for name in MAPS {
            loader.map_pin_path(name, directory.join(name));
        }
    }
    loader.load(object)
}

/// A map keeps its size for life. What is remembered of flows is learned again in no time, so a map of another size is
/// left to the programs that still use it.
fn forget_flows_of_another_size(pin: &Path, flows: u32) {
    if MapInfo::from_pin(pin).is_ok_and(|info| info.max_entries() != flows) {
        // If it stays, so does its size: less room than wanted, or more.
        let _ = std::fs::remove_file(pin);
    }
}

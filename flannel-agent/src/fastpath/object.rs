//! The BPF object: embedded in this binary, and loaded with its maps pinned.

use std::path::Path;

use aya::{Ebpf, EbpfError, EbpfLoader};

use super::facts::Facts;

/// Maps that outlive the agent, under the names that `flannel-ebpf` gives them.
pub const MAPS: [&str; 7] = [
    "CONFIG",
    "CONTROL",
    "COUNTERS",
    "FLOWS",
    "PODS",
    "SUBNETS",
    "SUBNETS_LPM",
];

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
pub fn load(object: &[u8], facts: &Facts, maps: Option<&Path>) -> Result<Ebpf, EbpfError> {
    let mut loader = EbpfLoader::new();
    loader
        .override_global("COARSE_CLOCK", &facts.coarse_clock, true)
        .override_global("NFCT", &facts.nfct, true)
        .override_global("CT_STATUS", &facts.ct_status, true)
        .override_global("CT_TUPLES", &facts.ct_tuples, true);
    if let Some(directory) = maps {
        for name in MAPS {
            loader.map_pin_path(name, directory.join(name));
        }
    }
    loader.load(object)
}

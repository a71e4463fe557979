//! The BPF object: embedded in this binary, and loaded with its maps pinned.

use std::path::Path;

use aya::{Ebpf, EbpfError, EbpfLoader};

/// Maps that outlive the agent, under the names that `flannel-ebpf` gives them.
pub const MAPS: [&str; 6] = [
    "CONFIG",
    "CONFIG_SLOT",
    "COUNTERS",
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
/// into the kernel. Without a directory the maps are private to the result: for tests.
///
/// # Errors
/// When the kernel refuses a map, or a pin cannot be written.
pub fn load(object: &[u8], maps: Option<&Path>) -> Result<Ebpf, EbpfError> {
    let mut loader = EbpfLoader::new();
    if let Some(directory) = maps {
        for name in MAPS {
            loader.map_pin_path(name, directory.join(name));
        }
    }
    loader.load(object)
}

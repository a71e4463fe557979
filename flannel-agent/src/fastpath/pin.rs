//! Where maps and links are pinned, and the BPF file system that they need.
//!
//! `<pin dir>/v<ABI>/maps/<map>` and `<pin dir>/v<ABI>/links/<program>-<ifindex>`. The version in the path keeps an
//! agent from adopting maps of another layout: the kernel does not compare sizes when a pin is opened.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io, thread};

use flannel_common::maps::ABI;
use rustix::fs::statfs;
use rustix::mount::{MountFlags, mount};

use super::Error;
use super::hooks::{self, remove_pin};

/// `BPF_FS_MAGIC` of include/uapi/linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Where the kernel's own directory for the BPF file system is.
const BPF_FS: &str = "/sys/fs/bpf";

/// By then probes that were under way are past the hook that drops them: they wait in queues of this machine at most.
pub const PROBES_GONE: Duration = Duration::from_millis(10);

/// The pins of one node.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Pins below `root`, which need not exist yet.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Makes the directories, and mounts the BPF file system at its usual place if nobody has.
    ///
    /// # Errors
    /// [`Error::NoBpfFs`] if there is none and it cannot be mounted, [`Error::Pin`] if a directory cannot be made.
    pub fn create(&self) -> Result<(), Error> {
        let existing = self
            .root
            .ancestors()
            .find(|path| path.exists())
            .unwrap_or(Path::new("/"));
        if !is_bpf_fs(existing) {
            if !self.root.starts_with(BPF_FS) {
                return Err(Error::NoBpfFs {
                    path: self.root.clone(),
                    source: io::ErrorKind::Unsupported.into(),
                });
            }
            mount(
                "bpf",
                BPF_FS,
                "bpf",
                MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
                None,
            )
            .map_err(|error| Error::NoBpfFs {
                path: BPF_FS.into(),
                source: error.into(),
            })?;
        }
        for directory in [self.maps(), self.links()] {
            fs::create_dir_all(&directory).map_err(|source| Error::Pin {
                path: directory.clone(),
                source,
            })?;
        }
        Ok(())
    }

    fn version(&self) -> PathBuf {
        self.root.join(format!("v{ABI}"))
    }

    /// The directory of the maps.
    pub fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    fn links(&self) -> PathBuf {
        self.version().join("links")
    }

    /// The pin of a program's link to an interface.
    pub fn link(&self, program: &str, ifindex: u32) -> PathBuf {
        self.links().join(format!("{program}-{ifindex}"))
    }

    /// Links that an earlier run left, as program and interface index.
    pub fn existing_links(&self) -> Vec<(String, u32)> {
        let entries = fs::read_dir(self.links()).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let (program, ifindex) = name.rsplit_once('-')?;
                Some((program.to_owned(), ifindex.parse().ok()?))
            })
            .collect()
    }

    /// Removes what agents of other versions left: their programs run on maps that nobody updates any more.
    ///
    /// # Errors
    /// [`Error::Pin`] if a pin cannot be removed.
    pub fn remove_other_versions(&self) -> Result<Vec<String>, Error> {
        let mut removed = Vec::new();
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            if entry.path() != self.version()
                && entry.file_name().as_encoded_bytes().starts_with(b"v")
            {
                remove_tree(&entry.path(), &mut removed)?;
            }
        }
        Ok(removed)
    }
}

fn is_bpf_fs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.f_type as u64 == BPF_FS_MAGIC)
}

/// Detaches every link and removes every pin below `root`, links first, so that no program runs on a map that is
/// gone from the agent's sight. Returns what was removed. A directory that does not exist is no error.
///
/// # Errors
/// [`Error::Pin`] for the first pin that cannot be removed.
pub fn remove(root: &Path) -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    if root.exists() && is_bpf_fs(root) {
        remove_tree(root, &mut removed)?;
    }
    Ok(removed)
}

fn remove_tree(path: &Path, removed: &mut Vec<String>) -> Result<(), Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Pin { path, source }
    };
    let mut entries: Vec<_> = fs::read_dir(path)
        .map_err(failed(path))?
        .flatten()
        .collect();
    entries.sort_by_key(|entry| rank(&entry.path()));
    let mut probes = false;
    for entry in entries {
        let path = entry.path();
        if hooks::attests(&path) {
            if std::mem::take(&mut probes) {
                thread::sleep(PROBES_GONE);
            }
        } else {
            probes = !path.is_dir();
        }
        if path.is_dir() {
            remove_tree(&path, removed)?;
            continue;
        }
        if path
            .parent()
            .is_some_and(|parent| parent.ends_with("links"))
        {
            remove_pin(&path)?;
        } else {
            fs::remove_file(&path).map_err(failed(&path))?;
        }
        removed.push(path.display().to_string());
    }
    fs::remove_dir(path).map_err(failed(path))
}

/// The order of removal: "links" before "maps"; of the links, those that send probes before those that drop them.
fn rank(pin: &Path) -> (bool, PathBuf) {
    (hooks::attests(pin), pin.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_drops_probes_is_removed_last() {
        let names = [
            "attest_in-7",
            "attest_out-3",
            "clsact-attest_in-8",
            "bridge_egress-4",
            "clsact-pod_egress-8",
            "nic_ingress-2",
            "pod_egress-7",
            "vtep_ingress-3",
        ];
        let mut pins: Vec<&Path> = names.iter().map(Path::new).collect();
        pins.sort_by_key(|pin| rank(pin));
        let last: Vec<bool> = pins.iter().map(|pin| hooks::attests(pin)).collect();
        assert_eq!(last, [false, false, false, false, false, true, true, true]);
        assert!(rank(Path::new("links")) < rank(Path::new("maps")));
    }
}

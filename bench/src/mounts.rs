//! Mounts: memory for each lab's directory, and the two that labs share, the BPF file system and a shared
//! `/run/netns`.
//!
//! Of the shared ones, what was there before stays; what a lab mounted is marked with a file, and the last lab of the machine unmounts it,
//! unless somebody else has begun to use it. Only [`crate::state`] calls this, with its lock held.

use std::{fs, path::Path};

use rustix::{
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, UnmountFlags},
};

use crate::{
    error::{IoContext, Result},
    netns, state,
};

/// Where the BPF file system belongs.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Magic number of the BPF file system (`linux/magic.h`, `BPF_FS_MAGIC`).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Files in `state::DIRECTORY` that say that a lab made the mount.
const MARK_BPFFS: &str = "mounted-bpffs";
const MARK_NETNS: &str = "mounted-netns";

/// Mounts what is missing.
pub(crate) fn acquire() -> Result<()> {
    if rustix::fs::statfs(BPFFS)
        .context("stat file system", BPFFS)?
        .f_type
        != BPF_FS_MAGIC
    {
        rustix::mount::mount("bpf", BPFFS, "bpf", MountFlags::empty(), None)
            .context("mount BPF file system on", BPFFS)?;
        mark(MARK_BPFFS)?;
    }
    // As `ip netns add` does it: if iproute2 had to do this later, over our namespaces, each would be mounted twice.
    fs::create_dir_all(netns::DIRECTORY).context("create", netns::DIRECTORY)?;
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    match rustix::mount::mount_change(netns::DIRECTORY, shared) {
        Err(Errno::INVAL) => {
            rustix::mount::mount_bind_recursive(netns::DIRECTORY, netns::DIRECTORY)
                .context("bind", netns::DIRECTORY)?;
            mark(MARK_NETNS)?;
            rustix::mount::mount_change(netns::DIRECTORY, shared).context("share", netns::DIRECTORY)
        }
        changed => changed.context("share", netns::DIRECTORY),
    }
}

/// Mounts memory over a lab's directory: etcd waits for its disk on every write, and a busy disk would make it late.
pub(crate) fn memory(directory: &Path) -> Result<()> {
    let options = Some(c"mode=0700,size=1g");
    rustix::mount::mount(
        "flannel-lab",
        directory,
        "tmpfs",
        MountFlags::empty(),
        options,
    )
    .context("mount memory on", directory.display())
}

/// Unmounts a lab's directory, at once as far as names go; what is not mounted stays as it is.
pub(crate) fn unmount(directory: &Path) {
    rustix::mount::unmount(directory, UnmountFlags::DETACH).ok();
}

/// Unmounts what labs have mounted, unless somebody else has put something there: then it is theirs from now on.
/// Failure leaves a mount behind, which is harmless.
pub(crate) fn release() {
    for (mark, directory) in [(MARK_BPFFS, BPFFS), (MARK_NETNS, netns::DIRECTORY)] {
        if marked(mark) {
            if holds_only_debug_files(directory) {
                rustix::mount::unmount(directory, UnmountFlags::empty()).ok();
            }
            if mark == MARK_NETNS {
                fs::remove_dir(directory).ok();
            }
            unmark(mark);
        }
    }
}

/// Whether a directory is empty but for `maps.debug` and `progs.debug`, which the kernel may put into a new BPF file
/// system.
fn holds_only_debug_files(directory: &str) -> bool {
    fs::read_dir(directory).is_ok_and(|entries| {
        entries
            .flatten()
            .all(|entry| entry.file_name().to_string_lossy().ends_with(".debug"))
    })
}

fn mark(name: &str) -> Result<()> {
    let path = Path::new(state::DIRECTORY).join(name);
    fs::write(&path, "").context("write", path.display())
}

fn marked(name: &str) -> bool {
    Path::new(state::DIRECTORY).join(name).exists()
}

fn unmark(name: &str) {
    fs::remove_file(Path::new(state::DIRECTORY).join(name)).ok();
}

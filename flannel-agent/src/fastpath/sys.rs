//! The calls to the kernel that aya has no function for. All that is unsafe in the agent is here and in `plain`.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::programs::TcAttachType;
use bytemuck::Pod;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::ethtool::BLOCKS;

/// `BPF_OBJ_GET` of include/uapi/linux/bpf.h.
const BPF_OBJ_GET: libc::c_long = 7;
/// `BPF_LINK_DETACH` of include/uapi/linux/bpf.h, kernel 5.9 (commit 73b11c2ab072).
const BPF_LINK_DETACH: libc::c_long = 34;

/// The members of `union bpf_attr` that `BPF_OBJ_GET` reads.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The members of `union bpf_attr` that `BPF_LINK_DETACH` reads.
#[repr(C)]
struct LinkDetach {
    link_fd: u32,
}

/// `BPF_MAP_LOOKUP_BATCH` of include/uapi/linux/bpf.h, kernel 5.6 (commit 057996380a42).
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// Entries that one call brings at most.
const BATCH: usize = 4096;

/// The members of `union bpf_attr` that `BPF_MAP_LOOKUP_BATCH` reads.
#[repr(C)]
struct LookupBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// `BPF_PROG_QUERY` of include/uapi/linux/bpf.h.
const BPF_PROG_QUERY: libc::c_long = 16;
/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` of include/uapi/linux/bpf.h, kernel 6.6.
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// Programs on one side of one interface at most (`BPF_MPROG_MAX` of include/linux/bpf_mprog.h).
const PROGRAMS: usize = 64;

/// The members of `union bpf_attr` that `BPF_PROG_QUERY` reads and writes.
#[repr(C)]
struct Query {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    reserved: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Calls `bpf(2)`.
///
/// # Safety
/// `T` must be laid out as the kernel expects for `command`, and pointers in it must be valid for the call.
unsafe fn bpf<T>(command: libc::c_long, mut attributes: T) -> io::Result<libc::c_long> {
    // SAFETY: the caller's promise.
    unsafe { bpf_mut(command, &mut attributes) }
}

/// As [`bpf`], for commands that answer in their attributes.
///
/// # Safety
/// As for [`bpf`].
unsafe fn bpf_mut<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads and writes `size_of::<T>()` bytes, which is the value; the rest is the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Detaches the link pinned at `path`, at once: when this returns, its program does not run any more. (Merely
/// dropping the last reference detaches some tens of milliseconds later.)
///
/// # Errors
/// `NotFound` without a pin; otherwise what the kernel says. A link whose interface is gone is not an error.
pub fn detach_pinned_link(path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let get = ObjGet {
        pathname: name.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    // SAFETY: `ObjGet` is the layout that BPF_OBJ_GET reads, and `name` lives until the call returns.
    let fd = unsafe { bpf(BPF_OBJ_GET, get)? };
    // SAFETY: the call returned a new descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let detach = LinkDetach {
        link_fd: fd.as_raw_fd() as u32,
    };
    // SAFETY: `LinkDetach` is the layout that BPF_LINK_DETACH reads; it holds no pointer.
    match unsafe { bpf(BPF_LINK_DETACH, detach) } {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Gives the calling thread a network namespace of its own, which goes when the thread and what it opened are gone.
///
/// # Errors
/// What the kernel says.
pub fn enter_new_network() -> io::Result<()> {
    // SAFETY: only the network namespace is left; the table of file descriptors stays shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

/// The ids of the programs that TCX runs on an interface, in their order; none where the kernel has no TCX.
///
/// # Errors
/// What the kernel says.
pub fn tcx_programs(ifindex: u32, side: TcAttachType) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; PROGRAMS];
    let mut query = Query {
        target_ifindex: ifindex,
        attach_type: if side == TcAttachType::Egress {
            BPF_TCX_EGRESS
        } else {
            BPF_TCX_INGRESS
        },
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        count: PROGRAMS as u32,
        reserved: 0,
        prog_attach_flags: 0,
        link_ids: 0,
        link_attach_flags: 0,
        revision: 0,
    };
    // SAFETY: the layout is what the command reads, and `ids` has room for `count` ids.
    match unsafe { bpf_mut(BPF_PROG_QUERY, &mut query) } {
        Ok(_) => Ok(ids.into_iter().take(query.count as usize).collect()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// `SIOCETHTOOL` of include/uapi/linux/sockios.h.
const SIOCETHTOOL: libc::Ioctl = 0x8946;
/// `ETHTOOL_GFEATURES` of include/uapi/linux/ethtool.h.
const ETHTOOL_GFEATURES: u32 = 0x3a;

/// `struct ethtool_gfeatures` with room for the features of any kernel.
#[derive(Default)]
#[repr(C)]
struct GetFeatures {
    command: u32,
    size: u32,
    blocks: [FeatureBlock; BLOCKS],
}

/// `struct ethtool_get_features_block`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct FeatureBlock {
    available: u32,
    requested: u32,
    active: u32,
    never_changed: u32,
}

/// The features that are in force on an interface, in blocks of 32.
///
/// # Errors
/// What the kernel says.
pub fn active_features(device: &str) -> io::Result<[u32; BLOCKS]> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    let mut answer = GetFeatures {
        command: ETHTOOL_GFEATURES,
        size: BLOCKS as u32,
        ..GetFeatures::default()
    };
    let mut name = [0; libc::IFNAMSIZ];
    if device.len() >= name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (slot, byte) in name.iter_mut().zip(device.bytes()) {
        *slot = byte as libc::c_char;
    }
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: (&raw mut answer).cast(),
        },
    };
    // SAFETY: the request holds a name that ends with zero and a pointer to an answer that has room for as many blocks
    // as it says, and outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(answer.blocks.map(|block| block.active))
}

/// Counts the entries of a hash map with these keys and values. Entries that come and go meanwhile may be missed or
/// counted twice.
///
/// # Errors
/// What the kernel says.
pub fn count_entries<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<u64> {
    let mut keys = vec![K::zeroed(); BATCH];
    let mut values = vec![V::zeroed(); BATCH];
    let mut position = [0u64; 2];
    let mut started = false;
    let mut total = 0;
    loop {
        let mut next = [0u64; 2];
        let mut batch = LookupBatch {
            in_batch: if started { position.as_ptr() as u64 } else { 0 },
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: BATCH as u32,
            map_fd: map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the layout is what the command reads, `keys` and `values` have room for `count` entries of the map's
        // sizes (the caller's types), and a position takes four bytes.
        let result = unsafe { bpf_mut(BPF_MAP_LOOKUP_BATCH, &mut batch) };
        match result {
            Ok(_) => total += u64::from(batch.count),
            // The end, with the last entries.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(total + u64::from(batch.count));
            }
            Err(error) => return Err(error),
        }
        position = next;
        started = true;
    }
}

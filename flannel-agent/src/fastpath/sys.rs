//! The calls to the kernel that aya has no function for. All that is unsafe in the agent is here and in `plain`.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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

/// Calls `bpf(2)`.
///
/// # Safety
/// `T` must be laid out as the kernel expects for `command`, and pointers in it must be valid for the call.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes, which is the value; the rest is the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
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
    let fd = unsafe { bpf(BPF_OBJ_GET, &get)? };
    // SAFETY: the call returned a new descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let detach = LinkDetach {
        link_fd: fd.as_raw_fd() as u32,
    };
    // SAFETY: `LinkDetach` is the layout that BPF_LINK_DETACH reads; it holds no pointer.
    match unsafe { bpf(BPF_LINK_DETACH, &detach) } {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
        Err(error) => Err(error),
    }
}

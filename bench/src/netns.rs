//! Network namespaces that vanish with their handle.
//!
//! A namespace is bound to `/run/netns/<name>`, as `ip netns` does it, so `ip -n`, `nsenter --net=` and CNI plugins
//! find it. Code enters one by [`Netns::run`], on a thread of its own: a thread that has changed its namespace is
//! never handed back. A socket stays in the namespace that it was opened in, whichever thread uses it later.
//!
//! Programs are started inside by `setns` between fork and exec ([`crate::process`]), never by `ip netns exec`, which
//! makes a new mount namespace and so hides the BPF file system.

use std::{
    fs,
    io::ErrorKind,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use rustix::{
    fs::{Mode, OFlags},
    mount::UnmountFlags,
    thread::{LinkNameSpaceType, UnshareFlags},
};

use crate::{
    error::{IoContext, Result},
    process::Lifetime,
    signals,
};

/// Where namespaces are bound, as iproute2 expects it.
pub const DIRECTORY: &str = "/run/netns";

/// A network namespace; deleted when the last clone of the handle goes, unless it is to outlive the process.
#[derive(Clone, Debug)]
pub struct Netns {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    path: PathBuf,
    fd: OwnedFd,
    lifetime: Lifetime,
}

impl Netns {
    /// Makes a namespace and binds it to `/run/netns/<name>`. It holds nothing but a loopback device that is down.
    ///
    /// # Errors
    /// If the name is taken, or without CAP_SYS_ADMIN.
    pub fn create(name: &str) -> Result<Self> {
        Self::create_with(name, Lifetime::Bound)
    }

    /// As [`Netns::create`]; one that outlives the process is removed by name only, see [`remove`].
    ///
    /// # Errors
    /// As [`Netns::create`].
    pub fn create_with(name: &str, lifetime: Lifetime) -> Result<Self> {
        let _permit = signals::permit();
        let path = Path::new(DIRECTORY).join(name);
        // A machine on which nobody has made a namespace yet has no such directory.
        fs::create_dir_all(DIRECTORY).context("create", DIRECTORY)?;
        fs::File::create_new(&path).context("create", path.display())?;
        let bound = thread::scope(|scope| scope.spawn(|| bind_new(&path)).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let opened = bound.and_then(|()| open(&path));
        match opened {
            Ok(fd) => Ok(Self {
                inner: Arc::new(Inner {
                    name: name.to_owned(),
                    path,
                    fd,
                    lifetime,
                }),
            }),
            Err(error) => {
                remove(&path).ok();
                Err(error)
            }
        }
    }

    /// The name under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The path that names the namespace, for `nsenter --net=` and CNI.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Runs `work` inside the namespace, on a fresh thread, and waits for it. Panics of `work` go on in the caller.
    ///
    /// Inside, `/proc/sys/net` shows this namespace, but `/proc/net` (which follows the process's main thread) does
    /// not: read `/proc/thread-self/net`.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter(self.as_fd()).context("enter network namespace", self.name())?;
                    Ok(work())
                })
                .join()
        })
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Writes kernel parameters of this namespace, given as path below `/proc/sys` and value.
    ///
    /// # Errors
    /// Names the first parameter that could not be written.
    pub fn sysctl(&self, parameters: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            parameters.iter().try_for_each(|(name, value)| {
                fs::write(Path::new("/proc/sys").join(name), value)
                    .context("set", format_args!("{name}={value} in {}", self.name()))
            })
        })?
    }

    /// Reads a file inside the namespace, such as `/proc/thread-self/net/snmp`.
    ///
    /// # Errors
    /// Those of reading the file.
    pub fn read(&self, path: &str) -> Result<String> {
        self.run(|| {
            fs::read_to_string(path).context("read", format_args!("{path} in {}", self.name()))
        })?
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.fd.as_fd()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::Bound {
            // The cluster's teardown may have been here before.
            remove(&self.path).ok();
        }
    }
}

/// Moves the calling thread into the namespace. Async-signal-safe: also called between fork and exec.
pub(crate) fn enter(fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::thread::move_into_link_name_space(fd, Some(LinkNameSpaceType::Network))
}

/// Unbinds and removes a namespace's name. The kernel destroys the namespace, with all links in it, when the last
/// process and socket have left.
///
/// # Errors
/// If the name exists but cannot be unbound.
pub fn remove(path: &Path) -> Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH) {
        // A plain file: the process died between making and binding it.
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error).context("unmount", path.display()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context("remove", path.display())
        }
        _ => Ok(()),
    }
}

fn bind_new(path: &Path) -> Result<()> {
    // SAFETY: CLONE_NEWNET changes nothing that the memory model or the file descriptors of this process depend on,
    // and only for this thread, which ends here.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
        .context("unshare", "network namespace")?;
    rustix::mount::mount_bind("/proc/thread-self/ns/net", path)
        .context("bind namespace to", path.display())
}

fn open(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .context("open", path.display())
}

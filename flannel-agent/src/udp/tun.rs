//! The TUN device: opens `/dev/net/tun` and makes a device that goes with the descriptor.

use std::{io, os::fd::OwnedFd};

use rustix::fs::{Mode, OFlags, open as open_file};

use super::sys;

/// Where the kernel hands out TUN devices (Documentation/networking/tuntap.rst).
const PATH: &str = "/dev/net/tun";

/// A TUN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name, such as `flannel0`.
    pub name: String,
    /// Its index.
    pub index: u32,
}

/// Why there is no TUN device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened.
    #[error("backend udp: cannot open {PATH}: {source}; {}", remedy(source))]
    Open {
        /// What the kernel said.
        source: io::Error,
    },
    /// The device cannot be made.
    #[error(
        "backend udp: cannot make the TUN device \"{pattern}\": {source}; {}",
        remedy(source)
    )]
    Create {
        /// The name that was asked for.
        pattern: String,
        /// What the kernel said.
        source: io::Error,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT) => {
            "load the kernel module tun, and in a container mount the host's /dev/net (hostPath)"
        }
        Some(libc::ENODEV | libc::ENXIO) => "this kernel has no TUN devices: load the module tun",
        Some(libc::EPERM | libc::EACCES) => {
            "run with CAP_NET_ADMIN, and in a container allow the device /dev/net/tun (10:200)"
        }
        Some(libc::EBUSY) => "another process holds a device of that name",
        _ => "a backend that needs no TUN device, such as vxlan, works without",
    }
}

/// Whether TUN devices can be had at all, without making one: to be asked before anything on the node is touched.
///
/// # Errors
/// Why not, and the remedy.
pub fn check() -> Result<(), Error> {
    open_path().map(drop)
}

/// Makes a device in the network namespace of the calling thread, and returns its name. It takes and gives bare packets,
/// without blocking, and goes when the descriptor is closed. It is down and has no address.
///
/// # Errors
/// Why not, and the remedy.
pub fn open(pattern: &str) -> Result<(OwnedFd, String), Error> {
    let tun = open_path()?;
    match sys::make_tun(&tun, pattern) {
        Ok(name) => Ok((tun, name)),
        Err(source) => Err(Error::Create {
            pattern: pattern.to_owned(),
            source,
        }),
    }
}

fn open_path() -> Result<OwnedFd, Error> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    open_file(PATH, flags, Mode::empty()).map_err(|source| Error::Open {
        source: source.into(),
    })
}

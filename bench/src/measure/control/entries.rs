//! The entries in the kernel: made by iproute2's batches, and counted as iproute2 shows them.

use std::time::Instant;

use lab::{Netns, process, stock, underlay};

use super::{
    peers,
    spent::{Counters, Spent},
};
use crate::{
    testbed::{Error, Result},
    variants::Backend,
};

/// The VXLAN device.
const DEVICE: &str = "flannel.1";

/// Makes the entries for so many leases, and removes them.
///
/// # Errors
/// If a command fails, or something is missing then.
pub fn make(netns: &Netns, backend: Backend, leases: u32) -> Result<Spent> {
    let lines = match backend {
        Backend::Vxlan => format!(
            "link add {DEVICE} type vxlan id 1 dev eth0 dstport 8472 nolearning\n\
             link set {DEVICE} up\n"
        ),
        Backend::HostGw => String::new(),
    };
    underlay::ip_batch(netns, &lines)?;
    let leases_read: Result<Vec<_>> = peers::all(leases).map(|peer| peer.lease(backend)).collect();
    let entries = stock::Entries::new(&peers::network(backend), &leases_read?)?;
    /// The calling thread.
    const SELF: i32 = 0;
    let counters = Counters::open(SELF)?;
    let start = Instant::now();
    entries.make(netns)?;
    let spent = counters.read(start.elapsed())?;
    check(netns, backend, leases)?;
    match backend {
        Backend::Vxlan => underlay::ip_batch(netns, &format!("link delete {DEVICE}\n"))?,
        Backend::HostGw => {
            let flush = format!("route flush root {}\n", peers::NETWORK);
            underlay::ip_batch(netns, &flush)?;
        }
    }
    Ok(spent)
}

/// Fails unless the kernel has the entries of so many leases.
///
/// # Errors
/// With what is missing.
pub fn check(netns: &Netns, backend: Backend, leases: u32) -> Result<()> {
    let count = |program, arguments: &[&str], mark: &str| -> Result<u32> {
        let shown = process::run(Some(netns), program, arguments)?;
        Ok(shown.lines().filter(|line| line.contains(mark)).count() as u32)
    };
    let routes = ["route", "show", "root", peers::NETWORK];
    expect("routes", count("ip", &routes, " via ")?, leases)?;
    if backend == Backend::Vxlan {
        let neighbours = ["neighbour", "show", "dev", DEVICE, "nud", "permanent"];
        expect("neighbours", count("ip", &neighbours, "lladdr")?, leases)?;
        let fdb = ["fdb", "show", "dev", DEVICE];
        expect("FDB entries", count("bridge", &fdb, " dst ")?, leases)?;
    }
    Ok(())
}

/// Fails unless as many of something were found as there must be.
///
/// # Errors
/// With both numbers.
pub fn expect(what: &str, found: u32, expected: u32) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Control(format!(
        "{found} {what} instead of {expected}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert!(expect("routes", 3, 3).is_ok());
        let error = expect("routes", 2, 3).unwrap_err().to_string();
        assert!(error.contains("2 routes instead of 3"), "{error}");
    }
}

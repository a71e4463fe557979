//! What must hold for any bytes that reach the agent from outside: one function for each kind, which panics if it does
//! not hold.
//!
//! The same functions are run by libFuzzer (`cargo xtask fuzz`) and, bounded, by this crate's tests. Nothing here may
//! touch a file, a socket or a clock.

mod btf;
mod cni;
mod lease;
mod netlink;
mod network_config;
mod subnet_env;
mod udp_packet;

/// A kind of input.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, which is also that of its folder under `seeds/`.
    pub name: &'static str,
    /// What must hold.
    ///
    /// # Panics
    /// If it does not.
    pub run: fn(&[u8]),
}

/// All kinds.
pub const TARGETS: [Target; 9] = [
    Target {
        name: "lease-key",
        run: lease::key,
    },
    Target {
        name: "lease-value",
        run: lease::value,
    },
    Target {
        name: "lease-file",
        run: lease::file,
    },
    Target {
        name: "network-config",
        run: network_config::run,
    },
    Target {
        name: "subnet-env",
        run: subnet_env::run,
    },
    Target {
        name: "cni",
        run: cni::run,
    },
    Target {
        name: "netlink",
        run: netlink::run,
    },
    Target {
        name: "udp-packet",
        run: udp_packet::run,
    },
    Target {
        name: "btf",
        run: btf::run,
    },
];

/// The kind of that name.
pub fn find(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}

#[cfg(test)]
mod tests;

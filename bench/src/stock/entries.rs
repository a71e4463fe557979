//! The kernel entries for one peer, as batches for `ip` and `bridge`.

use std::fmt::Display;

use super::{
    devices,
    netconf::{Kind, NetConf},
};
use crate::{
    error::{Error, Result},
    lease::{BackendData, Lease},
    netns::Netns,
    process,
};

/// What to do with a peer's entries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Replace,
    Delete,
}

/// Whether a peer is reached by a plain route (`DirectRouting`), by family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Direct {
    pub(super) ipv4: bool,
    pub(super) ipv6: bool,
}

/// Batches for `ip` and `bridge`.
#[derive(Default)]
pub(super) struct Commands {
    ip: String,
    bridge: String,
    routes: String,
}

/// One family's part of a peer's lease.
struct Part<'a> {
    subnet: &'a dyn Display,
    /// The subnet's first address, the peer's VTEP.
    first: &'a dyn Display,
    public: &'a dyn Display,
    data: Option<&'a BackendData>,
    /// The VXLAN device.
    device: String,
    direct: bool,
}

impl Commands {
    /// The entries for a lease, in both families if the network has both.
    pub(super) fn peer(
        &mut self,
        verb: Verb,
        config: &NetConf,
        lease: &Lease,
        direct: Direct,
    ) -> Result<()> {
        let value = &lease.value;
        let ipv4 = Part {
            subnet: &lease.subnet,
            first: &lease.subnet.address,
            public: &value.public_ip,
            data: value.backend_data.as_ref(),
            device: devices::vxlan(&config.backend),
            direct: direct.ipv4,
        };
        self.part(verb, config.kind, &ipv4)?;
        if let (Some(_), Some(subnet6), Some(public)) =
            (config.networks.ipv6, lease.subnet6, value.public_ipv6)
        {
            let ipv6 = Part {
                subnet: &subnet6,
                first: &subnet6.address,
                public: &public,
                data: value.backend_v6_data.as_ref(),
                device: devices::vxlan6(&config.backend),
                direct: direct.ipv6,
            };
            self.part(verb, config.kind, &ipv6)?;
        }
        Ok(())
    }

    /// Upstream's order: neighbour, FDB entry, and last the route, so that the kernel never asks for the neighbour.
    fn part(&mut self, verb: Verb, kind: Kind, part: &Part<'_>) -> Result<()> {
        let Part {
            subnet,
            first,
            public,
            device,
            ..
        } = part;
        let mut route = |how: &str| {
            let word = match verb {
                Verb::Replace => "replace",
                Verb::Delete => "delete",
            };
            self.routes += &format!("route {word} {subnet} via {how}\n");
        };
        match kind {
            // One route for the whole network leads to the device.
            Kind::Udp => return Ok(()),
            Kind::HostGw => {
                route(&format!("{public} dev eth0"));
                return Ok(());
            }
            Kind::Ipip if part.direct => {
                route(&format!("{public} dev eth0"));
                return Ok(());
            }
            Kind::Ipip => {
                route(&format!("{public} dev {} onlink", devices::IPIP));
                return Ok(());
            }
            Kind::Vxlan if part.direct => {
                route(&format!("{public} dev eth0"));
                return Ok(());
            }
            Kind::Vxlan => route(&match verb {
                Verb::Replace => format!("{first} dev {device} onlink"),
                Verb::Delete => format!("{first} dev {device}"),
            }),
        }
        let mac = part
            .data
            .and_then(|data| data.vtep_mac.as_deref())
            .ok_or_else(|| Error::Unsupported(format!("the lease of {subnet} has no VtepMAC")))?;
        match verb {
            Verb::Replace => {
                self.ip +=
                    &format!("neighbour replace {first} lladdr {mac} dev {device} nud permanent\n");
                self.bridge +=
                    &format!("fdb replace {mac} dev {device} dst {public} self permanent\n");
            }
            Verb::Delete => {
                self.ip += &format!("neighbour delete {first} dev {device}\n");
                self.bridge += &format!("fdb delete {mac} dev {device} dst {public} self\n");
            }
        }
        Ok(())
    }

    /// Runs the batches, the routes last.
    pub(super) fn run(&self, netns: &Netns) -> Result<()> {
        for (program, batch) in [
            ("ip", &self.ip),
            ("bridge", &self.bridge),
            ("ip", &self.routes),
        ] {
            if !batch.is_empty() {
                process::run_with_input(Some(netns), program, &["-batch", "-"], batch)?;
            }
        }
        Ok(())
    }
}

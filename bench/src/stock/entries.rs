//! The kernel entries for one peer, as batches for `ip` and `bridge`.

use crate::{
    error::{Error, Result},
    lease::{Lease, Subnet},
    netns::Netns,
    process,
    stock::netconf::Backend,
};

/// What to do with a peer's entries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Replace,
    Delete,
}

/// Batches for `ip` and `bridge`.
#[derive(Default)]
pub(super) struct Commands {
    ip: String,
    bridge: String,
    routes: String,
}

impl Commands {
    /// Upstream's order: neighbour, FDB entry, and last the route, so that the kernel never asks for the neighbour.
    pub(super) fn peer(
        &mut self,
        verb: Verb,
        backend: &Backend,
        subnet: Subnet,
        lease: &Lease,
    ) -> Result<()> {
        let public_ip = lease.value.public_ip;
        if backend.r#type == "host-gw" {
            self.routes += &match verb {
                Verb::Replace => format!("route replace {subnet} via {public_ip} dev eth0\n"),
                Verb::Delete => format!("route delete {subnet} via {public_ip} dev eth0\n"),
            };
            return Ok(());
        }
        let (device, first) = (format!("flannel.{}", backend.vni()), subnet.address);
        let mac = lease
            .value
            .backend_data
            .as_ref()
            .and_then(|data| data.vtep_mac.as_deref())
            .ok_or_else(|| Error::Unsupported(format!("the lease of {subnet} has no VtepMAC")))?;
        match verb {
            Verb::Replace => {
                self.ip +=
                    &format!("neighbour replace {first} lladdr {mac} dev {device} nud permanent\n");
                self.bridge +=
                    &format!("fdb replace {mac} dev {device} dst {public_ip} self permanent\n");
                self.routes += &format!("route replace {subnet} via {first} dev {device} onlink\n");
            }
            Verb::Delete => {
                self.ip += &format!("neighbour delete {first} dev {device}\n");
                self.bridge += &format!("fdb delete {mac} dev {device} dst {public_ip} self\n");
                self.routes += &format!("route delete {subnet} via {first} dev {device}\n");
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

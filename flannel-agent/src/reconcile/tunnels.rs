//! The tunnel devices' part of a pass, and what this node publishes of them.

use super::{Dirty, Reconciler, device};
use ipnet::IpNet;

use crate::{
    backend,
    family::{Family, PerFamily, host},
    kernel::{
        apply,
        diff::LinkOp,
        netlink::Error,
        objects::{Link, TunnelDevice, TunnelKind},
    },
};

impl Reconciler {
    /// Brings the tunnel devices in line. Whether they are.
    pub(super) fn ensure_devices(&mut self, dirty: &mut Dirty) -> bool {
        let mut problem = None;
        let before = self.macs;
        for (family, desired) in self.devices().iter() {
            match device::ensure(&mut self.netlink, desired, &mut self.observed) {
                Ok(ensured) => {
                    if ensured.created {
                        (dirty.routes, dirty.neighbours, dirty.hops) = (true, true, true);
                    }
                    let index = ensured.link.index;
                    if let Err(error) = self.remove_former_address(family, index) {
                        problem = Some(error.to_string());
                    }
                    // No other kind of device has one that is published.
                    if let TunnelKind::Vxlan(_) = desired.kind {
                        *self.macs.get_mut(family) = ensured.link.mac;
                    }
                }
                Err(error) => problem = Some(error.to_string()),
            }
        }
        if self.macs != before {
            tracing::warn!(
                new = self.macs.join(),
                old = before.join(),
                "a tunnel device's MAC has changed; publishing it"
            );
            self.publish_attributes();
        }
        let complete = problem.is_none();
        self.board.problem("device", problem);
        complete
    }

    /// Removes the address of a former run's subnet in another network, which the kernel would choose as a source.
    fn remove_former_address(&mut self, family: Family, index: u32) -> Result<(), Error> {
        let Some(former) = self.settings.former.get(family) else {
            return Ok(());
        };
        let address = host(former.network());
        let own = self.own.subnets.get(family).map(IpNet::network);
        let addresses = self.observed.addresses.get_mut(&index);
        if own == Some(former.network()) {
            return Ok(());
        }
        if let Some(addresses) = addresses
            && let Some(position) = addresses.iter().position(|net| *net == address)
        {
            tracing::info!(%address, "removing the address of a former subnet from the tunnel device");
            apply::link(&mut self.netlink, &LinkOp::RemoveAddress(index, address))?;
            addresses.remove(position);
        }
        Ok(())
    }

    /// Publishes what this node's lease should say.
    pub(super) fn publish_attributes(&self) {
        let attributes = backend::attributes(
            &self.settings.config,
            &self.uplink,
            &self.macs,
            self.settings.output.as_deref(),
        );
        self.publish.send_if_modified(|published| {
            let changed = *published != attributes;
            *published = attributes;
            changed
        });
    }

    /// The tunnel devices that should be there.
    pub(super) fn devices(&self) -> PerFamily<TunnelDevice> {
        backend::devices(
            &self.settings.config,
            &self.uplink,
            &self.own.subnets,
            &self.macs,
            self.proxy
                .as_ref()
                .map(|proxy| proxy.device().name.as_str()),
        )
    }

    /// The tunnel devices that are there.
    pub(super) fn tunnel_links(&self) -> PerFamily<&Link> {
        self.devices()
            .filter_map(|_, device| self.observed.link(&device.name))
    }

    /// Their indices.
    pub(super) fn tunnels(&self) -> PerFamily<u32> {
        self.tunnel_links().map(|_, link| link.index)
    }

    pub(super) fn is_tunnel(&self, index: u32) -> bool {
        self.tunnels().values().any(|tunnel| *tunnel == index)
    }
}

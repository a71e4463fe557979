//! The udp backend's proxy: kept running with a device that is there and the addresses of the moment, and told where the
//! other nodes' subnets are.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::{IpNet, Ipv4Net};

use super::{Dirty, Reconciler, device, repair::Concerned};
use crate::{backend, family::Family, kernel::netlink::Error, lease::Lease, udp::Proxy};

impl Reconciler {
    /// Starts the proxy if the backend needs one and it does not run as it should; `observed` must hold current links, and
    /// does so afterwards. Whether it runs, where one is needed.
    pub(super) fn ensure_proxy(&mut self, dirty: &mut Dirty) -> Result<bool, Error> {
        let config = &self.settings.config;
        let Some(wanted) = backend::proxy(config, &self.uplink, &self.own.subnets) else {
            return Ok(true);
        };
        let runs = self.proxy.as_ref().is_some_and(|proxy| {
            *proxy.options() == wanted
                && proxy.failure().is_none()
                && self
                    .observed
                    .links
                    .get(&proxy.device().index)
                    .is_some_and(|link| link.name == proxy.device().name)
        });
        if runs {
            return Ok(true);
        }
        // The old one first: it holds the port and the device's name.
        self.proxy = None;
        let problem = match Proxy::start(&wanted) {
            Ok(proxy) => {
                tracing::info!(
                    device = proxy.device().name,
                    address = %wanted.bind,
                    "the agent carries packets between the device and other nodes"
                );
                self.proxy = Some(proxy);
                (dirty.routes, dirty.leases) = (true, true);
                device::read_links(&mut self.netlink, &mut self.observed)?;
                None
            }
            Err(error) => Some(error.to_string()),
        };
        let complete = problem.is_none();
        self.board.problem("udp", problem);
        Ok(complete)
    }

    /// Tells the proxy of all other nodes.
    pub(super) fn set_proxy_routes(&self) {
        let Some(proxy) = &self.proxy else { return };
        let leases = self.peers();
        proxy.set_routes(
            leases
                .filter_map(|(key, lease)| self.proxy_route(key, lease))
                .collect(),
        );
    }

    /// Tells the proxy of leases that have changed.
    pub(super) fn change_proxy_routes(&self, concerned: &Concerned) {
        let Some(proxy) = &self.proxy else { return };
        // Another lease may have had the same subnet, without its route being planned.
        if concerned.keys.iter().any(|key| self.peer(key).is_none()) {
            return self.set_proxy_routes();
        }
        let mut changes = BTreeMap::new();
        for subnet in &concerned.subnets {
            if let IpNet::V4(subnet) = subnet {
                changes.insert(*subnet, None);
            }
        }
        for key in &concerned.keys {
            let route = self
                .peer(key)
                .and_then(|lease| self.proxy_route(key, lease));
            changes.extend(route.map(|(subnet, node)| (subnet, Some(node))));
        }
        for (subnet, node) in changes {
            proxy.change(subnet, node);
        }
    }

    fn proxy_route(&self, key: &str, lease: &Lease) -> Option<(Ipv4Net, std::net::Ipv4Addr)> {
        if self.plan.problem(key, Family::V4).is_some() {
            return None;
        }
        match (lease.subnets.v4?, lease.attributes.addresses.v4?) {
            (IpNet::V4(subnet), IpAddr::V4(node)) => Some((subnet, node)),
            _ => None,
        }
    }
}

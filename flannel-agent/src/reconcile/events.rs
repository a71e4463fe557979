//! What an event of the kernel or of the subnet manager makes out of date.

use super::{Dirty, Reconciler};
use crate::{
    kernel::{decode::Neighbour, events::Event},
    lease,
};

impl Reconciler {
    /// Takes note of a change in the kernel.
    pub fn note(&mut self, event: Event, dirty: &mut Dirty) {
        match event {
            Event::Link(index) => {
                (dirty.links, dirty.pods) = (true, true);
                // A link that goes down takes its IPv4 routes with it, and no event says so.
                if index == self.uplink.index || self.is_tunnel(index) {
                    (dirty.routes, dirty.neighbours, dirty.hops) = (true, true, true);
                }
            }
            Event::Route(net, route, gone) => {
                let known = self.observed.routes.get(&net) == Some(&route);
                dirty.routes |= known == gone;
                // Whether it is known or not: it may have been read after the hops were.
                let networks = self.settings.config.networks();
                dirty.hops |= !networks.values().any(|network| network.contains(&net));
            }
            Event::OtherRoute => dirty.hops = true,
            Event::Neighbour(index, neighbour, gone) => {
                let known = match neighbour {
                    Neighbour::Address(address, entry) => {
                        self.observed.neighbours.get(&(index, address)) == Some(&entry)
                    }
                    Neighbour::Fdb(mac, entry) => {
                        self.observed.fdb.get(&(index, mac)) == Some(&entry)
                    }
                };
                dirty.neighbours |= known == gone && self.is_tunnel(index);
            }
            // Only the fast path goes past it.
            Event::TrafficControl => dirty.pods |= self.settings.fast_path,
            Event::Ipsec => dirty.ipsec |= self.settings.fast_path,
            Event::Pod(namespace) => {
                self.pods.forget_namespace(namespace);
                dirty.pods = true;
            }
            Event::Lost => {
                self.pods.forget();
                *dirty = Dirty::all();
            }
        }
    }

    /// Takes note of what the subnet manager says.
    pub fn lease_event(&mut self, event: lease::Event, dirty: &mut Dirty) {
        match &event {
            lease::Event::Own(own) => {
                if own.subnets != self.own.subnets {
                    tracing::error!(
                        old = self.own.subnets.join(),
                        new = own.subnets.join(),
                        "this node's subnet has changed: pods with addresses of the old one must be made anew"
                    );
                    self.pods.forget();
                    *dirty = Dirty::all();
                }
                self.own = own.clone();
                return;
            }
            lease::Event::Snapshot(_) => {
                self.listed = true;
                dirty.leases = true;
            }
            lease::Event::Put(key, _) | lease::Event::Removed(key) => {
                dirty.changes = true;
                let before = self.peer(key).cloned();
                self.changed.entry(key.clone()).or_insert(before);
            }
        }
        self.leases.apply(event);
    }
}

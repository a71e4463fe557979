//! Follows the interface between nodes: it may be gone, made anew, or have another address.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Dirty, Reconciler};
use crate::{
    family::{Family, PerFamily, is_link_local},
    iface::Candidates,
};

impl Reconciler {
    /// Follows the uplink by name. Whether it is there with an address of each family.
    pub(super) fn find_uplink(&mut self, dirty: &mut Dirty) -> bool {
        let Some(link) = self.observed.link(&self.uplink.name) else {
            let name = &self.uplink.name;
            self.board.problem(
                "uplink",
                Some(format!("interface {name} is gone: waiting for it")),
            );
            return false;
        };
        let (index, mtu) = (link.index, link.mtu);
        if index != self.uplink.index {
            tracing::warn!(name = self.uplink.name, "the interface was made anew");
            self.uplink.index = index;
            *dirty = Dirty::all();
        }
        self.uplink.mtu = mtu;
        let lost: Vec<Family> = self
            .uplink
            .addresses
            .iter()
            .filter(|(family, address)| {
                !self.has(index, **address) || self.is_makeshift(index, *family, **address)
            })
            .map(|(family, _)| family)
            .collect();
        if !lost.is_empty() {
            self.change_address(&lost, dirty);
        }
        let missing = lost
            .into_iter()
            .filter_map(|family| self.uplink.addresses.get(family))
            .find(|address| !self.has(index, **address));
        let problem = missing.map(|address| {
            format!(
                "{} has lost its address {address}: waiting for it, or for another",
                self.uplink.name
            )
        });
        self.board.problem("uplink", problem);
        true
    }

    fn has(&self, index: u32, address: IpAddr) -> bool {
        let addresses = self.observed.addresses.get(&index);
        addresses.is_some_and(|list| list.iter().any(|net| net.addr() == address))
    }

    /// Whether an address is link-local while the interface has one that other nodes can reach: chosen when the interface
    /// was not configured yet.
    fn is_makeshift(&self, index: u32, family: Family, address: IpAddr) -> bool {
        let addresses = self.observed.addresses.get(&index);
        let mut of_family = addresses.into_iter().flatten().map(IpNet::addr);
        is_link_local(address)
            && of_family.any(|other| Family::of(other) == family && !is_link_local(other))
    }

    /// Chooses again among the addresses of the interface, by the same options, and publishes the choice. Without one
    /// all stays as it is: a link-local address, which a link that comes back has before any other, replaces none that
    /// nodes beyond the link can reach.
    fn change_address(&mut self, lost: &[Family], dirty: &mut Dirty) {
        let candidates = Candidates {
            links: self
                .observed
                .link(&self.uplink.name)
                .map(|link| (link.index, link.clone()))
                .into_iter()
                .collect(),
            addresses: self.observed.addresses.clone(),
            default_route: PerFamily {
                v4: Some(self.uplink.index),
                v6: Some(self.uplink.index),
            },
            reach: None,
        };
        let mut options = self.settings.iface.clone();
        if options.can_reach.take().is_some() && options.iface.is_empty() {
            options.iface.push(self.uplink.name.clone());
        }
        // Each family by itself: one that is gone must not keep the other's new address from being told.
        let mut chosen = self.uplink.clone();
        for family in lost {
            options.families = PerFamily::default();
            *options.families.get_mut(*family) = Some(());
            let Ok(choice) = candidates.choose(&options) else {
                continue;
            };
            let Some(address) = choice.addresses.get(*family) else {
                continue;
            };
            let old = self.uplink.addresses.get(*family);
            if is_link_local(*address) && old.is_some_and(|old| !is_link_local(*old)) {
                continue;
            }
            *chosen.addresses.get_mut(*family) = Some(*address);
            *chosen.public.get_mut(*family) = choice.public.get(*family).copied();
        }
        if chosen != self.uplink {
            tracing::warn!(
                name = chosen.name,
                old = self.uplink.addresses.join(),
                new = chosen.addresses.join(),
                "the interface between nodes has another address; publishing it"
            );
            self.uplink = chosen;
            let public = self.uplink.public.join();
            self.board.update(|status| status.public_ip = Some(public));
            self.publish_attributes();
            *dirty = Dirty::all();
        }
    }
}

//! What the reconciler knows, for the fast path (a [`Topology`]) and for the rules that it needs.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Reconciler, repair::Concerned};
use crate::{
    backend::{Facts, plan},
    family::{Family, overlap},
    fastpath::{Device, PeerRoute, Topology, Vtep},
    kernel::{
        objects::{Link, LinkKind},
        rules::{Guard, Strict, Tunnel},
    },
    lease::Lease,
};

impl Reconciler {
    /// Tells the fast path what has changed; with `again` even if nothing has.
    pub(super) fn sync_fast_path(&mut self, again: bool) {
        let Some(topology) = self.make_topology() else {
            return;
        };
        if !again && self.topology.as_ref() == Some(&topology) {
            return;
        }
        self.fast_path.sync(&topology);
        self.topology = Some(topology);
        self.report_fast_path();
    }

    /// Tells the fast path of leases that have changed, all else being as it was.
    pub(super) fn change_fast_path_peers(&mut self, concerned: &Concerned) {
        let Some(mut topology) = self.topology.take() else {
            return self.sync_fast_path(true);
        };
        let facts = self.facts();
        for subnet in &concerned.subnets {
            topology.peers.remove(subnet);
        }
        for key in &concerned.keys {
            if let Some(lease) = self.peer(key) {
                for route in self.peer_routes(&facts, key, lease) {
                    topology.peers.insert(route);
                }
            }
        }
        self.fast_path.change_peers(&topology, &concerned.subnets);
        self.topology = Some(topology);
        self.report_fast_path();
    }

    fn report_fast_path(&self) {
        let problem = self
            .fast_path
            .problem()
            .filter(|_| self.settings.fast_path)
            .map(|problem| {
                format!("the fast path is not active, the kernel carries all packets: {problem}")
            });
        self.board.problem("fast path", problem);
    }

    fn make_topology(&self) -> Option<Topology> {
        let uplink = self.observed.links.get(&self.uplink.index)?;
        let facts = self.facts();
        Some(Topology {
            uplink: device(uplink)?,
            node_ip: self.uplink.addresses,
            subnet: self.own.subnets,
            vtep: self.tunnel_links().filter_map(|_, link| vtep(link)),
            bridge: self.bridge().and_then(device),
            peers: self
                .peers()
                .flat_map(|(key, lease)| self.peer_routes(&facts, key, lease))
                .collect(),
            pods: self.scan.pods.clone(),
            mark: self.marked,
            traffic_control: self.observed.traffic_control.clone(),
        })
    }

    /// The subnets of a lease that the fast path may serve.
    fn peer_routes(
        &self,
        facts: &Facts<'_>,
        key: &str,
        lease: &Lease,
    ) -> impl Iterator<Item = PeerRoute> {
        Family::ALL
            .into_iter()
            .filter(|family| self.plan.problem(key, *family).is_none())
            .filter_map(|family| self.peer_route(facts, lease, family))
    }

    fn peer_route(&self, facts: &Facts<'_>, lease: &Lease, family: Family) -> Option<PeerRoute> {
        // Next hops are only good for an Ethernet uplink.
        let uplink = self.observed.links.get(&self.uplink.index)?;
        let subnet = lease.subnets.get(family)?;
        let route = self.plan.desired.routes.get(subnet)?;
        // The fast path goes no way that the kernel does not go.
        if !uplink.ethernet || !self.in_place(subnet) {
            return None;
        }
        let peer = plan::peer_route(facts, lease, family, route)?;
        (!self.is_encrypted(peer.node_ip, subnet)).then_some(peer)
    }

    /// Whether the kernel has the route to a peer's subnet.
    pub(super) fn in_place(&self, subnet: &IpNet) -> bool {
        let desired = self.plan.desired.routes.get(subnet);
        desired.is_some() && self.observed.routes.get(subnet) == desired
    }

    /// Whether IPsec has a say in what goes to a peer or comes from there.
    pub(super) fn is_encrypted(&self, node: IpAddr, subnet: &IpNet) -> bool {
        let concerns = |remote: &IpNet| remote.contains(&node) || overlap(remote, subnet);
        self.observed.ipsec.iter().any(concerns)
    }

    /// The rules that the fast path needs beside upstream's.
    pub fn guard(&mut self) -> Guard {
        Guard {
            mark: self.fast_path.mark(),
            strict: self.settings.strict.then(|| self.strict()),
        }
    }

    /// What strict source checks compare with.
    fn strict(&self) -> Strict {
        let tunnels = self.tunnel_links().filter_map(|family, link| {
            let vtep = vtep(link)?;
            Some(Tunnel {
                device: vtep.device.name,
                uplink: self.uplink.name.clone(),
                port: vtep.port,
                vni: vtep.vni,
                nodes: self
                    .peers()
                    .filter_map(|(_, lease)| lease.attributes.addresses.get(family).copied())
                    .collect(),
            })
        });
        Strict {
            networks: self.settings.config.networks(),
            subnets: self.own.subnets,
            bridge: self.bridge().map(|link| link.name.clone()),
            tunnels,
        }
    }
}

fn device(link: &Link) -> Option<Device> {
    Some(Device {
        index: link.index,
        name: link.name.clone(),
        mac: link.mac?,
        mtu: link.mtu,
    })
}

fn vtep(link: &Link) -> Option<Vtep> {
    let LinkKind::Vxlan(vxlan) = &link.kind else {
        return None;
    };
    Some(Vtep {
        device: device(link)?,
        vni: vxlan.vni,
        port: vxlan.port,
    })
}

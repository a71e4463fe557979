//! What the reconciler knows, for the fast path (a [`Topology`]) and for the status.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{Reconciler, rules};
use crate::{
    backend::{self, Peer},
    fastpath::{Device, Topology, Vtep},
    kernel::{
        diff, ipsec,
        objects::{Entry, Link, LinkKind, Observed},
        rules::{Guard, Strict, Tunnel},
    },
    status::{self, Object, OwnLease},
    subnet_file,
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
        let state = self.fast_path.status();
        let problem = state
            .reason
            .filter(|_| self.settings.fast_path && !state.active)
            .map(|reason| {
                let remedy = state
                    .remedy
                    .map(|remedy| format!("; {remedy}"))
                    .unwrap_or_default();
                format!(
                    "the fast path is not active, the kernel carries all packets: {reason}{remedy}"
                )
            });
        self.board.problem("fast path", problem);
    }

    fn make_topology(&self) -> Option<Topology> {
        let uplink = self.observed.links.get(&self.uplink.index)?;
        let vtep = match self.vtep_index() {
            Some(index) => Some(vtep(self.observed.links.get(&index)?)?),
            None => None,
        };
        Some(Topology {
            uplink: device(uplink)?,
            node_ip: self.uplink.address,
            subnet: self.own.subnet,
            vtep,
            bridge: self
                .observed
                .holder(subnet_file::gateway(self.own.subnet))
                .and_then(device),
            // Next hops are only good for an Ethernet uplink.
            peers: self
                .plan
                .routes
                .iter()
                // The fast path goes no way that the kernel does not go.
                .filter(|peer| self.in_place(peer.subnet))
                .filter(|peer| !self.is_encrypted(peer.node_ip, peer.subnet))
                .filter(|_| uplink.ethernet)
                .cloned()
                .collect(),
            pods: self.scan.pods.clone(),
            mark: self.marked,
            traffic_control: self.observed.traffic_control.clone(),
        })
    }

    /// The rules that the fast path needs beside upstream's.
    pub fn guard(&mut self) -> Guard {
        let name = |link: Option<&Link>| link.map(|link| link.name.clone());
        let gateway = subnet_file::gateway(self.own.subnet);
        let device = self
            .vtep_index()
            .and_then(|index| self.observed.links.get(&index));
        let tunnel = device.and_then(vtep).map(|vtep| Tunnel {
            device: vtep.device.name,
            uplink: self.uplink.name.clone(),
            port: vtep.port,
            vni: vtep.vni,
            nodes: self.plan.peers.iter().map(|peer| peer.node).collect(),
        });
        Guard {
            mark: self.fast_path.mark(),
            strict: self.settings.strict.then(|| Strict {
                network: self.settings.config.network,
                subnet: self.own.subnet,
                bridge: name(self.observed.holder(gateway)),
                tunnel,
            }),
        }
    }

    /// Whether IPsec has a say in what goes to a peer or comes from there.
    fn is_encrypted(&self, node: Ipv4Addr, subnet: Ipv4Net) -> bool {
        let concerns = |remote: &Ipv4Net| remote.contains(&node) || ipsec::overlap(*remote, subnet);
        self.observed.ipsec.iter().any(concerns)
    }

    /// Brings the status board up to date.
    pub fn report(&self, rules: &rules::State) {
        let lease = OwnLease {
            subnet: self.own.subnet.to_string(),
            expires_in_s: self.own.expires.map(|expires| {
                expires
                    .saturating_duration_since(std::time::Instant::now())
                    .as_secs()
                    .cast_signed()
            }),
        };
        let mut objects = self.device_objects();
        objects.extend(self.peer_objects());
        objects.extend(rules.objects.iter().cloned());
        let fast_path = self.fast_path.status();
        self.board.update(|status| {
            status.lease = Some(lease);
            status.peers = self
                .plan
                .peers
                .iter()
                .map(|peer| self.peer_status(peer))
                .collect();
            status.skipped_leases = self
                .leases
                .skipped()
                .map(|(key, why)| (key.to_owned(), why.to_owned()))
                .collect();
            status.objects = objects;
            status.fast_path = fast_path;
        });
    }

    /// Whether the kernel has the route to a peer's subnet.
    fn in_place(&self, subnet: Ipv4Net) -> bool {
        let desired = self.plan.desired.routes.get(&subnet);
        desired.is_some() && self.observed.routes.get(&subnet) == desired
    }

    fn peer_status(&self, peer: &Peer) -> status::Peer {
        let mut shown = peer.status();
        if shown.problem.is_none() && !self.in_place(peer.subnet) {
            shown.via = "none".into();
            shown.problem = Some("its route is not in place: see the objects".into());
        }
        if self.settings.fast_path && self.is_encrypted(peer.node, peer.subnet) {
            shown.kernel_path = Some("IPsec policies".into());
        }
        shown
    }

    fn device_objects(&self) -> Vec<Object> {
        let config = &self.settings.config;
        let Some(desired) = backend::device(config, &self.uplink, Some(self.own.subnet), self.mac)
        else {
            return Vec::new();
        };
        let link = self.observed.link(&desired.name);
        let ops = diff::link(&desired, config.network, &self.observed);
        let address = |op: &diff::LinkOp| {
            matches!(
                op,
                diff::LinkOp::AddAddress(..) | diff::LinkOp::RemoveAddress(..)
            )
        };
        let of_link = |(state, detail)| Object {
            kind: "link".into(),
            name: desired.name.clone(),
            state,
            detail,
        };
        let of_address = |state: &str| Object {
            kind: "address".into(),
            name: format!("{}/32 dev {}", self.own.subnet.network(), desired.name),
            state: state.into(),
            detail: None,
        };
        vec![
            of_link(match link {
                None => ("missing".into(), None),
                Some(_) => match ops.iter().find(|op| !address(op)) {
                    None => ("ok".into(), None),
                    Some(op) => ("differs".into(), Some(format!("{op:?}"))),
                },
            }),
            of_address(match (link, ops.iter().any(address)) {
                (None, _) => "missing",
                (Some(_), true) => "differs",
                (Some(_), false) => "ok",
            }),
        ]
    }

    fn peer_objects(&self) -> Vec<Object> {
        let desired = &self.plan.desired;
        let Observed {
            neighbours,
            fdb,
            routes,
            links,
            ..
        } = &self.observed;
        let vtep = self
            .vtep_index()
            .and_then(|index| links.get(&index))
            .map_or("", |link| &link.name);
        let mut objects = Vec::new();
        for (address, mac) in &desired.neighbours {
            let state = compare(
                neighbours.get(address),
                &Entry {
                    value: *mac,
                    permanent: true,
                },
            );
            let name = format!("{address} lladdr {mac} dev {vtep}");
            objects.push(self.object(
                "neighbour",
                name,
                state,
                &format!("set neighbour {address} lladdr {mac}"),
            ));
        }
        for (mac, node) in &desired.fdb {
            let state = compare(
                fdb.get(mac),
                &Entry {
                    value: *node,
                    permanent: true,
                },
            );
            let name = format!("{mac} dst {node} dev {vtep}");
            objects.push(self.object("fdb", name, state, &format!("set fdb {mac} dst {node}")));
        }
        for (net, route) in &desired.routes {
            let state = compare(routes.get(net), route);
            let device = links.get(&route.device).map_or("", |link| &link.name);
            let gateway = route
                .gateway
                .map(|gateway| format!(" via {gateway}"))
                .unwrap_or_default();
            let onlink = if route.onlink { " onlink" } else { "" };
            let name = format!("{net}{gateway} dev {device}{onlink}");
            objects.push(self.object("route", name, state, &format!("set route {net}{gateway}")));
        }
        objects
    }

    fn object(&self, kind: &str, name: String, state: &str, operation: &str) -> Object {
        Object {
            kind: kind.into(),
            name,
            state: state.into(),
            detail: self.failures.get(operation).cloned(),
        }
    }
}

fn compare<T: PartialEq>(actual: Option<&T>, desired: &T) -> &'static str {
    match actual {
        None => "missing",
        Some(actual) if actual == desired => "ok",
        Some(_) => "differs",
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

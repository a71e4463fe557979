//! What the reconciler knows, for the status.

use super::{Reconciler, extension, repair::describe, rules};
use crate::{
    backend,
    family::{Family, host},
    kernel::{
        diff::{self, Op, permanent},
        objects::Route,
    },
    lease::Lease,
    status::{self, Object, OwnLease},
};

impl Reconciler {
    /// Brings the status board up to date.
    pub fn report(&self, rules: &rules::State) {
        let lease = OwnLease {
            subnet: self.own.subnets.join(),
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
        let udp = self.proxy.as_ref().map(crate::udp::Proxy::counters);
        let peers = self
            .peers()
            .flat_map(|(key, lease)| self.peer_status(key, lease))
            .collect();
        self.board.update(|status| {
            status.lease = Some(lease);
            status.peers = peers;
            status.skipped_leases = self
                .leases
                .skipped()
                .map(|(key, why)| (key.to_owned(), why.to_owned()))
                .collect();
            status.objects = objects;
            status.fast_path = fast_path;
            status.udp = udp;
        });
    }

    /// A peer, once for each family.
    fn peer_status(&self, key: &str, lease: &Lease) -> impl Iterator<Item = status::Peer> {
        let pools = &self.settings.config.pools;
        Family::ALL
            .into_iter()
            .filter(|family| pools.get(*family).is_some())
            .filter_map(move |family| {
                let subnet = lease.subnets.get(family)?;
                let node = lease.attributes.addresses.get(family);
                let failed = |keeper: &extension::Keeper| keeper.failure(key);
                let problem = match self.plan.problem(key, family) {
                    Some(problem) => Some(problem.reason.clone()),
                    None if let Some(failure) = self.extension.as_ref().and_then(failed) => {
                        Some(failure)
                    }
                    None if self.in_place(subnet) || !self.wants_route(subnet) => None,
                    None => Some("its route is not in place: see the objects".into()),
                };
                let encrypted = self.settings.fast_path
                    && node.is_some_and(|node| self.is_encrypted(*node, subnet));
                Some(status::Peer {
                    subnet: subnet.to_string(),
                    public_ip: node.map(ToString::to_string).unwrap_or_default(),
                    via: match (&problem, self.plan.desired.routes.get(subnet)) {
                        (Some(_), _) => "none",
                        (None, Some(route)) => self.via(route),
                        (None, None) => self.settings.config.backend.name(),
                    }
                    .into(),
                    problem,
                    kernel_path: encrypted.then(|| "IPsec policies".into()),
                })
            })
    }

    /// Whether the backend reaches a subnet by a route of its own.
    fn wants_route(&self, subnet: &ipnet::IpNet) -> bool {
        let owns = backend::owns_routes(&self.settings.config);
        self.plan.desired.routes.contains_key(subnet) || (owns && self.devices().is_empty())
    }

    fn via(&self, route: &Route) -> &'static str {
        if route.device == self.uplink.index {
            "direct"
        } else {
            self.settings.config.backend.name()
        }
    }

    fn device_objects(&self) -> Vec<Object> {
        let address = |op: &diff::LinkOp| {
            matches!(
                op,
                diff::LinkOp::AddAddress(..) | diff::LinkOp::RemoveAddress(..)
            )
        };
        let devices = self.devices();
        devices
            .values()
            .flat_map(|desired| {
                let present = self.observed.link(&desired.name).is_some();
                let ops = diff::link(desired, &self.observed);
                let (state, detail) = match ops.iter().find(|op| !address(op)) {
                    _ if !present => ("missing", None),
                    None => ("ok", None),
                    Some(op) => ("differs", Some(format!("{op:?}"))),
                };
                let link = Object {
                    kind: "link".into(),
                    name: desired.name.clone(),
                    state: state.into(),
                    detail,
                };
                let state = match ops.iter().any(address) {
                    _ if !present => "missing",
                    true => "differs",
                    false => "ok",
                };
                let address = desired.address.map(|address| Object {
                    kind: "address".into(),
                    name: format!("{} dev {}", host(address), desired.name),
                    state: state.into(),
                    detail: None,
                });
                [Some(link), address].into_iter().flatten()
            })
            .collect()
    }

    fn peer_objects(&self) -> Vec<Object> {
        let desired = &self.plan.desired;
        let observed = &self.observed;
        let device = |index: &u32| {
            observed
                .links
                .get(index)
                .map_or("", |link| link.name.as_str())
        };
        let neighbours = desired.neighbours.iter().map(|(key, mac)| {
            let state = compare(observed.neighbours.get(key), &permanent(*mac));
            let (index, address) = key;
            let name = format!("{address} lladdr {mac} dev {}", device(index));
            let op = Op::SetNeighbour(*index, *address, *mac);
            self.object("neighbour", name, state, &op)
        });
        let fdb = desired.fdb.iter().map(|(key, node)| {
            let state = compare(observed.fdb.get(key), &permanent(*node));
            let (index, mac) = key;
            let name = format!("{mac} dst {node} dev {}", device(index));
            let op = Op::SetFdb(*index, *mac, *node);
            self.object("fdb", name, state, &op)
        });
        let routes = desired.routes.iter().map(|(net, route)| {
            let state = compare(observed.routes.get(net), route);
            let gateway = route
                .gateway
                .map(|gateway| format!(" via {gateway}"))
                .unwrap_or_default();
            let onlink = if route.onlink { " onlink" } else { "" };
            let name = format!("{net}{gateway} dev {}{onlink}", device(&route.device));
            self.object("route", name, state, &Op::SetRoute(*net, *route))
        });
        neighbours.chain(fdb).chain(routes).collect()
    }

    fn object(&self, kind: &str, name: String, state: &str, op: &Op) -> Object {
        Object {
            kind: kind.into(),
            name,
            state: state.into(),
            detail: self.failures.get(&describe(op)).cloned(),
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

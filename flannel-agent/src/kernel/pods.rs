//! Finds the pods of this node: ports of the bridge that holds the gateway address, with the addresses inside their
//! namespaces.
//!
//! The source is the kernel's account of the pod's own interface, read through the namespace id of the veth's peer. A
//! pod without privileges cannot change it, unlike ARP or the bridge's FDB, which must never be used here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use flannel_common::addr::Mac;
use ipnet::IpNet;
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkMessage},
};

use super::{
    decode,
    netlink::{Error, Netlink},
    objects::{Link, LinkKind, Observed},
};
use crate::{
    family::{PerFamily, gateway},
    fastpath::Pod,
};

/// What is inside a pod's namespace, at the other end of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Inside {
    mac: Mac,
    xdp: bool,
    addresses: Vec<IpAddr>,
}

/// Identifies the far end of a veth: index of the port, namespace id and index of its peer.
type End = (u32, i32, u32);

/// The pods that were found, and what stands in the way of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Pods with an address of this node's subnet that no other claims.
    pub pods: Vec<Pod>,
    /// What is wrong, one line each.
    pub problems: Vec<String>,
    /// Whether a port has no address yet: it may get one soon.
    pub waiting: bool,
}

/// Looks for pods, remembering what it has seen, so that an unchanged port costs nothing.
#[derive(Default)]
pub struct Pods {
    known: BTreeMap<End, Inside>,
}

impl Pods {
    /// Forgets all: the next scan reads every port.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// Forgets the namespace with this id: the next scan reads its ports.
    pub fn forget_namespace(&mut self, id: i32) {
        self.known.retain(|(_, namespace, _), _| *namespace != id);
    }

    /// The pods of `bridge` in `subnets`.
    ///
    /// # Errors
    /// When the socket fails. A namespace that cannot be read is a problem in the result.
    pub fn scan(
        &mut self,
        netlink: &mut Netlink,
        observed: &Observed,
        bridge: Option<&Link>,
        subnets: &PerFamily<IpNet>,
    ) -> Result<Scan, Error> {
        let ports: Vec<(&Link, End)> =
            bridge.map_or_else(Vec::new, |bridge| ports(observed, bridge));
        let ends: BTreeSet<End> = ports.iter().map(|(_, end)| *end).collect();
        self.known.retain(|end, _| ends.contains(end));
        let mut scan = Scan::default();
        let mut found: Vec<Pod> = Vec::new();
        for (port, end) in ports {
            let inside = match self.inside(netlink, end, subnets) {
                Ok(inside) => inside,
                Err(Error::Refused { source, .. }) => {
                    scan.problems.push(format!(
                        "pod at {}: its namespace cannot be read: {source}; the fast path does not serve it",
                        port.name
                    ));
                    continue;
                }
                Err(error) => return Err(error),
            };
            scan.waiting |= inside.addresses.is_empty();
            found.extend(inside.addresses.iter().map(|ip| Pod {
                ip: *ip,
                mac: inside.mac,
                host_index: port.index,
                host_name: port.name.clone(),
                xdp: inside.xdp,
            }));
        }
        let (pods, clashes) = unique(found);
        scan.pods = pods;
        scan.problems.extend(clashes);
        Ok(scan)
    }

    fn inside(
        &mut self,
        netlink: &mut Netlink,
        end: End,
        subnets: &PerFamily<IpNet>,
    ) -> Result<Inside, Error> {
        if let Some(known) = self.known.get(&end) {
            return Ok(known.clone());
        }
        let (_, namespace, index) = end;
        let (mac, xdp) = inside_link(netlink, namespace, index)?;
        let inside = Inside {
            mac,
            xdp,
            addresses: inside_addresses(netlink, namespace, index)?
                .into_iter()
                .filter(|address| {
                    subnets
                        .values()
                        .any(|subnet| subnet.contains(address) && *address != gateway(*subnet))
                })
                .collect(),
        };
        // A port without an address is read again at the next scan. One that lacks a family for the moment is announced by
        // the event of its address.
        if !inside.addresses.is_empty() {
            self.known.insert(end, inside.clone());
        }
        Ok(inside)
    }
}

fn ports<'a>(observed: &'a Observed, bridge: &Link) -> Vec<(&'a Link, End)> {
    observed
        .links
        .values()
        .filter(|link| link.master == Some(bridge.index) && link.kind == LinkKind::Veth)
        .filter_map(|link| match link.peer {
            Some((index, Some(namespace))) => Some((link, (link.index, namespace, index))),
            _ => None,
        })
        .collect()
}

/// Splits pods into those whose addresses are theirs alone, and a line for each address that several claim. A port with a
/// contested address is served with none: a program there would take the pod's own address for a false one.
fn unique(found: Vec<Pod>) -> (Vec<Pod>, Vec<String>) {
    let mut by_address: BTreeMap<IpAddr, Vec<&Pod>> = BTreeMap::new();
    for pod in &found {
        by_address.entry(pod.ip).or_default().push(pod);
    }
    let mut contested = BTreeSet::new();
    let mut problems = Vec::new();
    for (address, claims) in by_address {
        if claims.len() > 1 {
            contested.extend(claims.iter().map(|pod| pod.host_index));
            let ports: Vec<&str> = claims.iter().map(|pod| pod.host_name.as_str()).collect();
            problems.push(format!(
                "pod address {address} is set behind several ports, {}: the fast path serves none of them",
                ports.join(" and ")
            ));
        }
    }
    let mut pods: Vec<Pod> = found
        .into_iter()
        .filter(|pod| !contested.contains(&pod.host_index))
        .collect();
    pods.sort_by_key(|pod| pod.ip);
    (pods, problems)
}

/// The address of a pod's interface, and whether an XDP program runs there.
fn inside_link(netlink: &mut Netlink, namespace: i32, index: u32) -> Result<(Mac, bool), Error> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::IfNetnsId(namespace));
    let link = match netlink.get(RouteNetlinkMessage::GetLink(message))? {
        RouteNetlinkMessage::NewLink(message) => message,
        _ => LinkMessage::default(),
    };
    let mac = decode::link(&link).mac.ok_or_else(|| {
        Error::Decode(format!(
            "link {index} of namespace {namespace} has no Ethernet address"
        ))
    })?;
    Ok((mac, decode::runs_xdp(&link)))
}

fn inside_addresses(
    netlink: &mut Netlink,
    namespace: i32,
    index: u32,
) -> Result<Vec<IpAddr>, Error> {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message
        .attributes
        .push(AddressAttribute::TargetNetNsId(namespace));
    let answers = netlink.dump(&RouteNetlinkMessage::GetAddress(message))?;
    Ok(answers
        .iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => decode::address(message),
            _ => None,
        })
        .filter(|address| address.index == index)
        .map(|address| address.net.addr())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(ip: [u8; 4], host_index: u32) -> Pod {
        Pod {
            ip: ip.into(),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            host_index,
            host_name: format!("veth{host_index}"),
            xdp: false,
        }
    }

    #[test]
    fn an_address_behind_two_ports_serves_neither() {
        let (pods, problems) = unique(vec![
            pod([10, 5, 1, 2], 7),
            pod([10, 5, 1, 3], 8),
            pod([10, 5, 1, 2], 9),
        ]);
        assert_eq!(pods, [pod([10, 5, 1, 3], 8)]);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("10.5.1.2") && problems[0].contains("veth7 and veth9"));
    }

    #[test]
    fn a_port_with_a_contested_address_is_not_served_at_all() {
        let (pods, problems) = unique(vec![
            pod([10, 5, 1, 2], 7),
            pod([10, 5, 1, 9], 7),
            pod([10, 5, 1, 2], 8),
        ]);
        assert_eq!((pods, problems.len()), (vec![], 1));
    }
}

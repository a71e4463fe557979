//! `flannel-agent cleanup`: removes all that agent or flanneld have left on this node.
//!
//! Works without etcd: devices and rules are known by their names, and the network whose routes are removed is in the
//! subnet file. What belongs to somebody else is never touched.
//!
//! With `--keep-network` only what flanneld does not know goes, and no packet of any pod is lost by it: that is the way
//! back to flanneld.

use std::{fs, io, os::unix::net::UnixStream, path::Path};

use anyhow::{Context as _, bail};
use ipnet::IpNet;

use super::{args::CleanupOptions, run::liberal_state};
use crate::{
    family::{Family, PerFamily},
    fastpath,
    kernel::{
        apply, blackhole, connections, conntrack,
        diff::{LinkOp, Op, Ownership},
        netlink::Netlink,
        objects::{Link, Observed, Route},
        observe, rules,
    },
    reconcile::device,
    subnet_file::{self, Previous},
};

/// Removes everything, or with `--dry-run` prints what it would remove.
///
/// # Errors
/// When an agent is running, or something cannot be removed.
pub fn run(options: &CleanupOptions) -> anyhow::Result<()> {
    if UnixStream::connect(&options.status_socket).is_ok() {
        bail!(
            "an agent is running with the socket {}: stop it first, or it makes everything anew",
            options.status_socket.display()
        );
    }
    let verb = if options.dry_run {
        "would remove"
    } else {
        "removed"
    };
    let mut count = 0;
    let mut say = |what: &str| {
        count += 1;
        println!("{verb} {what}");
    };
    let mut netlink = Netlink::open()?;
    // Programs first: packets go by the kernel before its objects go.
    for pin in remove_pins(options)? {
        say(&pin);
    }
    let state = liberal_state(&options.subnet_file);
    if options.keep_network {
        for what in rules::remove_guard(options.dry_run) {
            say(&what);
        }
        if let Some(what) = release_conntrack(&state, options.dry_run)? {
            say(&what);
        }
        if remove_file(&options.status_socket, options.dry_run)? {
            say(&format!("file {}", options.status_socket.display()));
        }
        if count == 0 {
            println!("nothing to remove");
        }
        return Ok(());
    }
    let previous = subnet_file::previous(&options.subnet_file);
    for what in remove_blackholes(&mut netlink, &previous, options.dry_run)? {
        say(&what);
    }
    for what in remove_routes(&mut netlink, previous, options.dry_run)? {
        say(&what);
    }
    for what in remove_devices(&mut netlink, options.dry_run)? {
        say(&what);
    }
    for what in rules::remove_iptables(options.dry_run)
        .into_iter()
        .chain(rules::remove_nftables(options.dry_run))
    {
        say(&what);
    }
    if let Some(what) = conntrack::restore(&state, options.dry_run)? {
        say(&what);
    }
    for path in [&options.subnet_file, &options.status_socket] {
        if remove_file(path, options.dry_run)? {
            say(&format!("file {}", path.display()));
        }
    }
    if count == 0 {
        println!("nothing to remove");
    }
    Ok(())
}

/// Makes conntrack as strict as it was, without harm to the connections that there are: they stay liberal. Where they
/// cannot be told, the node stays liberal.
fn release_conntrack(state: &Path, dry_run: bool) -> anyhow::Result<Option<String>> {
    if dry_run {
        return Ok(conntrack::restore(state, true)?);
    }
    if !state.exists() {
        return Ok(None);
    }
    match connections::keep_liberal() {
        Ok(kept) => Ok(conntrack::restore(state, false)?
            .map(|what| format!("{what}; {kept} TCP connections stay liberal until they end"))),
        Err(error) => {
            eprintln!(
                "net.netfilter.nf_conntrack_tcp_be_liberal stays 1: connections that the fast path has carried cannot be \
                 told apart ({error}); set it back when they have ended, or run this again"
            );
            Ok(None)
        }
    }
}

fn remove_pins(options: &CleanupOptions) -> anyhow::Result<Vec<String>> {
    let directory = &options.pin_dir;
    if options.dry_run {
        return Ok(directory
            .exists()
            .then(|| format!("BPF objects below {}", directory.display()))
            .into_iter()
            .collect());
    }
    fastpath::remove(directory).with_context(|| format!("--pin-dir = {}", directory.display()))
}

/// Routes of host-gw and `DirectRouting`; those of a tunnel device go with it.
fn remove_routes(
    netlink: &mut Netlink,
    previous: Previous,
    dry_run: bool,
) -> anyhow::Result<Vec<String>> {
    let networks = previous
        .networks
        .filter_map(|family, network| Some((*network, previous.subnets.get(family)?.prefix_len())));
    let families: Vec<Family> = networks.iter().map(|(family, _)| family).collect();
    let mut observed = Observed::default();
    observe::routes(netlink, families, &mut observed)?;
    device::read_links(netlink, &mut observed)?;
    let by_tunnel = |route: &Route| {
        observed
            .links
            .get(&route.device)
            .is_some_and(Link::is_flannels)
    };
    let ops: Vec<Op> = observed
        .routes
        .iter()
        .filter(|(destination, route)| {
            let ownership = Ownership {
                networks,
                uplink: route.device,
                ipip: Some(route.device),
                ..Ownership::default()
            };
            !by_tunnel(route) && ownership.covers(destination, route)
        })
        .map(|(destination, route)| Op::RemoveRoute(*destination, *route))
        .collect();
    let names = ops.iter().map(|op| match op {
        Op::RemoveRoute(destination, route) => {
            format!(
                "route {destination}{}",
                route
                    .gateway
                    .map(|g| format!(" via {g}"))
                    .unwrap_or_default()
            )
        }
        other => format!("{other:?}"),
    });
    let names: Vec<String> = names.collect();
    if !dry_run {
        for (result, name) in apply::peers(netlink, &ops)?.into_iter().zip(&names) {
            result.with_context(|| name.clone())?;
        }
    }
    Ok(names)
}

/// Blackhole routes of the node's subnet.
fn remove_blackholes(
    netlink: &mut Netlink,
    previous: &Previous,
    dry_run: bool,
) -> anyhow::Result<Vec<String>> {
    let own: Vec<IpNet> = previous.subnets.values().copied().collect();
    let ops = blackhole::diff(&PerFamily::default(), &own, &blackhole::read(netlink)?);
    if !dry_run {
        for (result, op) in blackhole::apply(netlink, &ops)?.into_iter().zip(&ops) {
            result.with_context(|| op.to_string())?;
        }
    }
    Ok(ops
        .iter()
        .filter_map(|op| match op {
            blackhole::Op::Remove(route) => Some(format!("blackhole route {}", route.destination)),
            blackhole::Op::Add(_) => None,
        })
        .collect())
}

fn remove_devices(netlink: &mut Netlink, dry_run: bool) -> anyhow::Result<Vec<String>> {
    let mut observed = Observed::default();
    device::read_links(netlink, &mut observed)?;
    let mut removed = Vec::new();
    for link in observed.links.values().filter(|link| link.is_flannels()) {
        if !dry_run {
            let op = LinkOp::Delete(link.index, link.name.clone(), "cleanup".into());
            apply::link(netlink, &op).with_context(|| format!("device {}", link.name))?;
        }
        removed.push(format!(
            "device {}, with its routes, neighbours and FDB entries",
            link.name
        ));
    }
    Ok(removed)
}

fn remove_file(path: &Path, dry_run: bool) -> anyhow::Result<bool> {
    if dry_run {
        return Ok(fs::symlink_metadata(path).is_ok());
    }
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

//! What changes while a proxy runs, what can be missing, and the agent that looks after it.

use std::{io::ErrorKind, net::Ipv4Addr};

use anyhow::{Context as _, ensure};
use flannel_agent::udp::{self, Error, Proxy, tun};
use ipnet::Ipv4Net;
use lab::{process, underlay};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};

use super::{
    HEADERS, PORT, inside, link, network, node, options, socket, start, subnet, wait_counters,
};
use crate::{
    pair::{self, Pair},
    support::{self, Backend, Outcome, PROMPT, Path, Setting, eventually, shell, udp_arrives},
};

pub(super) fn routes_change() -> Outcome {
    const MANY: u32 = 10_000;
    let nodes = link("change")?;
    let proxy = start(&nodes[0], 1)?;
    let wire = socket(&nodes[1], node(2), udp::DEFAULT_PORT)?;
    let sender = socket(&nodes[0], Ipv4Addr::UNSPECIFIED, PORT)?;
    let send = |number: u8| -> anyhow::Result<()> {
        sender.send_to(&[number], (inside(2), PORT))?;
        Ok(())
    };
    let arrives = |number: u8| -> Outcome {
        let mut buffer = [0; 64];
        let length = wire.recv(&mut buffer).context("a datagram")?;
        ensure!(
            buffer[..length].last() == Some(&number),
            "another than number {number}"
        );
        Ok(())
    };
    send(1)?;
    arrives(1)?;
    proxy.change(subnet(2), None);
    send(2)?;
    wait_counters(&proxy, "there is no route", |it| it.no_route == 1)?;
    // Many others, and a longer prefix that leads elsewhere but for this address.
    let others = (0..MANY).map(|index| {
        let address = Ipv4Addr::from_bits(0x0a06_0000 + (index << 8));
        (Ipv4Net::new_assert(address, 24), node(9))
    });
    let wrong = [(network(), node(9)), (subnet(2), node(2))];
    proxy.set_routes(others.chain(wrong).collect());
    send(3)?;
    arrives(3)
}

pub(super) fn deleted_device() -> Outcome {
    let nodes = link("deleted")?;
    let proxy = start(&nodes[0], 1)?;
    ensure!(
        proxy.failure().is_none(),
        "failed from the start: {:?}",
        proxy.failure()
    );
    underlay::ip_batch(&nodes[0], &format!("link delete {}", proxy.device().name))?;
    eventually("the failure", PROMPT, || {
        Ok(proxy.failure().map(drop).ok_or_else(|| "none".into()))
    })?;
    drop(proxy);
    // And the end of a proxy is the end of its device, once no child of another test holds what it was born with.
    for _ in 0..2 {
        let mut proxy = None;
        eventually("a free port", PROMPT, || {
            match start(&nodes[0], 1) {
                Ok(started) => proxy = Some(started),
                Err(error) => return Ok(Err(error.to_string())),
            }
            Ok(Ok(()))
        })?;
        drop(proxy);
        eventually("no device", PROMPT, || {
            let links = process::run(Some(&nodes[0]), "ip", &["-brief", "link", "show"])?;
            Ok((!links.contains("flannel")).then_some(()).ok_or(links))
        })?;
    }
    Ok(())
}

pub(super) fn missing() -> Outcome {
    let nodes = link("missing")?;
    tun::check()?;
    let _taken = socket(&nodes[0], node(1), udp::DEFAULT_PORT)?;
    let error = nodes[0]
        .run(|| Proxy::start(&options(1)))?
        .err()
        .context("a taken port was had")?;
    ensure!(
        matches!(&error, Error::Bind { source, .. } if source.kind() == ErrorKind::AddrInUse)
            && error.to_string().contains("192.168.100.1:8285"),
        "{error}"
    );
    // In a mount namespace without the file.
    let errors = nodes[1].run(|| -> anyhow::Result<_> {
        // SAFETY: the thread ends here; nothing in this process depends on its view of the file system.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )?;
        mount("none", "/dev/net", "tmpfs", MountFlags::empty(), None)?;
        Ok([
            tun::check().err().map(|error| error.to_string()),
            Proxy::start(&options(2))
                .err()
                .map(|error| error.to_string()),
        ])
    })??;
    for error in errors {
        let error = error.context("no error without /dev/net/tun")?;
        ensure!(
            error.contains("/dev/net/tun") && error.contains("load the kernel module tun"),
            "{error}"
        );
    }
    Ok(())
}

/// Two agents with the backend udp: pods reach pods, objects and lease are upstream's, and what is deleted comes back.
pub(super) fn agents() -> Outcome {
    const PACKETS: u64 = 200;
    let setting = Setting {
        backend: Backend::Vxlan,
        path: Path::Kernel,
        mark: false,
        broken: None,
    };
    let config = lab::ClusterConfig {
        network: r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#.into(),
        ..setting.pair()
    };
    support::with_cluster(config, |cluster| {
        let pair = Pair::of(cluster)?;
        let [from, to] = &pair.pods;
        for size in [64, 1472 - HEADERS] {
            udp_arrives(from, to, PACKETS, size)?;
            udp_arrives(to, from, PACKETS, size)?;
        }
        let node = pair.nodes[0];
        let agent = pair::agent(node)?;
        let status = agent.status()?;
        let subnet: Ipv4Net = status.lease.context("a lease")?.subnet.parse()?;
        let objects_are_upstreams = || -> Outcome {
            let addresses = shell(node, "ip -4 -oneline address show dev flannel0")?;
            let expected = format!("inet {}/32 scope global flannel0", subnet.network());
            ensure!(
                addresses.contains(&expected) && addresses.lines().count() == 1,
                "{addresses}"
            );
            let link = shell(node, "ip -details link show dev flannel0")?;
            ensure!(
                link.contains("mtu 1472") && link.contains("tun type tun pi off"),
                "{link}"
            );
            let routes = shell(node, "ip route show dev flannel0")?;
            ensure!(routes.trim() == "10.5.0.0/16", "{routes:?}");
            Ok(())
        };
        objects_are_upstreams()?;
        ensure!(
            status
                .peers
                .iter()
                .all(|peer| peer.via == "udp" && peer.problem.is_none()),
            "{:?}",
            status.peers
        );

        for harm in [
            "ip link delete flannel0",
            "ip link set flannel0 down",
            "ip route delete 10.5.0.0/16",
        ] {
            shell(node, harm)?;
            eventually(harm, PROMPT, || {
                Ok(objects_are_upstreams().map_err(|error| error.to_string()))
            })?;
            udp_arrives(from, to, PACKETS, 64)?;
        }
        Ok(())
    })
}

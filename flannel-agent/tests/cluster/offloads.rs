//! Aggregates and unfinished checksums: whatever is done by devices or left to the kernel, content is right.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::{
    Cluster, ClusterConfig, Netns, Node, Pod, Underlay,
    counters::Protocols,
    process,
    status::Counters,
    traffic::{
        Host,
        tcp::{self, TcpFlow, TcpPlan},
    },
    underlay,
};

use crate::dialog;
use crate::pair::{counters, first_pod as pod};
use crate::support::{Outcome, Path, Setting, udp_arrives, with_cluster};

/// Bytes of one stream.
const STREAM: u64 = 8_000_000;
/// The largest aggregate, in bytes: a stream has at least one packet per so many bytes.
const AGGREGATE: u64 = 64 << 10;
/// What a link does by itself, by its name in `ethtool -K`, and what veth's default is.
const FEATURES: [(&str, bool); 4] = [("tx", true), ("tso", true), ("gso", true), ("gro", false)];
/// Counters of a namespace that grow when content or checksum is wrong.
const ERRORS: [&str; 4] = [
    "Tcp.InCsumErrors",
    "Udp.InCsumErrors",
    "Tcp.InErrs",
    "Ip.InHdrErrors",
];
/// UDP aggregates: segments of so many bytes, so many of them.
const SEGMENT: usize = 1000;
const SEGMENTS: usize = 20;
/// How long datagrams may take.
const LIMIT: Duration = Duration::from_secs(5);

/// A link of a namespace.
type Link<'a> = (&'a Netns, String);

/// Each of a link's abilities turned around, on all nodes' interfaces, on the nodes' side of all veths, and in all pods.
pub(crate) fn any_combination(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let (first, second) = (pod(cluster.node(1))?, pod(cluster.node(2))?);
        let places = places(cluster, &first, &second);
        let errors = Errors::start(cluster, &[first.netns(), second.netns()])?;
        for (place, links) in &places {
            for (feature, default) in FEATURES {
                switch(links, feature, !default)?;
                streams(setting, cluster, &first, &second)
                    .with_context(|| format!("{feature} turned around: {place}"))?;
                switch(links, feature, default)?;
            }
        }
        for (_, links) in &places {
            for (feature, default) in FEATURES {
                switch(links, feature, !default)?;
            }
        }
        streams(setting, cluster, &first, &second).context("everything turned around")?;
        udp_arrives(&first, &second, 200, 1200)?;
        errors.none()
    })
}

/// Links between nodes, on nodes towards pods, in pods.
fn places<'a>(
    cluster: &'a Cluster,
    first: &'a Pod,
    second: &'a Pod,
) -> [(&'static str, Vec<Link<'a>>); 3] {
    let nodes = cluster.nodes();
    let nics = nodes.iter().flat_map(|node| {
        [
            (node.netns(), "eth0".to_owned()),
            (cluster.switch(), node.name().to_owned()),
        ]
    });
    let pods = [first, second];
    let veths = nodes.iter().zip(pods).map(|(node, pod)| {
        let device = pod.attachment().host_device.clone();
        (node.netns(), device)
    });
    let inside = pods.iter().map(|pod| (pod.netns(), "eth0".to_owned()));
    [
        ("between nodes", nics.collect()),
        ("veths of pods", veths.collect()),
        ("in pods", inside.collect()),
    ]
}

fn switch(links: &[Link<'_>], feature: &str, on: bool) -> Outcome {
    let state = if on { "on" } else { "off" };
    for (netns, link) in links {
        process::run(Some(netns), "ethtool", &["-K", link, feature, state])?;
    }
    Ok(())
}

/// A stream each way, whole, along the setting's path.
fn streams(setting: Setting, cluster: &Cluster, first: &dyn Host, second: &dyn Host) -> Outcome {
    let nodes = [cluster.node(1), cluster.node(2)];
    let before = [counters(nodes[0])?, counters(nodes[1])?];
    let plan = TcpPlan {
        bytes: STREAM,
        rate: None,
    };
    let there = TcpFlow::start(first, second, plan)?;
    let back = tcp::run(second, first, plan)?;
    for report in [there.finish(), back] {
        ensure!(
            report.is_intact() && report.received == STREAM,
            "{report:?}"
        );
    }
    for (node, before) in nodes.into_iter().zip(&before) {
        carried(setting, &counters(node)?.since(before), STREAM / AGGREGATE)
            .with_context(|| node.name().to_owned())?;
    }
    Ok(())
}

/// Asserts that `least` packets at least were fast both ways, or none.
fn carried(setting: Setting, counted: &Counters, least: u64) -> Outcome {
    let fast = counted.fast_egress.min(counted.fast_ingress);
    let none = counted.fast_egress + counted.fast_ingress == 0;
    let holds = match setting.path {
        Path::Kernel => none,
        Path::Fast | Path::Flow => fast >= least,
    };
    ensure!(holds, "not the right path: {counted:?}");
    Ok(())
}

/// What went wrong in some namespaces since the beginning.
struct Errors<'a>(Vec<(&'a Netns, Protocols)>);

impl<'a> Errors<'a> {
    fn start(cluster: &'a Cluster, others: &[&'a Netns]) -> anyhow::Result<Self> {
        let nodes = cluster.nodes().iter().map(|node| node.netns());
        let read = |netns: &'a Netns| Ok((netns, Protocols::read(netns)?));
        let all = nodes.chain(others.iter().copied()).map(read);
        Ok(Self(all.collect::<anyhow::Result<_>>()?))
    }

    fn none(&self) -> Outcome {
        for (netns, before) in &self.0 {
            let now = Protocols::read(netns)?;
            for name in ERRORS {
                let errors = now.get(name) - before.get(name);
                ensure!(errors == 0, "{}: {name} {errors}", netns.name());
            }
        }
        Ok(())
    }
}

/// A host that is reached by the address of a pod in front of it.
struct Behind {
    netns: Netns,
    address: Ipv4Addr,
}

impl Host for Behind {
    fn netns(&self) -> &Netns {
        &self.netns
    }

    fn address(&self) -> Ipv4Addr {
        self.address
    }
}

/// Address of the host behind the pod, and of the pod towards it.
const INSIDE: &str = "10.99.0.2";
const TOWARDS_INSIDE: &str = "10.99.0.1";

/// Puts a host behind a pod that translates addresses, like a machine that runs containers of its own.
fn behind_router(pod: &Pod) -> anyhow::Result<Behind> {
    let netns = Netns::create(&format!("{}-in", pod.netns().name()))?;
    underlay::ip_batch(
        pod.netns(),
        &format!(
            "link add inner type veth peer name eth0 netns {}\n\
             address add {TOWARDS_INSIDE}/24 dev inner\nlink set inner up\n",
            netns.name()
        ),
    )?;
    underlay::ip_batch(
        &netns,
        &format!(
            "link set lo up\naddress add {INSIDE}/24 dev eth0\nlink set eth0 up\n\
             route add default via {TOWARDS_INSIDE}\n"
        ),
    )?;
    pod.netns().sysctl(&[("net/ipv4/ip_forward", "1")])?;
    for rule in [
        format!("PREROUTING -i eth0 -j DNAT --to-destination {INSIDE}"),
        "POSTROUTING -o eth0 -j MASQUERADE".to_owned(),
    ] {
        let rule = format!("iptables -w -t nat -A {rule}");
        process::run(Some(pod.netns()), "sh", &["-c", &rule])?;
    }
    Ok(Behind {
        netns,
        address: pod.address(),
    })
}

/// What the link behind the pod does not do, by itself or with the ones before.
const UNABLE: [&str; 3] = ["tso", "gso", "tx"];

/// Aggregates that arrive at a pod which passes them on are cut again behind it, by whoever has to do it there.
pub(crate) fn passed_on_by_a_router(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let (client, front) = (pod(cluster.node(1))?, pod(cluster.node(2))?);
        let inside = behind_router(&front)?;
        let errors = Errors::start(cluster, &[client.netns(), front.netns(), &inside.netns])?;
        let link = [(front.netns(), "inner".to_owned())];
        streams(setting, cluster, &client, &inside).context("behind a link that does all")?;
        for unable in UNABLE {
            switch(&link, unable, false)?;
            streams(setting, cluster, &client, &inside)
                .with_context(|| format!("behind a link without {unable}"))?;
        }
        errors.none()
    })
}

/// UDP aggregates of an assured flow arrive as the datagrams that they consist of: at a pod, and behind a pod that
/// passes them on over a link that cannot cut them.
pub(crate) fn datagram_aggregates(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let (client, server) = (pod(cluster.node(1))?, pod(cluster.node(2))?);
        let errors = Errors::start(cluster, &[client.netns(), server.netns()])?;
        segments_arrive(setting, cluster.node(1), &client, &server).context("at the pod")?;
        let inside = behind_router(&server)?;
        for unable in UNABLE {
            switch(&[(server.netns(), "inner".to_owned())], unable, false)?;
        }
        segments_arrive(setting, cluster.node(1), &client, &inside).context("behind the pod")?;
        errors.none()
    })
}

fn segments_arrive(setting: Setting, node: &Node, from: &dyn Host, to: &dyn Host) -> Outcome {
    /// Aggregates to be sent.
    const COUNT: usize = 50;
    let mut dialogs = dialog::assured(from, to, 1)?;
    let dialog = dialogs.remove(0);
    let before = counters(node)?;
    dialog.segment(u16::try_from(SEGMENT)?)?;
    let mut next = 0_u64;
    let mut wrong = Vec::new();
    let mut take = |next: &mut u64| {
        dialog.arrived(|datagram| {
            if *datagram != content(*next) {
                let start = &datagram[..datagram.len().min(16)];
                wrong.push(format!("{} bytes {start:02x?}", datagram.len()));
            }
            *next += 1;
        })
    };
    for aggregate in 0..COUNT {
        let first = (aggregate * SEGMENTS) as u64;
        let numbers = first..first + SEGMENTS as u64;
        let packet: Vec<u8> = numbers.flat_map(content).collect();
        dialog.client.send(&packet)?;
        take(&mut next)?;
    }
    let start = Instant::now();
    while next < (COUNT * SEGMENTS) as u64 && start.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(5));
        take(&mut next)?;
    }
    ensure!(
        next == (COUNT * SEGMENTS) as u64 && wrong.is_empty(),
        "{next} of {} datagrams arrived, {} wrong or in disorder: {:?}",
        COUNT * SEGMENTS,
        wrong.len(),
        wrong.first()
    );
    let counted = counters(node)?.since(&before);
    let fast = counted.fast_egress >= COUNT as u64;
    ensure!(
        fast == (setting.path != Path::Kernel),
        "not the right path: {counted:?}"
    );
    Ok(())
}

/// A datagram that is like no other.
fn content(number: u64) -> Vec<u8> {
    let words = number.to_be_bytes().into_iter();
    let rest = (0..SEGMENT - 8).map(|index| (index as u64 * 7 + number) as u8);
    words.chain(rest).collect()
}

/// Nodes whose links carry frames of 9 000 bytes, with aggregates and without.
pub(crate) fn jumbo_frames(setting: Setting) -> Outcome {
    const MTU: u32 = 9000;
    for offloads in [true, false] {
        let underlay = Underlay { mtu: MTU, offloads };
        let config = ClusterConfig {
            underlay,
            ..setting.pair()
        };
        with_cluster(config, |cluster| {
            let (first, second) = (pod(cluster.node(1))?, pod(cluster.node(2))?);
            let errors = Errors::start(cluster, &[first.netns(), second.netns()])?;
            streams(setting, cluster, &first, &second)?;
            let largest = setting.pod_mtu() + MTU as usize - 1500 - 28;
            udp_arrives(&first, &second, 200, largest)?;
            errors.none()
        })
        .with_context(|| format!("offloads {offloads}"))?;
    }
    Ok(())
}

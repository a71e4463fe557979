//! The same random packets along the kernel's path and along the fast path: what arrives, at either pod and on the wire,
//! is the same to the byte.
//!
//! One cluster does both, one after the other, so that addresses are the same too. What may differ is masked, and
//! nothing else: the identification (and so the header checksum) of packets that the kernel or our programs make, which
//! are outer headers and ICMP; the outer UDP checksum, which over IPv4 may be left out (RFC 7348 section 5); and the
//! port that masquerading picks at random, with what is computed from it.
//!
//! A failure names its seed; `FLANNEL_DIFFERENTIAL_SEED` repeats it, `FLANNEL_DIFFERENTIAL_PACKETS` makes it longer.

mod mask;
mod packets;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    time::{Duration, SystemTime},
};

use anyhow::{Context, ensure};
use flannel_common::{addr::Mac, testing::frame::L4};
use lab::{
    ClusterConfig, Netns, Node, NodeConfig, Underlay,
    capture::{Capture, Direction, Frame},
    counters::Protocols,
    inject::Injector,
    underlay, wait,
};

use self::{
    mask::{INNER, compared, id, is_injected},
    packets::{At, EXCESS, End, Generator, Kinds, Shot},
};
use crate::flow::on_one_processor;
use crate::pair::{counters, first_pod as pod};
use crate::support::{
    Backend, Outcome, Path, Setting, link, shell, wait_pods_served, with_cluster,
};

/// Repeats a run.
const SEED: &str = "FLANNEL_DIFFERENTIAL_SEED";
/// How many packets, if not [`PACKETS`].
const COUNT: &str = "FLANNEL_DIFFERENTIAL_PACKETS";
const PACKETS: usize = 3000;
/// One packet in so many must have been fast at least, in and out, for the comparison to mean something.
const SHARE: u64 = 3;
/// After so long conntrack calls an answered UDP flow assured.
const UNTIL_ASSURED: Duration = Duration::from_millis(2100);
/// Packets are sent in bursts of so many, one after the other has arrived.
const BURST: usize = 25;
/// Pause behind each: the packets take longer than revalidation does.
const PAUSE: Duration = Duration::from_millis(10);
/// Nothing more comes after so long without a packet.
const QUIET: Duration = Duration::from_millis(300);
/// How long packets may take to get there.
const LIMIT: Duration = Duration::from_secs(10);
/// What the pods' protocols must have counted alike.
const COUNTERS: [&str; 6] = [
    "Udp.NoPorts",
    "Udp.InCsumErrors",
    "Tcp.InCsumErrors",
    "Icmp.InMsgs",
    "Ip.ReasmOKs",
    "Ip.InHdrErrors",
];

/// Where frames are looked at.
const PLACES: [&str; 4] = ["pod 1", "pod 2", "wire of node 1", "wire of node 2"];

/// How often each frame passed each place.
type Seen = BTreeMap<(usize, Vec<u8>), usize>;

/// What a run has brought about.
struct Run {
    /// What was sent, by identification.
    kinds: Kinds,
    seen: Seen,
    counted: Vec<BTreeMap<&'static str, i64>>,
}

pub(crate) fn random_packets_fare_alike(setting: Setting) -> Outcome {
    let number = |name: &str| {
        env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seed = number(SEED).unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(0, |now| now.as_nanos() as u64)
    });
    let count = number(COUNT).map_or(PACKETS, |count| count as usize);
    compare(setting, seed, count).with_context(|| format!("{SEED}={seed} {COUNT}={count}"))
}

fn compare(setting: Setting, seed: u64, count: usize) -> Outcome {
    let mut agent = setting.agent();
    agent.arguments.push("--fast-path-revalidate=50ms".into());
    let config = ClusterConfig {
        underlay: Underlay {
            offloads: false,
            ..Underlay::default()
        },
        ..setting.cluster(vec![NodeConfig::agent(&agent), NodeConfig::agent(&agent)])
    };
    with_cluster(config, |cluster| {
        let nodes: [&Node; 2] = [cluster.node(1), cluster.node(2)];
        let ends = [prepare(setting, nodes[0])?, prepare(setting, nodes[1])?];
        for node in nodes {
            wait_pods_served(node)?;
        }
        let generator = || Generator::new(seed, ends, setting.pod_mtu());
        switch(nodes, Path::Kernel)?;
        let kernel = on_one_processor(|| run(nodes, generator(), count))??;
        switch(nodes, Path::Flow)?;
        let before = [counters(nodes[0])?, counters(nodes[1])?];
        let fast = on_one_processor(|| run(nodes, generator(), count))??;
        let counted = [
            counters(nodes[0])?.since(&before[0]),
            counters(nodes[1])?.since(&before[1]),
        ];
        let enough = count as u64 / SHARE;
        let sum = |which: fn(&lab::status::Counters) -> u64| counted.iter().map(which).sum::<u64>();
        let (out, into) = (sum(|c| c.fast_egress), sum(|c| c.fast_ingress));
        ensure!(
            out >= enough && into >= enough,
            "of {count} packets only {out} were fast out, {into} in: {counted:?}"
        );
        alike(&kernel, &fast)
    })
}

/// Lets a pod send more than its path takes, and makes it and its node silent but for what is compared.
fn prepare(setting: Setting, node: &Node) -> anyhow::Result<End> {
    let pod = pod(node)?;
    let mtu = setting.pod_mtu() + EXCESS;
    let device = &pod.attachment().host_device;
    underlay::ip_batch(pod.netns(), &format!("link set eth0 mtu {mtu}\n"))?;
    underlay::ip_batch(node.netns(), &format!("link set {device} mtu {mtu}\n"))?;
    // No answer to packets without a socket, and no limit to the number of other answers.
    for command in [
        "iptables -w -A OUTPUT -p tcp -j DROP",
        "iptables -w -A OUTPUT -p icmp --icmp-type port-unreachable -j DROP",
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        lab::process::run(Some(pod.netns()), words[0], &words[1..])?;
    }
    for netns in [pod.netns(), node.netns()] {
        netns.sysctl(&[("net/ipv4/icmp_ratemask", "0")])?;
    }
    let mac = |netns: &Netns, name: &str| -> anyhow::Result<Mac> {
        let path = format!("/sys/class/net/{name}/address");
        // The files show the namespace that they were mounted in; `ip` asks.
        let text = lab::process::run(Some(netns), "ip", &["-brief", "link", "show", name])
            .with_context(|| path)?;
        parse_mac(text.split_whitespace().nth(2).unwrap_or_default())
    };
    Ok(End {
        address: pod.address(),
        mac: parse_mac(&pod.attachment().mac)?,
        gateway: mac(node.netns(), "cni0")?,
        node: node.address(),
        node_mac: mac(node.netns(), "eth0")?,
        vtep: match setting.backend {
            Backend::Vxlan => {
                let (_, mac) = link(node, "flannel.1")?.context("no flannel.1")?;
                Some(parse_mac(&mac)?)
            }
            Backend::HostGw => None,
        },
    })
}

fn parse_mac(text: &str) -> anyhow::Result<Mac> {
    let mut mac = Mac::default();
    let mut bytes = text.split(':');
    for byte in &mut mac.0 {
        let digits = bytes
            .next()
            .with_context(|| format!("MAC address {text:?}"))?;
        *byte = u8::from_str_radix(digits, 16)?;
    }
    Ok(mac)
}

/// Sends all packets along another path, from a beginning without memory of flows.
fn switch(nodes: [&Node; 2], path: Path) -> Outcome {
    for node in nodes {
        let agent = node.agent();
        let socket = format!("--status-socket={}", agent.socket().display());
        agent.command_output(&["fast-path", path.mode(), &socket])?;
        wait_pods_served(node)?;
        shell(node, "conntrack -F 2>/dev/null")?;
    }
    Ok(())
}

/// Sends `count` random packets and tells what came of them.
fn run(nodes: [&Node; 2], mut generator: Generator, count: usize) -> anyhow::Result<Run> {
    let pods = [pod(nodes[0])?, pod(nodes[1])?];
    let senders = [
        Injector::open(pods[0].netns(), "eth0")?,
        Injector::open(pods[1].netns(), "eth0")?,
    ];
    let wires = [
        Injector::open(nodes[0].netns(), "eth0")?,
        Injector::open(nodes[1].netns(), "eth0")?,
    ];
    let send = |shots: &[Shot]| -> Outcome {
        for shot in shots {
            match shot.at {
                At::Pod(end) => senders[end].send(&shot.bytes),
                At::Wire(end) => wires[end].send(&shot.bytes),
            }
            .with_context(|| format!("{shot:?}"))?;
        }
        Ok(())
    };
    // Neighbours are known, flows are permitted.
    let arrivals = [
        Capture::start(pods[0].netns(), "eth0")?,
        Capture::start(pods[1].netns(), "eth0")?,
    ];
    for round in 0..2 {
        for (step, shots) in generator.handshakes().iter().enumerate() {
            for shot in shots {
                send(std::slice::from_ref(shot))?;
                let sent = &shot.bytes[L4..];
                let arrived = |frame: &Frame| {
                    frame.direction == Direction::In && frame.bytes.get(L4..) == Some(sent)
                };
                arrivals[1 - step % 2].wait_for("a handshake's packet", LIMIT, arrived)?;
            }
        }
        if round == 0 {
            std::thread::sleep(UNTIL_ASSURED);
        }
    }
    drop(arrivals);

    let before = [
        Protocols::read(pods[0].netns())?,
        Protocols::read(pods[1].netns())?,
    ];
    let captures = [
        Capture::start(pods[0].netns(), "eth0")?,
        Capture::start(pods[1].netns(), "eth0")?,
        Capture::start(nodes[0].netns(), "eth0")?,
        Capture::start(nodes[1].netns(), "eth0")?,
    ];
    let mut sent = 0;
    let mut kinds = Kinds::new();
    while sent < count {
        for _ in 0..BURST {
            let shots = generator.next();
            sent += shots.len();
            send(&shots)?;
            kinds.extend(shots.iter().map(|shot| (id(&shot.bytes), shot.kind)));
        }
        std::thread::sleep(PAUSE);
    }
    wait_quiet(&captures)?;
    let counted = before.iter().zip(&pods).map(|(before, pod)| {
        let now = Protocols::read(pod.netns())?;
        let change = |name| (name, now.get(name) - before.get(name));
        Ok(COUNTERS.into_iter().map(change).collect())
    });
    let counted = counted.collect::<anyhow::Result<_>>()?;
    let mut seen = Seen::new();
    for (place, capture) in captures.into_iter().enumerate() {
        let wanted = if place < 2 {
            Direction::In
        } else {
            Direction::Out
        };
        let frames = capture.stop().into_iter();
        for frame in frames.filter(|frame| frame.direction == wanted) {
            if place >= 2 && is_injected(&kinds, &frame.bytes) {
                continue;
            }
            if let Some(bytes) = compared(frame.bytes, place >= 2) {
                *seen.entry((place, bytes)).or_default() += 1;
            }
        }
    }
    Ok(Run {
        kinds,
        seen,
        counted,
    })
}

/// Waits until no frame has come for a while.
fn wait_quiet(captures: &[Capture]) -> Outcome {
    let mut last = (usize::MAX, std::time::Instant::now());
    wait::until("quiet", LIMIT, || {
        let frames = captures.iter().map(Capture::len).sum();
        if frames != last.0 {
            last = (frames, std::time::Instant::now());
        }
        Ok((last.1.elapsed() > QUIET)
            .then_some(())
            .ok_or_else(|| format!("{frames} frames")))
    })?;
    Ok(())
}

/// Asserts that both runs brought about the same.
fn alike(kernel: &Run, fast: &Run) -> Outcome {
    const SHOWN: usize = 12;
    let times = |run: &Run, key: &(usize, Vec<u8>)| run.seen.get(key).copied().unwrap_or(0);
    let keys: BTreeSet<_> = kernel.seen.keys().chain(fast.seen.keys()).collect();
    let different = keys.into_iter().filter_map(|key| {
        let (by_kernel, by_fast) = (times(kernel, key), times(fast, key));
        (by_kernel != by_fast).then(|| describe(kernel, key, by_kernel, by_fast))
    });
    let different: Vec<_> = different.collect();
    ensure!(
        different.is_empty(),
        "{} frames fare differently:\n{}",
        different.len(),
        different[..different.len().min(SHOWN)].join("\n")
    );
    ensure!(!kernel.seen.is_empty(), "nothing was seen");
    ensure!(
        kernel.counted == fast.counted,
        "counted on the kernel's path {:?}, on the fast path {:?}",
        kernel.counted,
        fast.counted
    );
    Ok(())
}

/// A frame, and how often it passed on the kernel's path and on the fast path.
fn describe(run: &Run, (place, bytes): &(usize, Vec<u8>), kernel: usize, fast: usize) -> String {
    const SHOWN: usize = 128;
    let kind = |frame: &[u8]| run.kinds.get(&id(frame)).copied();
    let inner = bytes.get(INNER..).filter(|inner| inner.len() >= L4);
    let kind = kind(bytes).or_else(|| inner.and_then(kind));
    format!(
        "{}: kernel {kernel}, fast {fast}: {}, {} bytes {:02x?}",
        PLACES[*place],
        kind.unwrap_or("made by a kernel"),
        bytes.len(),
        &bytes[..bytes.len().min(SHOWN)]
    )
}

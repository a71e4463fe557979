//! The wire matrix: what a node accepts and drops of VXLAN, and what it sends, beside what the kernel's own device does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lab::{
    Node, NodeConfig, Pod,
    capture::{Capture, Direction},
    inject::Injector,
};

use crate::frames::{Checksum, Frame, Mac, mac, udp_checksum_is_right};
use crate::setting;
use crate::support::{Outcome, Path, link, missing, shell, wait_pods_served, with_cluster};

/// Where the pod listens.
const PORT: u16 = 9999;
/// flannel's VXLAN port.
const VXLAN: u16 = 8472;
/// How long an accepted packet may take, and how long a dropped one is waited for.
const ARRIVES: Duration = Duration::from_secs(3);
const SILENCE: Duration = Duration::from_millis(200);

/// Whether a packet still arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Accepted,
    Dropped,
    /// By the kernel, which sums up the whole packet. The fast path need not: the inner checksum guards the content.
    DroppedByKernel,
}
use Fate::{Accepted, Dropped, DroppedByKernel};

/// What is changed, and what becomes of the packet.
type Case = (&'static str, fn(&mut Frame), Fate);

/// As measured with the kernel's device and no BPF.
const CASES: [Case; 19] = [
    ("outer checksum right", |_| (), Accepted),
    (
        "outer checksum zero",
        |it| it.checksum = Checksum::Zero,
        Accepted,
    ),
    (
        "outer checksum wrong",
        |it| it.checksum = Checksum::Wrong,
        DroppedByKernel,
    ),
    (
        "source MAC of nobody",
        |it| it.inner_macs[1] = [0x0e, 1, 2, 3, 4, 5],
        Accepted,
    ),
    (
        "source MAC of the receiver",
        |it| it.inner_macs[1] = it.inner_macs[0],
        Dropped,
    ),
    (
        "destination MAC of another",
        |it| it.inner_macs[0] = [0x0e, 1, 2, 3, 4, 5],
        Dropped,
    ),
    (
        "destination MAC zero",
        |it| it.inner_macs[0] = [0; 6],
        Dropped,
    ),
    (
        "destination MAC broadcast",
        |it| it.inner_macs[0] = [0xff; 6],
        Dropped,
    ),
    ("flag I clear", |it| it.vxlan[0] = 0, Dropped),
    ("flag G set", |it| it.vxlan[0] = 0x88, Dropped),
    (
        "reserved bit in the flags' word",
        |it| it.vxlan[2] = 1,
        Dropped,
    ),
    (
        "reserved byte behind the VNI",
        |it| it.vxlan[7] = 1,
        Dropped,
    ),
    ("another VNI", |it| it.vxlan[6] = 2, Dropped),
    ("port 4789", |it| it.outer_ports[1] = 4789, Dropped),
    ("source port 1024", |it| it.outer_ports[0] = 1024, Accepted),
    ("outer DF", |it| it.dont_fragment = true, Accepted),
    ("outer TOS", |it| it.tos = 0xb8, Accepted),
    (
        "outer source of no node",
        |it| it.outer_addresses[0] = Ipv4Addr::new(192, 168, 100, 77).into(),
        Accepted,
    ),
    (
        "inner source of no lease",
        |it| it.inner_addresses[0] = Ipv4Addr::new(10, 5, 0, 77).into(),
        Accepted,
    ),
];

/// What is other with IPv6 outside and inside.
const CASES_IPV6: [Case; 4] = [
    ("outer checksum right", |_| (), Accepted),
    (
        "outer checksum zero",
        |it| it.checksum = Checksum::Zero,
        Dropped,
    ),
    (
        "outer checksum wrong",
        |it| it.checksum = Checksum::Wrong,
        DroppedByKernel,
    ),
    ("another VNI", |it| it.vxlan[6] = 2, Dropped),
];

/// A dual-stack network.
const DUAL: &str = r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;

/// The agent's modes that the build has.
fn modes() -> impl Iterator<Item = Path> {
    let modes = [Path::Kernel, Path::Fast, Path::Flow];
    modes.into_iter().filter(|path| missing(*path).is_none())
}

/// A node takes just what the kernel's device takes, in every mode.
pub(crate) fn receiver() -> Outcome {
    let setting = setting::vxlan();
    let nodes = vec![setting.node(), NodeConfig::stock()];
    with_cluster(setting.cluster(nodes), |cluster| {
        let [node, sender] = [1, 2].map(|number| &**cluster.node(number));
        let good = good_frame(node, sender)?;
        takes_what_the_kernel_takes(node, sender, &good, &CASES)
    })
}

/// The same over IPv6, where a checksum of zero is none.
pub(crate) fn receiver_ipv6() -> Outcome {
    with_cluster(setting::mixed(DUAL), |cluster| {
        let [node, sender] = [1, 2].map(|number| &**cluster.node(number));
        let address = |node: &Node| node.address6().map(IpAddr::from).context("IPv6");
        let pod = |node: &Node| {
            let address = node.pods()[0].address6().map(IpAddr::from);
            address.context("a pod without IPv6")
        };
        let good = Frame {
            outer_addresses: [address(sender)?, address(node)?],
            inner_macs: [
                mac_of(node, "flannel-v6.1")?,
                mac_of(sender, "flannel-v6.1")?,
            ],
            inner_addresses: [pod(sender)?, pod(node)?],
            ..good_frame(node, sender)?
        };
        takes_what_the_kernel_takes(node, sender, &good, &CASES_IPV6)
    })
}

fn takes_what_the_kernel_takes(
    node: &Node,
    sender: &Node,
    good: &Frame,
    cases: &[Case],
) -> Outcome {
    let pod = node.pods()[0].clone();
    let any = match good.inner_addresses[1] {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let injector = Injector::open(sender.netns(), "eth0")?;
    let socket = pod.netns().run(|| UdpSocket::bind((any, PORT)))??;
    let mut number = 0_u64;
    for mode in modes() {
        switch(node, mode)?;
        for (name, change, fate) in cases {
            // What is in no flow is the kernel's.
            if *fate == DroppedByKernel && mode == Path::Fast {
                continue;
            }
            let arrives = *fate == Accepted;
            let mut frame = good.clone();
            change(&mut frame);
            number += 1;
            injector.send(&frame.bytes(&number.to_be_bytes()))?;
            let limit = if arrives { ARRIVES } else { SILENCE };
            let arrived = arrived(&socket, number, limit)?;
            ensure!(
                arrived == arrives,
                "{name}, with fast path {}: {}",
                mode.mode(),
                if arrived { "accepted" } else { "dropped" }
            );
        }
    }
    Ok(())
}

fn mac_of(node: &Node, device: &str) -> anyhow::Result<Mac> {
    let (_, text) = link(node, device)?.with_context(|| device.to_owned())?;
    mac(&text)
}

/// A packet of the sender's pod to the node's.
fn good_frame(node: &Node, sender: &Node) -> anyhow::Result<Frame> {
    Ok(Frame {
        outer_macs: [mac_of(node, "eth0")?, mac_of(sender, "eth0")?],
        outer_addresses: [sender.address().into(), node.address().into()],
        tos: 0,
        dont_fragment: false,
        outer_ports: [45_678, VXLAN],
        checksum: Checksum::Right,
        vxlan: [8, 0, 0, 0, 0, 0, 1, 0],
        inner_macs: [mac_of(node, "flannel.1")?, mac_of(sender, "flannel.1")?],
        inner_addresses: [
            sender.pods()[0].address().into(),
            node.pods()[0].address().into(),
        ],
        inner_ports: [5555, PORT],
    })
}

fn arrived(socket: &UdpSocket, number: u64, limit: Duration) -> anyhow::Result<bool> {
    let end = Instant::now() + limit;
    let mut buffer = [0; 64];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut buffer) {
            Ok(length) if buffer[..length] == number.to_be_bytes() => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("receive"),
        }
    }
}

fn switch(node: &Node, mode: Path) -> Outcome {
    let agent = node.agent();
    agent.configure(|config| config.fast_path = mode.mode().to_owned());
    agent.restart()?;
    wait_pods_served(node)
}

/// A node sends what flanneld's node sends: outer header, VXLAN header, MAC addresses, the inner packet one hop older;
/// packets of the node itself have the first address of its subnet.
pub(crate) fn sender() -> Outcome {
    let setting = setting::vxlan();
    let nodes = vec![setting.node(), NodeConfig::stock()];
    let config = lab::ClusterConfig {
        underlay: lab::Underlay {
            offloads: false,
            ..lab::Underlay::default()
        },
        ..setting.cluster(nodes)
    };
    with_cluster(config, |cluster| {
        let [node, stock] = [1, 2].map(|number| &**cluster.node(number));
        let (pod, target) = (&node.pods()[0], &stock.pods()[0]);
        let own = mac(&link(node, "flannel.1")?.context("a device")?.1)?;
        let peer = mac(&stock.stock().vtep_mac())?;
        for mode in modes() {
            switch(node, mode)?;
            let capture = Capture::start(stock.netns(), "eth0")?;
            for packet in 0..20_u8 {
                send(pod, target, packet)?;
            }
            let from_node = node.netns().run(|| UdpSocket::bind("0.0.0.0:0"))??;
            from_node.send_to(&[99; 100], (target.address(), PORT))?;
            let is_tunnelled = |frame: &lab::capture::Frame| {
                frame.direction == Direction::In
                    && frame.bytes.len() > INNER
                    && frame.bytes[36..38] == VXLAN.to_be_bytes()
            };
            capture.wait_for("the node's own packet", ARRIVES, |frame| {
                is_tunnelled(frame) && frame.bytes.ends_with(&[99; 100])
            })?;
            let frames = capture.stop();
            let frames: Vec<_> = frames
                .iter()
                .filter(|frame| is_tunnelled(frame))
                .map(|frame| &frame.bytes)
                .filter(|bytes| bytes.ends_with(&[99; 100]) || bytes.ends_with(&[7; 90]))
                .collect();
            ensure!(frames.len() == 21, "{} frames", frames.len());
            for bytes in &frames {
                is_upstreams(bytes, own, peer)
                    .with_context(|| format!("fast path {}: {bytes:02x?}", mode.mode()))?;
            }
            let first = node.subnet_env()?.subnet.address.octets();
            let source = &frames[20][INNER + 14 + 12..][..4];
            ensure!(
                source == first,
                "the node's own packets must come from {first:?}: {source:?}"
            );
            // A pod's packet has been forwarded once, the node's own has not.
            ensure!(
                frames[0][INNER + 14 + 8] == 63,
                "time to live of pods' packets"
            );
            ensure!(
                frames[20][INNER + 14 + 8] == 64,
                "time to live of the node's"
            );
        }
        Ok(())
    })
}

/// The inner frame begins here: behind Ethernet, IPv4, UDP and VXLAN headers.
const INNER: usize = 14 + 20 + 8 + 8;

fn send(pod: &Pod, target: &Pod, packet: u8) -> Outcome {
    let socket = pod.netns().run(|| UdpSocket::bind("0.0.0.0:0"))??;
    let mut payload = vec![7; 100];
    payload[0] = packet;
    socket.send_to(&payload, (target.address(), PORT))?;
    Ok(())
}

fn is_upstreams(bytes: &[u8], own: [u8; 6], peer: [u8; 6]) -> Outcome {
    let outer = &bytes[14..34];
    ensure!(outer[0] == 0x45 && outer[1] == 0, "version, length, TOS");
    ensure!(outer[6] == 0 && outer[7] == 0, "fragment, or DF");
    ensure!(outer[8] == 64, "outer time to live");
    let source = u16::from_be_bytes([bytes[34], bytes[35]]);
    // net.ipv4.ip_local_port_range by default.
    ensure!((32_768..=60_999).contains(&source), "source port {source}");
    ensure!(
        bytes[42..50] == [8, 0, 0, 0, 0, 0, 1, 0],
        "VXLAN header {:?}",
        &bytes[42..50]
    );
    ensure!(bytes[INNER..INNER + 6] == peer, "inner destination MAC");
    ensure!(bytes[INNER + 6..INNER + 12] == own, "inner source MAC");
    ensure!(bytes[INNER + 12..INNER + 14] == [8, 0], "inner type");
    Ok(())
}

/// Another port, VNI and length of subnets, with a stock node as peer.
pub(crate) fn options() -> Outcome {
    let network = r#"{"Network":"10.5.0.0/16","SubnetLen":26,"SubnetMin":"10.5.10.0","SubnetMax":"10.5.20.192","Backend":{"Type":"vxlan","VNI":42,"Port":4789}}"#;
    with_cluster(setting::mixed(network), |cluster| {
        let [node, stock] = [1, 2].map(|number| &**cluster.node(number));
        let device = shell(node, "ip -details link show flannel.42")?;
        ensure!(
            device.contains("vxlan id 42 ") && device.contains("dstport 4789"),
            "{device}"
        );
        for (from, to) in [(node, stock), (stock, node)] {
            crate::support::udp_arrives(&from.pods()[0], &to.pods()[0], 200, 64)?;
        }
        Ok(())
    })
}

/// Over IPv6 a node sends what flanneld's node sends; there the outer checksum must be right.
pub(crate) fn sender_ipv6() -> Outcome {
    const PACKETS: usize = 20;
    let config = lab::ClusterConfig {
        underlay: lab::Underlay {
            offloads: false,
            ..lab::Underlay::default()
        },
        ..setting::mixed(DUAL)
    };
    with_cluster(config, |cluster| {
        let [node, stock] = [1, 2].map(|number| &**cluster.node(number));
        let address = |pod: &Pod| pod.address6().context("a pod without IPv6");
        let target = address(&stock.pods()[0])?;
        let own = mac_of(node, "flannel-v6.1")?;
        let peer = mac(&stock.stock().vtep_mac6())?;
        for mode in modes() {
            switch(node, mode)?;
            let capture = Capture::start(stock.netns(), "eth0")?;
            for packet in 0..PACKETS {
                let socket = node.pods()[0].netns().run(|| UdpSocket::bind("[::]:0"))??;
                let mut payload = [7; 100];
                payload[0] = u8::try_from(packet)?;
                socket.send_to(&payload, (target, PORT))?;
            }
            let is_tunnelled = |frame: &lab::capture::Frame| {
                let bytes = &frame.bytes;
                frame.direction == Direction::In
                    && bytes.len() > INNER6
                    && bytes[12..14] == [0x86, 0xdd]
                    && bytes[56..58] == VXLAN.to_be_bytes()
                    && bytes.ends_with(&[7; 90])
            };
            capture.wait_for("the last packet", ARRIVES, |frame| {
                is_tunnelled(frame) && frame.bytes[frame.bytes.len() - 100] == PACKETS as u8 - 1
            })?;
            let frames = capture.stop();
            let frames: Vec<_> = frames.iter().filter(|frame| is_tunnelled(frame)).collect();
            ensure!(frames.len() == PACKETS, "{} frames", frames.len());
            for frame in frames {
                is_upstreams_ipv6(&frame.bytes, own, peer)
                    .with_context(|| format!("fast path {}: {:02x?}", mode.mode(), frame.bytes))?;
            }
        }
        Ok(())
    })
}

/// Behind Ethernet, IPv6, UDP and VXLAN headers.
const INNER6: usize = 14 + 40 + 8 + 8;

fn is_upstreams_ipv6(bytes: &[u8], own: Mac, peer: Mac) -> Outcome {
    ensure!(
        bytes[14..18] == [0x60, 0, 0, 0],
        "version, class, flow label"
    );
    ensure!(bytes[21] == 64, "outer hop limit");
    let source = u16::from_be_bytes([bytes[54], bytes[55]]);
    ensure!((32_768..=60_999).contains(&source), "source port {source}");
    ensure!(bytes[60..62] != [0, 0], "no outer checksum");
    ensure!(udp_checksum_is_right(&bytes[14..]), "outer checksum");
    ensure!(bytes[62..70] == [8, 0, 0, 0, 0, 0, 1, 0], "VXLAN header");
    ensure!(bytes[INNER6..INNER6 + 6] == peer, "inner destination MAC");
    ensure!(bytes[INNER6 + 6..INNER6 + 12] == own, "inner source MAC");
    ensure!(bytes[INNER6 + 14 + 7] == 63, "hop limit of pods' packets");
    ensure!(
        udp_checksum_is_right(&bytes[INNER6 + 14..]),
        "inner checksum"
    );
    Ok(())
}

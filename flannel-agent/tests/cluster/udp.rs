//! The udp backend's data path: real packets between the TUN devices of two nodes, and between a device and a plain socket,
//! which sees and sends what is on the wire.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use flannel_agent::udp::{self, Counters, Error, Options, Proxy, packet::Header, tun};
use ipnet::Ipv4Net;
use lab::{
    Netns,
    capture::{Capture, Direction, Frame},
    process, underlay,
};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    net::sockopt,
    thread::{UnshareFlags, unshare_unsafe},
};

use crate::{
    pair::{self, Pair},
    support::{self, Backend, Outcome, PROMPT, Path, Setting, eventually, shell, udp_arrives},
};

/// All tests of this file.
pub(crate) const TESTS: &[(&str, fn() -> Outcome)] = &[
    ("two_nodes_exchange_packets_of_every_size", every_size),
    ("a_packet_is_a_datagram", || a_packet_is_a_datagram(true)),
    ("a_packet_is_a_datagram_without_offloads", || {
        a_packet_is_a_datagram(false)
    }),
    ("datagrams_are_packets", datagrams_are_packets),
    ("no_route_is_answered_as_upstream_does", no_route),
    ("time_to_live_ends_at_either_node", time_to_live),
    ("garbage_is_ignored", garbage),
    ("routes_change_at_once", routes_change),
    ("a_deleted_device_is_noticed", deleted_device),
    ("what_is_missing_is_named", missing),
    ("agents_carry_pods_and_mend_their_devices", agents),
];

/// A port of the nodes' own, for traffic inside the tunnel.
const PORT: u16 = 5000;
/// How long to look for packets that must not come.
const QUIET: Duration = Duration::from_millis(200);
/// Where the time to live lies in a packet.
const TTL: usize = 8;
/// Length of the headers of IPv4 and UDP in bytes.
const HEADERS: usize = 28;

fn network() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 5, 0, 0), 16)
}

fn subnet(number: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 5, number, 0), 24)
}

/// A node's address in the flannel network.
fn inside(number: u8) -> Ipv4Addr {
    subnet(number).network()
}

/// A node's address on the link.
fn node(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 100, number)
}

/// Two namespaces, 1 and 2, with a link between them.
fn link(test: &str) -> anyhow::Result<[Netns; 2]> {
    let name = |number: u8| format!("udp-{}-{test}-{number}", std::process::id());
    let nodes = [Netns::create(&name(1))?, Netns::create(&name(2))?];
    let peer = nodes[1].name();
    underlay::ip_batch(
        &nodes[0],
        &format!("link add eth0 type veth peer name eth0 netns {peer}"),
    )?;
    for (number, netns) in (1..).zip(&nodes) {
        let address = node(number);
        let up = format!("link set lo up\naddress add {address}/24 dev eth0\nlink set eth0 up");
        underlay::ip_batch(netns, &up)?;
    }
    Ok(nodes)
}

fn options(number: u8) -> Options {
    Options {
        pattern: udp::DEVICE_PATTERN.into(),
        address: inside(number),
        bind: SocketAddrV4::new(node(number), udp::DEFAULT_PORT),
    }
}

/// Starts a node's proxy, with a route to the other node, and sets its device up.
fn start(netns: &Netns, number: u8) -> anyhow::Result<Proxy> {
    let proxy = netns.run(|| Proxy::start(&options(number)))??;
    let peer = 3 - number;
    proxy.set_routes([(subnet(peer), node(peer))].into_iter().collect());
    // As the agent sets it up.
    let (address, mtu, route) = (inside(number), 1472, network());
    let device = &proxy.device().name;
    underlay::ip_batch(
        netns,
        &format!(
            "address add {address}/32 dev {device}\n\
             link set {device} mtu {mtu} up\n\
             route add {route} dev {device}"
        ),
    )?;
    Ok(proxy)
}

fn socket(netns: &Netns, address: Ipv4Addr, port: u16) -> anyhow::Result<UdpSocket> {
    const BUFFER: usize = 8 << 20;
    let socket = netns.run(|| UdpSocket::bind((address, port)))??;
    socket.set_read_timeout(Some(PROMPT))?;
    sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)?;
    Ok(socket)
}

fn wait_counters(proxy: &Proxy, what: &str, met: impl Fn(&Counters) -> bool) -> Outcome {
    eventually(what, PROMPT, || {
        let counters = proxy.counters();
        Ok(met(&counters)
            .then_some(())
            .ok_or_else(|| format!("{counters:?}")))
    })
}

fn every_size() -> Outcome {
    let nodes = link("size")?;
    let proxies = [start(&nodes[0], 1)?, start(&nodes[1], 2)?];
    ensure!(
        proxies[0].device().name == "flannel0",
        "not upstream's name: {:?}",
        proxies[0].device()
    );
    // Payloads of echo requests; the last fills the MTU.
    for size in ["0", "1", "56", "1443", "1444"] {
        let arguments = ["-c", "3", "-i", "0.01", "-W", "5", "-M", "do", "-s", size];
        let to = inside(2).to_string();
        process::run(Some(&nodes[0]), "ping", &[&arguments[..], &[&to]].concat())?;
    }
    let expected = 3 * [28, 29, 84, 1471, 1472].iter().sum::<u64>();
    for proxy in &proxies {
        let counters = proxy.counters();
        let sides = [counters.sent, counters.received];
        ensure!(
            sides
                .iter()
                .all(|side| (side.packets, side.bytes) == (15, expected)),
            "15 packets each way were expected: {counters:?}"
        );
    }
    let refused = process::run(
        Some(&nodes[0]),
        "ping",
        &["-c1", "-W1", "-Mdo", "-s1445", "10.5.2.0"],
    );
    ensure!(refused.is_err(), "a packet larger than the MTU was carried");
    Ok(())
}

/// Sends bursts that make the proxy send several packets by one call, and compares packets with datagrams.
fn a_packet_is_a_datagram(offloads: bool) -> Outcome {
    const BURST: usize = 300;
    let nodes = link(if offloads { "datagram" } else { "single" })?;
    if !offloads {
        // Now the kernel refuses to cut what is to be sent.
        underlay::disable_offloads(&nodes[0], "eth0")?;
    }
    let proxy = start(&nodes[0], 1)?;
    let wire = socket(&nodes[1], node(2), udp::DEFAULT_PORT)?;
    let sender = socket(&nodes[0], Ipv4Addr::UNSPECIFIED, PORT)?;
    sender.connect((inside(2), PORT))?;
    let deadline = Instant::now() + PROMPT;
    loop {
        let device = Capture::start(&nodes[0], &proxy.device().name)?;
        let link = Capture::start(&nodes[0], "eth0")?;
        for index in 0..BURST {
            // Mostly of one size, with others between; one at the end of a run may be shorter.
            let size = if index % 50 == 49 { 500 } else { 1000 };
            sender.send(&vec![index as u8; size])?;
        }
        let mut datagrams = Vec::new();
        while datagrams.len() < BURST {
            let mut buffer = [0; 2048];
            let (length, from) = wire.recv_from(&mut buffer).context("a datagram")?;
            ensure!(from == options(1).bind.into(), "from {from}");
            datagrams.push(buffer[..length].to_vec());
        }
        let sent: Vec<_> = device
            .stop()
            .into_iter()
            .filter(|frame| frame.direction == Direction::Out)
            .collect();
        let expected: Vec<_> = sent
            .into_iter()
            .map(one_hop_on)
            .collect::<anyhow::Result<_>>()?;
        ensure!(
            datagrams == expected,
            "datagrams are not the packets, in their order"
        );
        let runs = link
            .stop()
            .into_iter()
            .filter(|frame| frame.bytes.len() > 1500)
            .count();
        if !offloads {
            ensure!(
                runs == 0,
                "{runs} aggregates left the node without offloads"
            );
        }
        // Only a fast machine sends so slowly that no two packets ever wait.
        if runs > 0 || !offloads {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "never were several packets sent by one call"
        );
    }
    let counters = proxy.counters();
    ensure!(
        counters.sent.packets.is_multiple_of(BURST as u64) && counters.unsent == 0,
        "packets were miscounted: {counters:?}"
    );
    Ok(())
}

fn one_hop_on(mut frame: Frame) -> anyhow::Result<Vec<u8>> {
    let header = Header::read(&frame.bytes).context("a packet")?;
    header.hop(&mut frame.bytes).ok().context("time to live")?;
    Ok(frame.bytes)
}

/// What a stock node sends arrives: it is a bare packet in a datagram, whoever sends it.
fn datagrams_are_packets() -> Outcome {
    const COUNT: u8 = 100;
    let nodes = link("packets")?;
    let recorder = start(&nodes[1], 2)?;
    // Real packets: what node 2 itself would send to node 1.
    let capture = Capture::start(&nodes[1], &recorder.device().name)?;
    let pattern = socket(&nodes[1], Ipv4Addr::UNSPECIFIED, PORT)?;
    for index in 0..COUNT {
        pattern.send_to(&[index; 33], (inside(1), PORT))?;
    }
    wait_counters(&recorder, "packets are sent", |it| {
        it.sent.packets == u64::from(COUNT)
    })?;
    let packets: Vec<_> = capture
        .stop()
        .into_iter()
        .map(|frame| frame.bytes)
        .collect();
    ensure!(
        packets.len() == usize::from(COUNT),
        "{} packets were captured",
        packets.len()
    );

    let proxy = start(&nodes[0], 1)?;
    let receiver = socket(&nodes[0], Ipv4Addr::UNSPECIFIED, PORT)?;
    // From another port, as behind address translation.
    let wire = socket(&nodes[1], node(2), PORT + 1)?;
    for packet in &packets {
        wire.send_to(packet, options(1).bind)?;
    }
    for index in 0..COUNT {
        let mut buffer = [0; 64];
        let (length, from) = receiver.recv_from(&mut buffer).context("a packet")?;
        ensure!(
            buffer[..length] == [index; 33] && from == (inside(2), PORT).into(),
            "packet {index} came as {:x?} from {from}",
            &buffer[..length]
        );
    }
    ensure!(
        proxy.counters().received.packets == u64::from(COUNT),
        "{:?}",
        proxy.counters()
    );
    Ok(())
}

fn no_route() -> Outcome {
    let nodes = link("route")?;
    let proxy = start(&nodes[0], 1)?;
    let capture = Capture::start(&nodes[0], &proxy.device().name)?;
    let sender = socket(&nodes[0], Ipv4Addr::UNSPECIFIED, PORT)?;
    sender.send_to(&[7; 100], (Ipv4Addr::new(10, 5, 77, 3), PORT))?;
    let frame = |direction| move |frame: &Frame| frame.direction == direction;
    let packet = capture
        .wait_for("the packet", PROMPT, frame(Direction::Out))?
        .bytes;
    let answer = capture
        .wait_for("an answer", PROMPT, frame(Direction::In))?
        .bytes;
    // The packet's headers as they were, behind those of IPv4 and ICMP: 56 bytes in all, of TTL 8 and protocol 1.
    ensure!(
        answer.len() == 56 && answer[28..] == packet[..HEADERS],
        "not quoted: {answer:x?}"
    );
    ensure!(
        answer[..10] == [0x45, 0, 0, 56, 0, 0, 0, 0, 8, 1]
            && answer[12..16] == inside(1).octets()
            && answer[16..20] == inside(1).octets()
            && answer[20..22] == [3, 0],
        "not upstream's answer: {answer:x?}"
    );
    wait_counters(&proxy, "it is counted", |it| {
        it.no_route == 1 && it.sent.packets == 0
    })
}

fn time_to_live() -> Outcome {
    let nodes = link("ttl")?;
    let proxies = [start(&nodes[0], 1)?, start(&nodes[1], 2)?];
    let capture = Capture::start(&nodes[1], &proxies[1].device().name)?;
    let receiver = socket(&nodes[1], Ipv4Addr::UNSPECIFIED, PORT)?;
    let sender = socket(&nodes[0], Ipv4Addr::UNSPECIFIED, PORT)?;
    for ttl in 1..=3 {
        sender.set_ttl(ttl)?;
        sender.send_to(&[ttl as u8], (inside(2), PORT))?;
    }
    let mut buffer = [0; 8];
    let length = receiver
        .recv(&mut buffer)
        .context("the packet with a time to live of 3")?;
    ensure!(
        buffer[..length] == [3],
        "the packet with a time to live of {} arrived",
        buffer[0]
    );
    let frames = capture.stop();
    ensure!(
        frames.len() == 1 && frames[0].bytes[TTL] == 1,
        "one packet, with a time to live of 1, was expected: {frames:x?}"
    );
    for proxy in &proxies {
        wait_counters(proxy, "one has expired at each node", |it| it.expired == 1)?;
    }
    Ok(())
}

fn garbage() -> Outcome {
    let nodes = link("garbage")?;
    let proxies = [start(&nodes[0], 1)?, start(&nodes[1], 2)?];
    let capture = Capture::start(&nodes[1], &proxies[1].device().name)?;
    let wire = socket(&nodes[0], node(1), PORT)?;
    let mut long = [0; 1400];
    long[0] = 0x45;
    long[2..4].copy_from_slice(&1401_u16.to_be_bytes());
    let all: [&[u8]; 6] = [
        &[],
        &[0x45; 19],
        &[0; 100],
        &[0x60; 100],
        &[0xff; 1472],
        &long,
    ];
    let before = proxies[1].counters().malformed;
    for datagram in all {
        wire.send_to(datagram, options(2).bind)?;
    }
    let expected = before + all.len() as u64;
    wait_counters(&proxies[1], "all of it is counted", |it| {
        it.malformed == expected
    })?;
    std::thread::sleep(QUIET);
    let frames = capture.stop();
    ensure!(frames.is_empty(), "the device got {frames:x?}");
    process::run(Some(&nodes[0]), "ping", &["-c1", "-W5", "10.5.2.0"])?;
    Ok(())
}

fn routes_change() -> Outcome {
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

fn deleted_device() -> Outcome {
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
    // And the end of a proxy is the end of its device.
    for _ in 0..2 {
        let proxy = start(&nodes[0], 1)?;
        ensure!(
            proxy.device().name == "flannel0",
            "a device was left: {:?}",
            proxy.device()
        );
    }
    let links = process::run(Some(&nodes[0]), "ip", &["-brief", "link", "show"])?;
    ensure!(!links.contains("flannel"), "a device was left:\n{links}");
    Ok(())
}

fn missing() -> Outcome {
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
fn agents() -> Outcome {
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

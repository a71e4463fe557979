//! What becomes of a packet: on the wire, in the other node's device, and where it leads nowhere.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use flannel_agent::udp::{self, packet::Header};
use lab::{
    capture::{Capture, Direction, Frame},
    process, underlay,
};
use std::net::Ipv4Addr;

use super::{HEADERS, PORT, inside, link, node, options, socket, start, wait_counters};
use crate::support::{Outcome, PROMPT};

/// How long to look for packets that must not come.
const QUIET: Duration = Duration::from_millis(200);
/// Where the time to live lies in a packet.
const TTL: usize = 8;

pub(super) fn every_size() -> Outcome {
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
        wait_counters(proxy, "15 packets have gone each way", |it| {
            let sides = [it.sent, it.received];
            sides
                .iter()
                .all(|side| (side.packets, side.bytes) == (15, expected))
        })?;
    }
    let refused = process::run(
        Some(&nodes[0]),
        "ping",
        &["-c1", "-W1", "-Mdo", "-s1445", "10.5.2.0"],
    );
    ensure!(refused.is_err(), "a packet larger than the MTU was carried");
    Ok(())
}

/// What is between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    /// A device that takes several datagrams as one.
    Aggregates,
    /// A device that takes single frames with finished checksums: the kernel cuts what is to be sent, or on older kernels
    /// refuses to.
    Frames,
    /// A path that is narrower than the packets: the kernel refuses to cut, and makes fragments of single datagrams.
    Narrow,
}

/// Sends bursts that make the proxy send several packets by one call, and compares packets with datagrams.
pub(super) fn a_packet_is_a_datagram(kind: Wire) -> Outcome {
    const BURST: usize = 300;
    /// Where no aggregate can be seen, so many bursts are likely to bring some about.
    const BURSTS: usize = 5;
    let nodes = link(&format!("{kind:?}").to_lowercase())?;
    match kind {
        Wire::Aggregates => {}
        Wire::Frames => underlay::disable_offloads(&nodes[0], "eth0")?,
        Wire::Narrow => {
            let narrow = "route replace 192.168.100.0/24 dev eth0 src 192.168.100.1 mtu lock 800";
            underlay::ip_batch(&nodes[0], narrow)?;
        }
    }
    let proxy = start(&nodes[0], 1)?;
    let wire = socket(&nodes[1], node(2), udp::DEFAULT_PORT)?;
    let sender = socket(&nodes[0], Ipv4Addr::UNSPECIFIED, PORT)?;
    sender.connect((inside(2), PORT))?;
    let deadline = Instant::now() + PROMPT;
    let mut sent = 0;
    loop {
        let device = Capture::start(&nodes[0], &proxy.device().name)?;
        let link = Capture::start(&nodes[0], "eth0")?;
        for index in 0..BURST {
            // Mostly of one size, with others between; one at the end of a run may be shorter.
            let size = if index % 50 == 49 { 500 } else { 1000 };
            sender.send(&vec![index as u8; size])?;
        }
        sent += BURST as u64;
        let mut datagrams = Vec::new();
        while datagrams.len() < BURST {
            let mut buffer = [0; 2048];
            let (length, from) = wire.recv_from(&mut buffer).context("a datagram")?;
            ensure!(from == options(1).bind.into(), "from {from}");
            datagrams.push(buffer[..length].to_vec());
        }
        let packets: Vec<_> = device
            .stop()
            .into_iter()
            .filter(|frame| frame.direction == Direction::Out)
            .collect();
        let expected: Vec<_> = packets
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
        if kind != Wire::Aggregates {
            ensure!(runs == 0, "{runs} aggregates are on the wire");
        }
        // Aggregates are there whenever packets have waited for the thread.
        if runs > 0 || (kind != Wire::Aggregates && sent == (BURSTS * BURST) as u64) {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "never were several packets sent by one call"
        );
    }
    wait_counters(&proxy, "all are counted", |it| {
        it.sent.packets == sent && it.unsent == 0
    })
}

fn one_hop_on(mut frame: Frame) -> anyhow::Result<Vec<u8>> {
    let header = Header::read(&frame.bytes).context("a packet")?;
    header.hop(&mut frame.bytes).ok().context("time to live")?;
    Ok(frame.bytes)
}

/// What a stock node sends arrives: it is a bare packet in a datagram, whoever sends it.
pub(super) fn datagrams_are_packets() -> Outcome {
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
    wait_counters(&proxy, "all are counted", |it| {
        it.received.packets == u64::from(COUNT)
    })
}

pub(super) fn no_route() -> Outcome {
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

pub(super) fn time_to_live() -> Outcome {
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

pub(super) fn garbage() -> Outcome {
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

//! What the fast path leaves to the kernel gets there unchanged, with the fast path on.

use std::{net::Ipv4Addr, net::UdpSocket, time::Duration};

use anyhow::{Context, ensure};
use lab::{
    Node, Pod,
    capture::{Capture, Direction, Frame},
    process,
    traffic::tools::{self, PingPlan},
};

use crate::meter::Meter;
use crate::support::{Backend, Outcome, Path, Setting, udp_arrives, with_cluster};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(2);

pub(crate) fn declined_traffic(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let (from, to) = (cluster.node(1), cluster.node(2));
        let (source, target) = (&from.pods()[0], &to.pods()[0]);
        let meter = Meter::start(from, to)?;
        let plan = PingPlan {
            count: 3,
            ..PingPlan::default()
        };
        let report = tools::ping(source.netns(), target.address(), plan)?;
        ensure!(report.received == 3, "ICMP: {report:?}");

        udp_arrives(source, target, 200, 4000).context("fragments")?;

        let address = target.address().to_string();
        let answer = process::run(
            Some(source.netns()),
            "ping",
            &["-n", "-R", "-c", "1", "-W", "2", &address],
        )
        .context("IP options")?;
        let hop = from.subnet_env()?.subnet.host(1).to_string();
        ensure!(
            answer.contains("RR:") && answer.contains(&address),
            "the way must be recorded, from {hop} on: {answer}"
        );
        meter
            .expect(Path::Kernel, 0)
            .context("packets that only the kernel may carry")?;

        short_lived(setting, source, target, [from, to])
    })
}

/// Packets whose TTL ends at a node are answered by that node; one hop more and they arrive.
fn short_lived(setting: Setting, source: &Pod, target: &Pod, nodes: [&Node; 2]) -> Outcome {
    const TIME_EXCEEDED: u8 = 11;
    const ICMP_TYPE: usize = 34;
    const SOURCE: std::ops::Range<usize> = 26..30;
    let subnet = |node: &Node| node.subnet_env().map(|env| env.subnet);
    let answers = [
        subnet(nodes[0])?.host(1),
        match setting.backend {
            Backend::Vxlan => subnet(nodes[1])?.address,
            Backend::HostGw => lab::traffic::Host::address(nodes[1]),
        },
    ];
    let sink = target
        .netns()
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    sink.set_read_timeout(Some(LIMIT))?;
    let port = sink.local_addr()?.port();
    let socket = source
        .netns()
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    let capture = Capture::start(source.netns(), "eth0")?;
    for (ttl, node) in (1..).zip(answers) {
        socket.set_ttl(ttl)?;
        socket.send_to(b"expires", (target.address(), port))?;
        let is_answer = |frame: &Frame| {
            frame.direction == Direction::In
                && frame.bytes.len() > ICMP_TYPE
                && frame.bytes[23] == 1
                && frame.bytes[ICMP_TYPE] == TIME_EXCEEDED
                && frame.bytes[SOURCE] == node.octets()
        };
        capture
            .wait_for("an answer", LIMIT, is_answer)
            .with_context(|| format!("TTL {ttl} must end at {node}"))?;
    }
    socket.set_ttl(3)?;
    socket.send_to(b"arrives", (target.address(), port))?;
    let mut buffer = [0; 16];
    let length = sink.recv(&mut buffer).context("TTL 3")?;
    ensure!(&buffer[..length] == b"arrives", "{:?}", &buffer[..length]);
    Ok(())
}

//! The generators must see what is wrong, and nothing where nothing is; the capture must see each byte.

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::Duration,
};

use lab::{
    Cluster, NodeConfig, Pod, Result,
    capture::{Capture, Direction, Frame},
    counters::Protocols,
    process,
    traffic::{
        icmp::Pinger,
        rtt::{self, EchoServer, Transport},
        tcp::{self, TcpFlow, TcpPlan},
        tools::{self, IperfPlan, PingPlan},
        udp::{self, UdpPlan, UdpReport},
    },
    wait,
};

use crate::{cluster, ping};

/// Two stock nodes with one pod each.
pub(crate) fn pair() -> Result<(Cluster, Pod, Pod)> {
    let cluster = Cluster::start(cluster(vec![NodeConfig::stock(), NodeConfig::stock()], 1))?;
    let (from, to) = (
        cluster.node(1).pods()[0].clone(),
        cluster.node(2).pods()[0].clone(),
    );
    Ok((cluster, from, to))
}

pub(crate) fn generators_sound() -> Result<()> {
    let (_cluster, from, to) = pair()?;
    let limit = Duration::from_secs(2);

    let report = udp::run(
        &from,
        &to,
        UdpPlan {
            packets: 2000,
            rate: 5000,
            size: 200,
        },
    )?;
    let clean = UdpReport {
        sent: 2000,
        received: 2000,
        ..UdpReport::default()
    };
    assert_eq!(
        UdpReport {
            source: None,
            longest_gap: Duration::ZERO,
            ..report
        },
        clean
    );
    assert_eq!(
        report.source.map(|source| source.ip()),
        Some(from.address().into())
    );

    let before = Protocols::read(from.netns())?;
    let report = tcp::run(
        &from,
        &to,
        TcpPlan {
            bytes: 20_000_000,
            rate: None,
        },
    )?;
    assert!(
        report.is_intact() && report.received == 20_000_000,
        "{report:?}"
    );
    let segments = Protocols::read(from.netns())?.since(&before);
    assert!(segments["Tcp.OutSegs"] > 100, "{segments:?}");

    let paced = TcpFlow::start(
        &from,
        &to,
        TcpPlan {
            bytes: u64::MAX,
            rate: Some(1_000_000),
        },
    )?;
    thread::sleep(Duration::from_millis(500));
    let report = paced.stop();
    assert!(
        report.is_intact() && (300_000..800_000).contains(&report.received),
        "{report:?}"
    );

    let server = EchoServer::start(to.netns())?;
    let address = SocketAddr::from((to.address(), server.port()));
    for transport in [Transport::Tcp, Transport::Udp] {
        let times = rtt::round_trips(&from, address, transport, 20, 100, limit)?;
        assert!(times.0.len() == 20 && times.percentile(50.0) < limit);
    }
    rtt::connect_request_close(&from, address, 5, limit)?;
    drop(server);
    assert!(
        rtt::round_trips(
            &from,
            address,
            Transport::Udp,
            1,
            1,
            Duration::from_millis(200)
        )
        .is_err()
    );

    let nobody = Ipv4Addr::new(10, 5, 0, 9);
    let times = Pinger::new(from.netns())?.round(
        &[to.address(), nobody, from.address()],
        Duration::from_millis(300),
    );
    let answered: Vec<_> = times
        .expect("the socket works")
        .iter()
        .map(Option::is_some)
        .collect();
    assert_eq!(answered, [true, false, true]);

    let report = tools::ping(
        from.netns(),
        to.address(),
        PingPlan {
            count: 2,
            ..PingPlan::default()
        },
    )?;
    assert_eq!(
        (report.sent, report.received, report.errors),
        (2, 2, vec![])
    );
    let large = PingPlan {
        size: 1423,
        dont_fragment: true,
        ..PingPlan::default()
    };
    let report = tools::ping(from.netns(), to.address(), large)?;
    assert!(
        report.received == 0 && report.errors[0].contains("1450"),
        "{report:?}"
    );

    let report = tools::iperf3(&from, &to, IperfPlan::default())?;
    assert!(report.bits_per_second > 1e6, "{report:?}");
    let plan = IperfPlan {
        udp_size: Some(1000),
        rate: Some(8_000_000),
        ..IperfPlan::default()
    };
    let report = tools::iperf3(&from, &to, plan)?;
    assert!(
        (900..1200).contains(&report.packets) && report.lost_packets == 0,
        "{report:?}"
    );
    Ok(())
}

pub(crate) fn generators_unsound() -> Result<()> {
    let (cluster, from, to) = pair()?;
    let rule = |arguments: &str| {
        let arguments: Vec<_> = arguments.split(' ').collect();
        process::run(Some(cluster.node(2).netns()), "iptables", &arguments)
    };
    let every_tenth = "FORWARD 1 -p udp -m statistic --mode nth --every 10 --packet 0 -j DROP";
    rule(&format!("-I {every_tenth}"))?;
    let report = udp::run(
        &from,
        &to,
        UdpPlan {
            packets: 500,
            rate: 2000,
            size: 64,
        },
    )?;
    assert_eq!((report.sent, report.received, report.lost), (500, 450, 50));
    rule("-D FORWARD 1")?;

    let flow = TcpFlow::start(
        &from,
        &to,
        TcpPlan {
            bytes: u64::MAX,
            rate: Some(1_000_000),
        },
    )?;
    wait::until("bytes", Duration::from_secs(2), || {
        Ok((flow.received() > 0).then_some(()).ok_or(String::new()))
    })?;
    rule("-I FORWARD 1 -p tcp -j DROP")?;
    thread::sleep(Duration::from_millis(700));
    rule("-D FORWARD 1")?;
    let arrived = flow.received();
    wait::until("bytes", Duration::from_secs(5), || {
        Ok((flow.received() > arrived)
            .then_some(())
            .ok_or(String::new()))
    })?;
    let report = flow.stop();
    assert!(report.is_intact() && report.retransmits > 0, "{report:?}");
    assert!(
        report.longest_gap > Duration::from_millis(500),
        "{report:?}"
    );

    let flow = TcpFlow::start(
        &from,
        &to,
        TcpPlan {
            bytes: u64::MAX,
            rate: Some(1_000_000),
        },
    )?;
    rule("-I FORWARD 1 -p tcp -j REJECT --reject-with tcp-reset")?;
    let report = flow.finish();
    assert!(
        report
            .failure
            .as_ref()
            .is_some_and(|failure| failure.contains("reset")),
        "{report:?}"
    );
    Ok(())
}

pub(crate) fn capture_vxlan() -> Result<()> {
    let (cluster, from, to) = pair()?;
    let capture = Capture::start(cluster.node(1).netns(), "eth0")?;
    ping(from.netns(), &to, &[])?;
    /// Offsets in an Ethernet frame with IPv4 without options.
    const IP_PROTOCOL: usize = 23;
    const UDP_DESTINATION: std::ops::Range<usize> = 36..38;
    let is_vxlan = |frame: &Frame| {
        frame.bytes.len() > 64
            && frame.bytes[IP_PROTOCOL] == 17
            && frame.bytes[UDP_DESTINATION] == 8472_u16.to_be_bytes()
    };
    capture.wait_for("an answer", Duration::from_secs(2), |frame| {
        is_vxlan(frame) && frame.direction == Direction::In
    })?;
    let frames = capture.stop();
    let sent: Vec<_> = frames
        .iter()
        .filter(|frame| is_vxlan(frame) && frame.direction == Direction::Out)
        .collect();
    // One request, with flag I and VNI 1 (RFC 7348 section 5), from our VTEP to the peer's.
    assert_eq!(sent.len(), 1, "{frames:?}");
    assert_eq!(sent[0].bytes[42..50], [8, 0, 0, 0, 0, 0, 1, 0]);
    let mac = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<Vec<_>>()
            .join(":")
    };
    assert_eq!(
        mac(&sent[0].bytes[50..56]),
        cluster.node(2).stock().vtep_mac()
    );
    assert_eq!(
        mac(&sent[0].bytes[56..62]),
        cluster.node(1).stock().vtep_mac()
    );
    Ok(())
}

//! What our programs put on the wire, byte by byte beside what the kernel's own path sends for the same packet.

use std::{
    collections::BTreeMap,
    io::Write,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    ops::Range,
    time::Duration,
};

use anyhow::{Context, ensure};
use lab::{
    Cluster, ClusterConfig, NodeConfig, Pod, Underlay,
    capture::{Capture, Direction, Frame},
};

use crate::meter::Meter;
use crate::support::{Backend, Outcome, Path, Setting, wait_pods_served, with_cluster};

/// Offsets in a frame with IPv4 without options and UDP.
const IP: usize = 14;
const IP_ID: Range<usize> = IP + 4..IP + 6;
const IP_CHECKSUM: Range<usize> = IP + 10..IP + 12;
const UDP: usize = IP + 20;
const SOURCE_PORT: Range<usize> = UDP..UDP + 2;
const UDP_CHECKSUM: Range<usize> = UDP + 6..UDP + 8;
/// The inner frame begins here: behind Ethernet, IPv4, UDP and VXLAN headers.
const INNER: usize = UDP + 8 + 8;
/// flannel's VXLAN port.
const VXLAN_PORT: u16 = 8472;
/// Where the test's packets go, and the first of the ports that they come from.
const PORT: u16 = 9999;
const FIRST_SOURCE: u16 = 40_000;
/// Flows, so that source ports are no coincidence.
const FLOWS: u16 = 8;
/// UDP payloads: shorter than Ethernet's minimum, odd, and as large as the MTU allows on both backends.
const SIZES: [usize; 4] = [1, 64, 999, 1422];

/// A packet by its source port and length.
type Frames = BTreeMap<(u16, usize), Vec<u8>>;

/// Sockets that outlive the change of the path. Their flow hash is the socket's, not the packet's.
struct Connected {
    udp: UdpSocket,
    tcp: TcpStream,
    _peer: TcpStream,
}

pub(crate) fn same_frames(setting: Setting) -> Outcome {
    let off = Setting {
        path: Path::Kernel,
        ..setting
    };
    let underlay = Underlay {
        offloads: false,
        ..Underlay::default()
    };
    let config = ClusterConfig {
        underlay,
        ..off.cluster(vec![off.node(), NodeConfig::stock()])
    };
    with_cluster(config, |cluster| {
        let (node, other) = (cluster.node(1), cluster.node(2));
        let (from, to) = (&node.pods()[0], &other.pods()[0]);
        let _sink = to.netns().run(|| UdpSocket::bind(("0.0.0.0", PORT)))??;
        let mut connected = connect(from, to)?;

        let (kernel, kernel_ports) = send_all(setting, cluster, from, to, &mut connected)?;
        node.agent()
            .configure(|config| config.fast_path = Path::Fast.mode().to_owned());
        node.agent().restart()?;
        wait_pods_served(node)?;
        let meter = Meter::start(node, other)?;
        let (fast, fast_ports) = send_all(setting, cluster, from, to, &mut connected)?;
        meter.expect(Path::Fast, kernel.len() as u64)?;

        ensure!(
            kernel.len() == SIZES.len() * usize::from(FLOWS) && kernel.keys().eq(fast.keys()),
            "not the same packets: {:?}, {:?}",
            kernel.keys(),
            fast.keys()
        );
        for (packet, kernel) in &kernel {
            let fast = &fast[packet];
            compare(setting.backend, kernel, fast)
                .with_context(|| format!("packet from port {}, {} bytes", packet.0, packet.1))?;
        }
        ensure!(
            kernel_ports == fast_ports,
            "outer source ports of connected sockets (UDP, TCP): kernel {kernel_ports:?}, BPF {fast_ports:?}"
        );
        Ok(())
    })
}

fn connect(from: &Pod, to: &Pod) -> anyhow::Result<Connected> {
    let listener = to.netns().run(|| TcpListener::bind("0.0.0.0:0"))??;
    let target = SocketAddrV4::new(to.address(), listener.local_addr()?.port());
    let tcp = from.netns().run(|| TcpStream::connect(target))??;
    tcp.set_nodelay(true)?;
    let (peer, _) = listener.accept()?;
    let udp = from.netns().run(|| UdpSocket::bind("0.0.0.0:0"))??;
    udp.connect((to.address(), PORT))?;
    Ok(Connected {
        udp,
        tcp,
        _peer: peer,
    })
}

/// Sends the test's packets and returns the frames that the node put on the wire: those of unconnected sockets, and
/// the outer source ports of the connected ones.
fn send_all(
    setting: Setting,
    cluster: &Cluster,
    from: &Pod,
    to: &Pod,
    connected: &mut Connected,
) -> anyhow::Result<(Frames, Vec<u16>)> {
    /// Nothing else is sent with it.
    const MARK: usize = 333;
    let capture = Capture::start(cluster.node(1).netns(), "eth0")?;
    for flow in 0..FLOWS {
        let bound = (Ipv4Addr::UNSPECIFIED, FIRST_SOURCE + flow);
        let socket = from.netns().run(|| UdpSocket::bind(bound))??;
        for size in SIZES {
            socket.send_to(&vec![0x5a; size], (to.address(), PORT))?;
        }
    }
    connected.tcp.write_all(&[0xa5; MARK])?;
    connected.udp.send(&[0xa5; MARK])?;
    let inner = match setting.backend {
        Backend::Vxlan => INNER,
        Backend::HostGw => 0,
    };
    let local_port = connected.udp.local_addr()?.port();
    let tcp_ports = (
        connected.tcp.local_addr()?.port(),
        connected.tcp.peer_addr()?.port(),
    );
    let ports = |frame: &Frame| inner_ports(frame, inner);
    let of_udp = |frame: &Frame| ports(frame) == Some((local_port, PORT));
    let of_tcp = |frame: &Frame| ports(frame) == Some(tcp_ports) && frame.bytes.len() > MARK;
    let limit = Duration::from_secs(2);
    let udp = capture.wait_for("the connected socket's packet", limit, of_udp)?;
    let tcp = capture.wait_for("the connection's segment", limit, of_tcp)?;
    let outer = match setting.backend {
        Backend::Vxlan => vec![port(&udp.bytes, SOURCE_PORT), port(&tcp.bytes, SOURCE_PORT)],
        Backend::HostGw => Vec::new(),
    };
    let frames = capture.stop().into_iter().filter_map(|frame| {
        let (source, target) = inner_ports(&frame, inner)?;
        let ours = target == PORT && (FIRST_SOURCE..FIRST_SOURCE + FLOWS).contains(&source);
        ours.then_some(((source, frame.bytes.len()), frame.bytes))
    });
    Ok((frames.collect(), outer))
}

/// Source and destination port of the pod's packet in a frame that the node sent.
fn inner_ports(frame: &Frame, inner: usize) -> Option<(u16, u16)> {
    let bytes = &frame.bytes;
    let is_sent = frame.direction == Direction::Out && bytes.len() >= inner + UDP + 8;
    let is_tunnel = || inner == 0 || port(bytes, UDP + 2..UDP + 4) == VXLAN_PORT;
    (is_sent && is_tunnel()).then(|| {
        let ports = inner + UDP;
        (
            port(bytes, ports..ports + 2),
            port(bytes, ports + 2..ports + 4),
        )
    })
}

fn port(bytes: &[u8], range: Range<usize>) -> u16 {
    u16::from_be_bytes([bytes[range.start], bytes[range.start + 1]])
}

/// Asserts that all is equal but what each sender chooses: the identification in both IP headers, hence their
/// checksums, and the outer UDP checksum, which over IPv4 may be left out (RFC 7348 section 5).
fn compare(backend: Backend, kernel: &[u8], fast: &[u8]) -> Outcome {
    let (mut kernel, mut fast) = (kernel.to_vec(), fast.to_vec());
    let inner = match backend {
        Backend::Vxlan => {
            ensure!(
                fast[UDP_CHECKSUM] == [0, 0],
                "a UDP checksum that nobody has computed: {fast:02x?}"
            );
            kernel[UDP_CHECKSUM].fill(0);
            fast[UDP_CHECKSUM].fill(0);
            Some(INNER)
        }
        Backend::HostGw => None,
    };
    for frame in inner.into_iter().chain([0]) {
        let header = &fast[frame + IP..frame + UDP];
        ensure!(
            header_sum(header) == 0xffff,
            "the checksum of the header at {} is wrong: {fast:02x?}",
            frame + IP
        );
        for Range { start, end } in [IP_ID, IP_CHECKSUM] {
            kernel[frame + start..frame + end].fill(0);
            fast[frame + start..frame + end].fill(0);
        }
    }
    ensure!(
        kernel == fast,
        "kernel {kernel:02x?}\nBPF    {fast:02x?}\ndiffer at {:?}",
        kernel
            .iter()
            .zip(&fast)
            .position(|(kernel, fast)| kernel != fast)
    );
    Ok(())
}

/// The ones' complement sum of a header; 0xffff if its checksum is right (RFC 1071).
fn header_sum(header: &[u8]) -> u32 {
    let words = header.chunks_exact(2);
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded & 0xffff) + (folded >> 16)
}

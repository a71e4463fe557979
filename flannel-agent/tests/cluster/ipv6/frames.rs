//! Frames on the wire.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::Duration;

use anyhow::ensure;
use lab::{
    Node,
    capture::{Capture, Direction, Frame},
    traffic::Host as _,
};

use super::pair::{Pair, config, wait_served};
use crate::pair::counters;
use crate::support::{Backend, Outcome, Path, Setting, with_cluster};

/// How long a frame may take to the wire.
const LIMIT: Duration = Duration::from_secs(5);

/// What the fast path puts on the wire is what the kernel sends for the same packet, in every byte: IPv6 headers have neither
/// an identification nor a checksum, and the outer UDP checksum is the kernel's on both paths.
pub(crate) fn frames_are_those_that_the_kernel_sends(setting: Setting) -> Outcome {
    let off = Setting {
        path: Path::Kernel,
        ..setting
    };
    with_cluster(config(off, false, &[]), |cluster| {
        let pair = Pair::of(cluster)?;
        let [from, to] = &pair.ends;
        let node = pair.nodes[0];
        let _sink = to.netns().run(|| UdpSocket::bind((to.ip(), PORT)))??;
        // Flow labels and hashes are the sockets', which outlive the change of the path.
        let sockets = (0..FLOWS).map(|flow| {
            let socket = from
                .netns()
                .run(|| UdpSocket::bind((from.ip(), FIRST_SOURCE + flow)))??;
            socket.connect((to.ip(), PORT))?;
            anyhow::Ok(socket)
        });
        let sockets = sockets.collect::<anyhow::Result<Vec<_>>>()?;
        let kernel = send_all(setting.backend, node, &sockets)?;
        node.agent()
            .configure(|config| config.fast_path = Path::Fast.mode().to_owned());
        node.agent().restart()?;
        wait_served(node, from)?;
        let before = counters(node)?;
        let fast = send_all(setting.backend, node, &sockets)?;
        let counted = counters(node)?.since(&before);
        let packets = SIZES.len() * usize::from(FLOWS);
        ensure!(
            counted.fast_egress >= packets as u64,
            "not all were fast: {counted:?}"
        );
        ensure!(
            kernel.len() == packets && kernel.keys().eq(fast.keys()),
            "not the same packets: {:?}, {:?}",
            kernel.keys(),
            fast.keys()
        );
        for (packet, kernel) in &kernel {
            let fast = &fast[packet];
            ensure!(
                kernel == fast,
                "{packet:?}: kernel {kernel:02x?}\nBPF    {fast:02x?}"
            );
        }
        Ok(())
    })
}

/// Where those packets go, the first of the ports that they come from, and how many of them.
const PORT: u16 = 9999;
const FIRST_SOURCE: u16 = 40_000;
const FLOWS: u16 = 8;
/// UDP payloads: empty, odd, and as large as the MTU allows with either backend.
const SIZES: [usize; 4] = [0, 1, 999, 1382];

/// Sends from each socket, and returns the frames that the node put on the wire, by source port and length.
fn send_all(
    backend: Backend,
    node: &Node,
    sockets: &[UdpSocket],
) -> anyhow::Result<BTreeMap<(u16, usize), Vec<u8>>> {
    /// Ethernet, and what VXLAN adds: IPv6, UDP, VXLAN and Ethernet.
    const ETHERNET: usize = 14;
    const TUNNEL: usize = 40 + 8 + 8 + ETHERNET;
    let ip = match backend {
        Backend::Vxlan => ETHERNET + TUNNEL,
        Backend::HostGw => ETHERNET,
    };
    let udp = ip + 40;
    let capture = Capture::start(node.netns(), "eth0")?;
    for socket in sockets {
        for size in SIZES {
            socket.send(&vec![0x5a; size])?;
        }
    }
    let last = FIRST_SOURCE + FLOWS - 1;
    let ports = |frame: &Frame| {
        let port = |at: usize| {
            Some(u16::from_be_bytes([
                *frame.bytes.get(at)?,
                *frame.bytes.get(at + 1)?,
            ]))
        };
        (frame.direction == Direction::Out && frame.bytes.get(ip)? >> 4 == 6)
            .then_some((port(udp)?, port(udp + 2)?))
    };
    let whole = udp + 8 + SIZES[SIZES.len() - 1];
    let is_last = |frame: &Frame| ports(frame) == Some((last, PORT)) && frame.bytes.len() == whole;
    capture.wait_for("the last packet", LIMIT, is_last)?;
    let frames = capture.stop().into_iter().filter_map(|frame| {
        let (source, target) = ports(&frame)?;
        let ours = target == PORT && (FIRST_SOURCE..=last).contains(&source);
        ours.then_some(((source, frame.bytes.len()), frame.bytes))
    });
    Ok(frames.collect())
}

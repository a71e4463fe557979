//! Probes that something leads astray: nobody gets a packet twice.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::{Node, NodeConfig, capture::Capture, counters::Protocols};

use crate::pair::{
    Datagrams, Pair, agent, declined, learned, until_fast, until_fast_at, with_pair,
};
use crate::support::{Backend, Outcome, PROMPT, Setting, eventually, link, shell, with_cluster};

/// Many probes before a flow is given up.
const MANY_PROBES: [&str; 2] = ["--fast-path-revalidate=300ms", "--fast-path-grace=2s"];
/// By then it is.
const GIVEN_UP: Duration = Duration::from_millis(2600);
/// Probes are not sent more often than this (`PROBE_INTERVAL`), so there are so many at most.
const MOST_PROBES: i64 = 2000 / 50 + 2;
/// Pause between datagrams.
const PAUSE: Duration = Duration::from_millis(2);
/// How many probes must have escaped for a test to prove anything.
const ESCAPED: usize = 3;

/// The way to the other node is turned in the kernel alone, past the hook that drops probes: they are not forwarded there.
pub(crate) fn probes_on_a_turned_route_reach_nobody(setting: Setting) -> Outcome {
    astray(setting, |pair| {
        let [near, far] = pair.nodes;
        let subnet = agent(far)?.status()?.lease.context("no lease")?.subnet;
        // Nobody turns it back.
        agent(near)?.kill()?;
        let route = format!("ip route replace {subnet} via {} dev eth0", far.address());
        shell(near, &route).map(drop)
    })
}

/// The hook that drops probes on their way out of the node is taken away: they are not forwarded at the other.
pub(crate) fn probes_without_a_hook_reach_nobody(setting: Setting) -> Outcome {
    astray(setting, |pair| {
        let device = match setting.backend {
            Backend::Vxlan => "flannel.1",
            Backend::HostGw => "eth0",
        };
        agent(pair.nodes[0])?.kill()?;
        take_away(pair.nodes[0], "attest_out", device)
    })
}

/// Leads probes astray at the first node; its pod's datagrams arrive once and in order. The other node is stock flannel, as
/// good as: no hook there knows a probe, as it would by its tag, which a veth for a wire brings along.
fn astray(setting: Setting, lead: impl FnOnce(&Pair<'_>) -> Outcome) -> Outcome {
    let mut agent = setting.agent();
    let stock = NodeConfig::agent(&agent.clone().with_fast_path("off"));
    agent.arguments.extend(MANY_PROBES.map(Into::into));
    let nodes = vec![NodeConfig::agent(&agent), stock];
    with_cluster(setting.cluster(nodes), |cluster| {
        let pair = &Pair::of(cluster)?;
        let datagrams = Datagrams::open(pair, [0; 2])?;
        until_fast_at(pair, &[0], || datagrams.exchange())?;
        let errors = || {
            let counters = Protocols::read(pair.pods[0].netns())?;
            anyhow::Ok(counters.get("Icmp.InTimeExcds"))
        };
        let before = errors()?;
        let capture = Capture::start(pair.nodes[1].netns(), "eth0")?;
        let received = datagrams.numbered(0, PAUSE, || {
            lead(pair)?;
            thread::sleep(GIVEN_UP);
            Ok(())
        })?;
        let frames = capture.stop();
        received.intact()?;
        let escaped = frames.iter().filter(|frame| is_spent(&frame.bytes)).count();
        ensure!(escaped >= ESCAPED, "only {escaped} probes went astray");
        let errors = errors()? - before;
        ensure!(
            errors <= MOST_PROBES,
            "the pod was told {errors} times that time to live was exceeded"
        );
        Ok(())
    })
}

/// Whether the frame is a datagram between pods with a time to live of one, in a tunnel or not.
fn is_spent(frame: &[u8]) -> bool {
    const IPV4: usize = 14;
    const INNER: usize = IPV4 + 20 + 8 + 8 + 14;
    let at = |ip: usize| {
        let header = frame.get(ip..ip + 20)?;
        // Of the flannel network, by both addresses.
        let pods = header[12..14] == [10, 5] && header[16..18] == [10, 5];
        (pods && header[9] == 17).then_some(header[8])
    };
    at(IPV4).or_else(|| at(INNER)) == Some(1)
}

/// The hook that drops probes in front of a pod is taken away. Nothing else stands between the two, so one datagram
/// arrives twice; the next probe waits for an answer to the first. The agent puts the hook back.
pub(crate) fn one_probe_at_most_reaches_a_pod(setting: Setting) -> Outcome {
    with_pair(setting, &MANY_PROBES, |pair| {
        let datagrams = Datagrams::open(pair, [0; 2])?;
        until_fast(pair, || datagrams.exchange())?;
        let target = pair.nodes[1];
        let veth = &pair.pods[1].attachment().host_device;
        let received = datagrams.numbered(0, PAUSE, || {
            take_away(target, "attest_in", veth)?;
            thread::sleep(GIVEN_UP);
            Ok(())
        })?;
        ensure!(
            received.lost == 0 && received.duplicated <= 1,
            "{received:?}"
        );
        // Detaching raises no event; whatever happens to the veth does.
        shell(target, &format!("ip link set {veth} alias noticed"))?;
        until_fast(pair, || datagrams.exchange()).context("with the hook back")
    })
}

/// Rules that give packets another time to live do not make packets of probes.
pub(crate) fn probes_with_another_time_to_live_reach_nobody(setting: Setting) -> Outcome {
    with_pair(setting, &MANY_PROBES, |pair| {
        for node in pair.nodes {
            shell(
                node,
                "iptables -w -t mangle -A POSTROUTING -j TTL --ttl-set 64",
            )?;
        }
        let datagrams = Datagrams::open(pair, [0; 2])?;
        until_fast(pair, || datagrams.exchange())?;
        let before = pair.counters()?;
        for from in [0, 1] {
            let received = datagrams.numbered(from, PAUSE, || {
                let done = || -> anyhow::Result<u64> {
                    let counted = pair.since(&before)?;
                    Ok(counted.iter().map(|node| learned(node, "probe-done")).sum())
                };
                let enough = done()? + 2 * ESCAPED as u64;
                eventually("probes", PROMPT, || {
                    let done = done()?;
                    Ok((done >= enough)
                        .then_some(())
                        .ok_or_else(|| format!("{done}")))
                })
            })?;
            received.intact()?;
        }
        Ok(())
    })
}

/// Modes that change while probes are under way let none of them through.
pub(crate) fn probes_across_changes_reach_nobody(setting: Setting) -> Outcome {
    let eager = ["--fast-path-revalidate=50ms", "--fast-path-grace=500ms"];
    with_pair(setting, &eager, |pair| {
        let datagrams = Datagrams::open(pair, [0; 2])?;
        until_fast(pair, || datagrams.exchange())?;
        let before = pair.counters()?;
        let received = datagrams.numbered(0, Duration::from_micros(200), || {
            for mode in ["subnet", "flow", "subnet", "flow", "subnet", "flow"] {
                for node in pair.nodes {
                    let agent = agent(node)?;
                    let socket = format!("--status-socket={}", agent.socket().display());
                    agent.command_output(&["fast-path", mode, &socket])?;
                }
                thread::sleep(Duration::from_millis(200));
            }
            Ok(())
        })?;
        received.intact()?;
        let counted = pair.since(&before)?;
        for node in &counted {
            ensure!(
                learned(node, "probe-done") > 0 && declined(node, "probe") > 0,
                "no probes were under way: {counted:?}"
            );
        }
        Ok(())
    })
}

/// Detaches a program as somebody would who knows nothing of it: by its pin.
fn take_away(node: &Node, program: &str, device: &str) -> Outcome {
    let (index, _) = link(node, device)?.with_context(|| format!("no device {device}"))?;
    let pins = agent(node)?.pin_directory();
    let name = format!("{program}-{index}");
    let removed = shell(
        node,
        &format!("find {} -name {name} -print -delete", pins.display()),
    )?;
    ensure!(removed.contains(&name), "no pin {name}");
    Ok(())
}

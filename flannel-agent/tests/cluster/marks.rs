//! Marks and tags beside packets: rules that act on the fast path's mark, set it or copy it do no harm, and what the fast
//! path notes beside packets stays on its node.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::{Node, Pod};

use crate::pair::{Connection, Datagrams, Pair, agent, declined, learned, until_fast, with_pair};
use crate::support::{Outcome, PROMPT, Setting, eventually, shell, with_cluster};

/// The bit of the mark that attests, by default.
const BIT: &str = "0x40/0x40";
/// Bytes of a stream.
const STREAM: usize = 20 << 20;

/// Routing by the attesting bit, to nowhere, catches nothing of pods: the bit is cleared before packets are encapsulated.
pub(crate) fn routing_by_the_mark_catches_nothing(setting: Setting) -> Outcome {
    with_pair(setting, &[], |pair| {
        for node in pair.nodes {
            shell(node, &format!("ip rule add pref 10 fwmark {BIT} blackhole"))?;
        }
        let mut connection = Connection::open(pair, 0, 0)?;
        until_fast(pair, || connection.exchange())?;
        for end in [0, 1] {
            connection.send(end, STREAM)?;
        }
        // Datagrams are slow, and marked, for longer.
        let datagrams = Datagrams::open(pair, [0; 2])?;
        until_fast(pair, || datagrams.exchange())
    })
}

/// A mark with the attesting bit that somebody else has set attests nothing: neither a pod's, nor the host's, nor one
/// that a rule sets on the way.
pub(crate) fn marks_of_others_attest_nothing(setting: Setting) -> Outcome {
    /// Datagrams that nobody answers.
    const DATAGRAMS: u64 = 500;
    with_pair(setting, &[], |pair| {
        let mark = format!("-j MARK --set-xmark {BIT}");
        let [client, _] = &pair.pods;
        // What a process asks for by SO_MARK, its namespace does for all.
        lab::process::run(
            Some(client.netns()),
            "sh",
            &["-c", &format!("iptables -w -t mangle -A OUTPUT {mark}")],
        )?;
        for node in pair.nodes {
            for chain in ["PREROUTING", "FORWARD", "OUTPUT"] {
                shell(node, &format!("iptables -w -t mangle -A {chain} {mark}"))?;
            }
        }
        let before = pair.counters()?;
        let arrived = |from: &lab::Netns| -> anyhow::Result<u64> {
            let server = &pair.pods[1];
            let sink = server
                .netns()
                .run(|| UdpSocket::bind((server.address(), 0)))??;
            sink.set_read_timeout(Some(Duration::from_millis(500)))?;
            let to: SocketAddr = sink.local_addr()?;
            from.run(|| -> std::io::Result<u64> {
                let source = UdpSocket::bind(("0.0.0.0", 0))?;
                let mut arrived = 0;
                for _ in 0..DATAGRAMS {
                    source.send_to(b"marked", to)?;
                    arrived += u64::from(sink.recv(&mut [0; 8]).is_ok());
                }
                Ok(arrived)
            })?
            .context("send")
        };
        for (who, netns) in [("pod", client.netns()), ("host", pair.nodes[0].netns())] {
            let arrived = arrived(netns)?;
            ensure!(
                arrived == DATAGRAMS,
                "of {DATAGRAMS} datagrams of the {who} {arrived} arrived"
            );
        }
        let counted = pair.since(&before)?;
        for node in &counted {
            ensure!(
                learned(node, "created") + learned(node, "attested") == 0,
                "unanswered datagrams were attested: {counted:?}"
            );
        }
        ensure!(
            learned(&counted[0], "refused") >= DATAGRAMS,
            "not looked at: {counted:?}"
        );
        let mut connection = Connection::open(pair, 0, 0)?;
        until_fast(pair, || connection.exchange()).context("with marks of others everywhere")
    })
}

/// Rules that save marks to connections and give them back to later packets put ours on packets that are no probes: not
/// one of them is dropped or taken for something else.
pub(crate) fn copied_marks_harm_nothing(setting: Setting) -> Outcome {
    let eager = ["--fast-path-revalidate=50ms", "--fast-path-grace=500ms"];
    with_pair(setting, &eager, |pair| {
        for node in pair.nodes {
            for rule in [
                "PREROUTING -j CONNMARK --restore-mark",
                "FORWARD -j CONNMARK --save-mark",
                "POSTROUTING -j CONNMARK --save-mark",
                "POSTROUTING -j CONNMARK --restore-mark",
            ] {
                shell(node, &format!("iptables -w -t mangle -A {rule}"))?;
            }
        }
        let datagrams = Datagrams::open(pair, [0; 2])?;
        until_fast(pair, || datagrams.exchange())?;
        let mut connection = Connection::open(pair, 0, 0)?;
        let before = pair.counters()?;
        for from in [0, 1] {
            let received = datagrams.numbered(from, Duration::from_micros(500), || {
                for end in [0, 1, 0, 1] {
                    connection.send(end, STREAM)?;
                }
                probed(pair, &before)
            })?;
            received.intact()?;
        }
        let counted = pair.since(&before)?;
        for node in &counted {
            ensure!(learned(node, "killed") == 0, "{counted:?}");
        }
        Ok(())
    })
}

/// Waits until both nodes have had probes answered.
fn probed(pair: &Pair<'_>, before: &[lab::status::Counters; 2]) -> Outcome {
    eventually("answered probes", PROMPT, || {
        let counted = pair.since(before)?;
        let done = counted.each_ref().map(|node| learned(node, "probe-done"));
        Ok((done.iter().all(|done| *done > 1))
            .then_some(())
            .ok_or_else(|| format!("{done:?}")))
    })
}

/// A node whose mode needs no tags puts none on packets, which would keep its peer from learning of their flow where the
/// wire between the two keeps them, as a veth does.
pub(crate) fn tags_stay_on_their_node(setting: Setting) -> Outcome {
    for argument in ["--fast-path-egress=auto", "--fast-path-egress=assist"] {
        let agent = |mode: &str| {
            let mut agent = setting.agent().with_fast_path(mode);
            agent.arguments.push(argument.into());
            lab::NodeConfig::agent(&agent)
        };
        let nodes = vec![agent("subnet"), agent("flow")];
        with_cluster(setting.cluster(nodes), |cluster| {
            let pair = &Pair::of(cluster)?;
            let mut connection = Connection::open(pair, 0, 0)?;
            until_fast(pair, || connection.exchange()).context(argument)
        })?;
    }
    Ok(())
}

/// Packets that the fast path itself has sent to a device behind which it learns, past the kernel, are not taken for the
/// kernel's: those to a node without a tunnel, and those to a pod with a shaper.
pub(crate) fn redirected_packets_end_no_flow(setting: Setting) -> Outcome {
    with_pair(setting, &[], |pair| {
        for (node, pod) in pair.nodes.iter().zip(&pair.pods) {
            shape(node, pod)?;
        }
        let mut connection = Connection::open(pair, 0, 0)?;
        let datagrams = Datagrams::open(pair, [0; 2])?;
        until_fast(pair, || connection.exchange())?;
        until_fast(pair, || datagrams.exchange())?;
        let before = pair.counters()?;
        for end in [0, 1] {
            connection.send(end, STREAM)?;
            let second = || -> Outcome {
                std::thread::sleep(Duration::from_secs(1));
                Ok(())
            };
            let pause = Duration::from_micros(500);
            datagrams.numbered(end, pause, second)?.intact()?;
        }
        let counted = pair.since(&before)?;
        for node in &counted {
            ensure!(
                learned(node, "killed") == 0 && declined(node, "no-flow") == 0,
                "flows were ended: {counted:?}"
            );
            let redirected = learned(node, "redirected");
            ensure!(
                redirected > 1000,
                "only {redirected} packets were redirected: {counted:?}"
            );
        }
        Ok(())
    })
}

/// Puts a shaper in front of a pod, and waits until packets to it go through it.
fn shape(node: &Node, pod: &Pod) -> Outcome {
    let veth = &pod.attachment().host_device;
    shell(
        node,
        &format!("tc qdisc add dev {veth} root tbf rate 10gbit burst 1m latency 100ms"),
    )?;
    let address = pod.address().to_string();
    agent(node)?.wait_status("a shaper", |status| {
        let mut pods = status.fast_path.pods.iter();
        let pod = pods.find(|pod| pod.ip == address);
        pod.and_then(|pod| pod.problem.as_ref())
            .is_some_and(|problem| problem.contains("shaper"))
    })?;
    Ok(())
}

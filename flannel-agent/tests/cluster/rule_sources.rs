//! What the rules do to packets, by each tool and in both families: one machine forwards for another, which is its pod,
//! without an agent.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use flannel_agent::{
    family::PerFamily,
    kernel::rules::{Guard, Rules, Strict, Tool, Tunnel},
};
use lab::{Netns, Node};

use crate::{
    rule_tools::{Way, cleaned, rules, with_node, write},
    support::{Outcome, Setting, shell},
};

/// Who sends and who receives: a pod of the node, a pod of another node, a machine, and the node itself.
const POD: [&str; 2] = ["10.5.9.2", "fd00:5:0:9::2"];
const REMOTE_POD: [&str; 2] = ["10.5.7.2", "fd00:5:0:7::2"];
const MACHINE: [&str; 2] = ["192.168.100.2", "fd00:100::2"];
const STRANGER: [&str; 2] = ["192.168.100.4", "fd00:100::4"];
const NODE: [&str; 2] = ["192.168.100.1", "fd00:100::1"];
/// A machine, packets to which bear kube-proxy's mark and one bit more: upstream's nftables mode does not know it then.
const MARKED: [&str; 2] = ["192.0.2.9", "2001:db8::9"];
/// How long a packet may take.
const LIMIT: Duration = Duration::from_secs(2);
/// How long to wait for one that must not come.
const BRIEF: Duration = Duration::from_millis(300);

/// Every packet has the source that upstream gives it, with every tool, in both families; and while the rules are
/// written again and again no new flow gets out with another.
pub(crate) fn sources_are_upstreams_without_a_gap(_setting: Setting) -> Outcome {
    with_node(|nodes| {
        let [node, machine, pod, stranger] = nodes else {
            unreachable!("four nodes were asked for")
        };
        connect(nodes)?;
        for way in Way::ALL {
            for enable_nftables in [false, true] {
                let rules = rules(way, enable_nftables);
                let tool = write(node, way, &rules)?;
                for family in [0, 1] {
                    let case =
                        format!("{way:?}, EnableNFTables {enable_nftables}, family {family}");
                    let outside = if enable_nftables { STRANGER } else { NODE };
                    let upstreams_nft = enable_nftables && way == Way::Nftables;
                    let marked = if upstreams_nft { NODE } else { POD };
                    // From whom, with which address, to whom, and as whom it arrives.
                    for (what, from, source, to, target, arrives) in [
                        ("pod to pod", pod, POD, machine, REMOTE_POD, POD),
                        ("pod to the world", pod, POD, machine, MACHINE, NODE),
                        ("pod, marked", pod, POD, machine, MARKED, marked),
                        ("host to pod", node, NODE, machine, REMOTE_POD, NODE),
                        ("host to the world", node, NODE, machine, MACHINE, NODE),
                        ("world to own pod", machine, MACHINE, pod, POD, MACHINE),
                        (
                            "world to another's pod",
                            stranger,
                            STRANGER,
                            machine,
                            REMOTE_POD,
                            outside,
                        ),
                    ] {
                        let (from, to) = (from.netns(), to.netns());
                        let seen = seen_source(from, source[family], to, target[family], LIMIT)
                            .with_context(|| format!("{case}: {what}"))?;
                        let wanted: IpAddr = arrives[family].parse()?;
                        ensure!(
                            seen == wanted,
                            "{case}: {what} arrives from {seen}, not {wanted}"
                        );
                    }
                }
                if !enable_nftables {
                    no_gap(nodes, &rules, &tool).with_context(|| format!("{way:?}"))?;
                }
            }
        }
        Ok(())
    })
}

/// Strict checks drop what is not from the pod's own subnet, in both families, and neighbour discovery goes on.
pub(crate) fn strict_checks_drop_false_sources(_setting: Setting) -> Outcome {
    with_node(|nodes| {
        let [node, machine, pod, _] = nodes else {
            unreachable!("four nodes were asked for")
        };
        connect(nodes)?;
        let liar = ["172.31.99.1", "fd00:bad::1"];
        shell(
            pod,
            "ip address add 172.31.99.1/32 dev lo; ip address add fd00:bad::1/128 dev lo nodad",
        )?;
        for way in Way::ALL {
            let mut rules = rules(way, false);
            // Whom a false source is masqueraded as is not the question.
            rules.masquerade = false;
            for strict in [false, true] {
                rules.guard = Guard {
                    mark: Some(0x40),
                    strict: strict.then(|| Strict {
                        networks: rules.networks,
                        subnets: rules.subnets,
                        bridge: Some("cni0".into()),
                        tunnels: PerFamily {
                            v4: tunnel("flannel.1", NODE[0]),
                            v6: tunnel("flannel-v6.1", NODE[1]),
                        },
                    }),
                };
                write(node, way, &rules)?;
                for node in [node, pod] {
                    shell(node, "ip neigh flush all; ip -6 neigh flush all")?;
                }
                for family in [0, 1] {
                    let arrives = |source: [&str; 2], limit| {
                        let (from, to) = (pod.netns(), machine.netns());
                        seen_source(from, source[family], to, MACHINE[family], limit)
                    };
                    let case = format!("{way:?}, strict {strict}, family {family}");
                    arrives(POD, LIMIT).with_context(|| format!("{case}: an honest packet"))?;
                    ensure!(
                        arrives(liar, BRIEF).is_err() == strict,
                        "{case}: a false source arrives or not"
                    );
                }
            }
            cleaned(node)?;
        }
        Ok(())
    })
}

fn tunnel(device: &str, node: &str) -> Option<Tunnel> {
    Some(Tunnel {
        device: device.into(),
        uplink: "eth0".into(),
        port: 8472,
        vni: 1,
        nodes: node.parse().into_iter().collect(),
    })
}

/// Gives the nodes their addresses and routes, and makes the third a pod of the first.
fn connect(nodes: &[Arc<Node>]) -> Outcome {
    let [node, machine, pod, stranger] = nodes else {
        unreachable!("four nodes were asked for")
    };
    for node in nodes {
        // Who forwards asks for neighbours with its link-local address, which links here do not get by themselves.
        let own = format!("ip address add fe80::{}/64 dev eth0 nodad", node.number());
        shell(node, &own)?;
    }
    shell(
        node,
        &format!(
            "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
             ip link add cni0 type veth peer name eth1 netns {}; ip link set cni0 up
             ip address add 10.5.9.1/24 dev cni0; ip address add fd00:5:0:9::1/64 dev cni0 nodad
             ip address add fe80::9:1/64 dev cni0 nodad; ip address add fd00:100::1/64 dev eth0 nodad
             ip route add 10.5.7.0/24 via 192.168.100.2; ip route add fd00:5:0:7::/64 via fd00:100::2
             ip route add 192.0.2.9 via 192.168.100.2; ip route add 2001:db8::9 via fd00:100::2
             nft add table inet marks
             nft 'add chain inet marks forward {{ type filter hook forward priority mangle; }}'
             nft add rule inet marks forward ip daddr 192.0.2.9 meta mark set 0x4001
             nft add rule inet marks forward ip6 daddr 2001:db8::9 meta mark set 0x4001",
            pod.netns().name()
        ),
    )?;
    shell(
        machine,
        "ip address add fd00:100::2/64 dev eth0 nodad
         ip address add 10.5.7.2/32 dev lo; ip address add fd00:5:0:7::2/128 dev lo nodad
         ip address add 192.0.2.9/32 dev lo; ip address add 2001:db8::9/128 dev lo nodad
         ip route add 10.5.9.0/24 via 192.168.100.1; ip route add fd00:5:0:9::/64 via fd00:100::1",
    )?;
    shell(
        pod,
        "ip link del eth0; ip link set eth1 up
         ip address add 10.5.9.2/24 dev eth1; ip address add fd00:5:0:9::2/64 dev eth1 nodad
         ip address add fe80::9:2/64 dev eth1 nodad
         ip route add default via 10.5.9.1; ip route add default via fd00:5:0:9::1",
    )?;
    shell(
        stranger,
        "ip address add fd00:100::4/64 dev eth0 nodad
         ip route add 10.5.7.0/24 via 192.168.100.1; ip route add fd00:5:0:7::/64 via fd00:100::1",
    )?;
    Ok(())
}

/// The source address that a datagram arrives with.
fn seen_source(
    from: &Netns,
    source: &str,
    to: &Netns,
    target: &str,
    limit: Duration,
) -> anyhow::Result<IpAddr> {
    let (source, target): (IpAddr, IpAddr) = (source.parse()?, target.parse()?);
    let sink = to.run(|| UdpSocket::bind((target, 0)))??;
    sink.set_read_timeout(Some(limit))?;
    let address = sink.local_addr()?;
    from.run(|| UdpSocket::bind((source, 0))?.send_to(b"who am I", address))??;
    let (_, seen) = sink.recv_from(&mut [0; 16])?;
    Ok(seen.ip())
}

/// Writes the rules many times while the pod asks from ever new ports: each question is answered, and has come with
/// the node's address.
fn no_gap(nodes: &[Arc<Node>], rules: &Rules, tool: &Tool) -> Outcome {
    /// How often the rules are written.
    const TIMES: usize = 50;
    let (node, machine, pod) = (&nodes[0], &nodes[1], &nodes[2]);
    let echo = machine
        .netns()
        .run(|| UdpSocket::bind((MACHINE[0].parse::<IpAddr>().expect("an address"), 0)))??;
    echo.set_read_timeout(Some(Duration::from_millis(100)))?;
    let target = echo.local_addr()?;
    let wanted: IpAddr = NODE[0].parse()?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| -> Outcome {
        let asker = scope.spawn(|| pod.netns().run(|| ask(target, &done)));
        let answerer = scope.spawn(|| answer(&echo, &done));
        let written = node.netns().run(|| -> Outcome {
            for _ in 0..TIMES {
                rules.install(tool)?;
            }
            Ok(())
        });
        done.store(true, Ordering::Relaxed);
        let asked = asker.join().expect("no panic")??;
        let others: Vec<IpAddr> = answerer.join().expect("no panic")?;
        written??;
        let others: Vec<_> = others.iter().filter(|seen| **seen != wanted).collect();
        ensure!(
            others.is_empty(),
            "{} of {asked} came from {others:?}",
            others.len()
        );
        ensure!(asked > TIMES, "only {asked} questions were asked");
        Ok(())
    })
}

/// Asks one question from each of ever new ports until `done`; how many. Fails on the first that is not answered.
fn ask(target: SocketAddr, done: &AtomicBool) -> anyhow::Result<usize> {
    let mut asked = 0;
    while !done.load(Ordering::Relaxed) {
        let socket = UdpSocket::bind((POD[0].parse::<IpAddr>()?, 0))?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.send_to(b"?", target)?;
        socket
            .recv(&mut [0; 8])
            .with_context(|| format!("question {asked} was not answered"))?;
        asked += 1;
    }
    Ok(asked)
}

/// Answers until `done`; the addresses that questions came from.
fn answer(echo: &UdpSocket, done: &AtomicBool) -> anyhow::Result<Vec<IpAddr>> {
    let mut seen = Vec::new();
    while !done.load(Ordering::Relaxed) {
        if let Ok((_, from)) = echo.recv_from(&mut [0; 8]) {
            seen.push(from.ip());
            echo.send_to(b"!", from)?;
        }
    }
    Ok(seen)
}

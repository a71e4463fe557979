//! The rules by each tool and for both families, on a node without agent: what the tools list, what becomes of it when
//! the tool or a prefix changes, and what the rules do to packets.

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
    kernel::rules::{self, Choice, Guard, Mode, Rules, Strict, Tool, Tunnel},
};
use lab::{Netns, Node, NodeConfig};

use crate::support::{Outcome, Setting, shell, with_unready_cluster};

/// The node's prefixes, IPv4 and IPv6: network, subnet.
const NETWORKS: [&str; 2] = ["10.5.0.0/16", "fd00:5::/48"];
const SUBNETS: [&str; 2] = ["10.5.9.0/24", "fd00:5:0:9::/64"];
/// Who sends and who receives: a pod of the node, a pod of another node, a machine, and the node itself.
const POD: [&str; 2] = ["10.5.9.2", "fd00:5:0:9::2"];
const REMOTE_POD: [&str; 2] = ["10.5.7.2", "fd00:5:0:7::2"];
const MACHINE: [&str; 2] = ["192.168.100.2", "fd00:100::2"];
const STRANGER: [&str; 2] = ["192.168.100.4", "fd00:100::4"];
const NODE: [&str; 2] = ["192.168.100.1", "fd00:100::1"];
/// A machine, packets to which bear kube-proxy's mark and one bit more: upstream's nftables mode does not know it then.
const MARKED: [&str; 2] = ["192.0.2.9", "2001:db8::9"];
/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(2);

/// What `iptables-save` shows of flannel on a node with flanneld v0.28.9, and for IPv6 what its source says.
fn recorded(family: usize, subnet: &str) -> Vec<String> {
    let network = NETWORKS[family];
    let multicast = ["224.0.0.0/4", "ff00::/8"][family];
    let mut lines = vec![
        r#"-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD"#.to_owned(),
        format!(r#"-A FLANNEL-FWD -s {network} -m comment --comment "flanneld forward" -j ACCEPT"#),
        format!(r#"-A FLANNEL-FWD -d {network} -m comment --comment "flanneld forward" -j ACCEPT"#),
        r#"-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG"#.to_owned(),
    ];
    for (condition, verdict) in [
        ("-m mark --mark 0x4000/0x4000".to_owned(), "RETURN"),
        (format!("-s {subnet} -d {network}"), "RETURN"),
        (format!("-s {network} -d {subnet}"), "RETURN"),
        (format!("! -s {network} -d {subnet}"), "RETURN"),
        (
            format!("-s {network} ! -d {multicast}"),
            "MASQUERADE --random-fully",
        ),
        (
            format!("! -s {network} -d {network}"),
            "MASQUERADE --random-fully",
        ),
    ] {
        lines.push(format!(
            r#"-A FLANNEL-POSTRTG {condition} -m comment --comment "flanneld masq" -j {verdict}"#
        ));
    }
    lines
}

/// A way to write rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Nftables,
    IptablesNft,
    IptablesLegacy,
}

impl Way {
    const ALL: [Self; 3] = [Self::Nftables, Self::IptablesNft, Self::IptablesLegacy];

    /// The program's name in the log.
    fn program(self) -> &'static str {
        match self {
            Self::Nftables => "nft",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        }
    }

    /// Makes the agent choose this variant as kubelet does, by its hint.
    fn hint(self, node: &Node) -> Outcome {
        for way in [Self::IptablesNft, Self::IptablesLegacy] {
            let program = way.program();
            let chain =
                format!("{program} -w -t mangle -%c KUBE-IPTABLES-HINT 2>/dev/null || true");
            shell(
                node,
                &chain.replace("%c", if way == self { "N" } else { "X" }),
            )?;
        }
        Ok(())
    }
}

fn rules(way: Way, enable_nftables: bool) -> Rules {
    let prefixes = |texts: [&str; 2]| {
        let [v4, v6] = texts.map(|text| text.parse().ok());
        PerFamily { v4, v6 }
    };
    Rules {
        networks: prefixes(NETWORKS),
        subnets: prefixes(SUBNETS),
        masquerade: true,
        random_fully: true,
        forward: true,
        mode: Mode {
            enable_nftables,
            choice: match way {
                Way::Nftables => Choice::Nftables,
                Way::IptablesNft | Way::IptablesLegacy => Choice::Iptables,
            },
        },
        guard: Guard::default(),
    }
}

/// Chooses the tool, writes the rules and removes all others, as the agent does.
fn write(node: &Node, way: Way, rules: &Rules) -> anyhow::Result<Tool> {
    way.hint(node)?;
    node.netns().run(|| -> anyhow::Result<Tool> {
        let tool = rules.choose_tool()?;
        ensure!(tool.program() == way.program(), "{way:?}: chose {tool:?}");
        let listing = rules.install(&tool)?;
        ensure!(rules.list(&tool)? == listing, "{way:?}: listings differ");
        rules::remove_others(&tool);
        Ok(tool)
    })?
}

/// What of flannel each tool lists on the node.
fn present(node: &Node) -> anyhow::Result<String> {
    shell(
        node,
        "for p in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do \
           $p-save 2>/dev/null | grep -e '^-A.*FLANNEL' -e '^:FLANNEL' | sed \"s/^/$p /\"; done; \
         nft list tables | grep flannel || true",
    )
}

/// The lines of `present` when this way, and no other, is in use.
fn expected(way: Way, subnets: [&str; 2]) -> Vec<String> {
    let programs = match way {
        Way::Nftables => {
            return vec![
                "table ip flannel-ipv4".into(),
                "table ip6 flannel-ipv6".into(),
            ];
        }
        Way::IptablesNft => ["iptables-nft", "ip6tables-nft"],
        Way::IptablesLegacy => ["iptables-legacy", "ip6tables-legacy"],
    };
    let mut lines = Vec::new();
    for (family, program) in programs.into_iter().enumerate() {
        let chains = [":FLANNEL-FWD - [0:0]", ":FLANNEL-POSTRTG - [0:0]"].map(str::to_owned);
        let all = chains.into_iter().chain(recorded(family, subnets[family]));
        lines.extend(all.map(|line| format!("{program} {line}")));
    }
    lines
}

fn is_alone(node: &Node, way: Way, subnets: [&str; 2]) -> Outcome {
    let text = present(node)?;
    let mut lines: Vec<&str> = text.lines().collect();
    let mut wanted = expected(way, subnets);
    lines.sort_unstable();
    wanted.sort_unstable();
    ensure!(lines == wanted, "{way:?}: got\n{text}wanted\n{wanted:#?}");
    Ok(())
}

fn with_node(test: impl FnOnce(&[Arc<Node>]) -> Outcome) -> Outcome {
    let config = lab::ClusterConfig {
        nodes: vec![NodeConfig::default(); 4],
        ..lab::ClusterConfig::default()
    };
    with_unready_cluster(config, |cluster| test(cluster.nodes()))
}

/// Each tool lists what upstream's rules list as, for both families; after a change of the tool, of a prefix or of a
/// switch nothing else is left, and cleanup leaves nothing at all.
pub(crate) fn each_way_is_alone(_setting: Setting) -> Outcome {
    with_node(|nodes| {
        let node = &nodes[0];
        for from in Way::ALL {
            for to in Way::ALL {
                for way in [from, to] {
                    let rules = rules(way, way == Way::Nftables);
                    write(node, way, &rules)?;
                    is_alone(node, way, SUBNETS)
                        .with_context(|| format!("from {from:?} to {to:?}"))?;
                }
            }
        }
        for way in Way::ALL {
            let mut rules = rules(way, false);
            let other = ["10.5.8.0/24", "fd00:5:0:8::/64"];
            rules.subnets.v4 = Some(other[0].parse()?);
            rules.subnets.v6 = Some(other[1].parse()?);
            write(node, way, &rules)?;
            is_alone(node, way, other)?;
            // Copies of a jump, as two daemons that start at once leave them.
            if way != Way::Nftables {
                let jump = "-m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG";
                shell(
                    node,
                    &format!("{} -w -t nat -A POSTROUTING {jump}", way.program()),
                )?;
            }
            write(node, way, &rules)?;
            is_alone(node, way, other)?;
            rules.masquerade = false;
            write(node, way, &rules)?;
            let text = present(node)?;
            ensure!(
                !text.contains("POSTRTG"),
                "{way:?}: masquerade left: {text}"
            );
            rules.networks.v6 = None;
            write(node, way, &rules)?;
            let text = present(node)?;
            ensure!(!text.contains("ip6tables"), "{way:?}: IPv6 left: {text}");
        }
        cleaned(node)
    })
}

/// Removes all, after a look that changes nothing, and asserts that nothing is left.
fn cleaned(node: &Node) -> Outcome {
    let remove = |dry_run: bool| {
        node.netns().run(|| {
            let mut removed = rules::remove_iptables(dry_run);
            removed.extend(rules::remove_nftables(dry_run));
            removed
        })
    };
    let before = present(node)?;
    let would = remove(true)?;
    ensure!(present(node)? == before, "a dry run has changed something");
    let removed = remove(false)?;
    ensure!(would == removed, "would {would:?}, did {removed:?}");
    let left = present(node)?;
    ensure!(left.is_empty(), "left: {left}; removed: {removed:?}");
    Ok(())
}

/// A chain that somebody else's rule leads to is emptied and left by its own jump; everything else goes.
pub(crate) fn a_chain_of_others_interest_is_emptied(_setting: Setting) -> Outcome {
    with_node(|nodes| {
        let node = &nodes[0];
        for way in [Way::IptablesNft, Way::IptablesLegacy] {
            write(node, way, &rules(way, false))?;
            let program = way.program();
            shell(
                node,
                &format!(
                    "{program} -w -t nat -N OTHERS && {program} -w -t nat -A OTHERS -j FLANNEL-POSTRTG"
                ),
            )?;
            write(node, Way::Nftables, &rules(Way::Nftables, true))?;
            let left = present(node)?;
            let left: Vec<&str> = left
                .lines()
                .filter(|line| !line.starts_with("table"))
                .collect();
            let wanted = [
                format!("{program} :FLANNEL-POSTRTG - [0:0]"),
                format!("{program} -A OTHERS -j FLANNEL-POSTRTG"),
            ];
            ensure!(left == wanted, "{way:?}: {left:#?}");
            shell(
                node,
                &format!("{program} -w -t nat -F OTHERS && {program} -w -t nat -X OTHERS"),
            )?;
            cleaned(node)?;
        }
        Ok(())
    })
}

/// The variant of iptables is the one with others' rules: kubelet's hint, then the larger number, then the system's.
pub(crate) fn the_variant_is_that_of_others_rules(_setting: Setting) -> Outcome {
    with_node(|nodes| {
        let node = &nodes[0];
        let chosen = |what: &str, way: Way| -> Outcome {
            let rules = rules(way, false);
            let tool = node.netns().run(|| rules.choose_tool())??;
            ensure!(tool.program() == way.program(), "{what}: chose {tool:?}");
            Ok(())
        };
        let system = shell(node, "iptables --version")?;
        let system = if system.contains("nf_tables") {
            Way::IptablesNft
        } else {
            Way::IptablesLegacy
        };
        chosen("no rules", system)?;
        let legacy = shell(node, "cat /proc/net/ip_tables_names")?;
        ensure!(legacy.is_empty(), "looking has made tables: {legacy}");
        for (way, other) in [
            (Way::IptablesLegacy, Way::IptablesNft),
            (Way::IptablesNft, Way::IptablesLegacy),
        ] {
            let (program, others) = (way.program(), other.program());
            shell(node, &format!("{program} -w -A OUTPUT -j ACCEPT"))?;
            chosen("a rule", way)?;
            shell(
                node,
                &format!("{others} -w -t mangle -N KUBE-IPTABLES-HINT"),
            )?;
            chosen("a hint against a rule", other)?;
            shell(
                node,
                &format!("{others} -w -t mangle -X KUBE-IPTABLES-HINT && {program} -w -D OUTPUT 1"),
            )?;
        }
        Ok(())
    })
}

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
                        let seen = seen_source(from, source[family], to, target[family])
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
                    let arrives = |source: [&str; 2]| {
                        let (from, to) = (pod.netns(), machine.netns());
                        seen_source(from, source[family], to, MACHINE[family])
                    };
                    let case = format!("{way:?}, strict {strict}, family {family}");
                    arrives(POD).with_context(|| format!("{case}: an honest packet"))?;
                    ensure!(
                        arrives(liar).is_err() == strict,
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
fn seen_source(from: &Netns, source: &str, to: &Netns, target: &str) -> anyhow::Result<IpAddr> {
    let (source, target): (IpAddr, IpAddr) = (source.parse()?, target.parse()?);
    let sink = to.run(|| UdpSocket::bind((target, 0)))??;
    sink.set_read_timeout(Some(LIMIT))?;
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

//! The lab itself: clusters of stock nodes alone, and what is left when they go.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use lab::{
    AgentConfig, Cluster, ClusterConfig, Lifetime, Netns, NodeConfig, Pod, Result, Underlay,
    capture::{Capture, Direction, Frame},
    counters::Protocols,
    netns, process, signals,
    state::{self, LabId},
    traffic::{
        icmp::Pinger,
        rtt::{self, EchoServer, Transport},
        tcp::{self, TcpFlow, TcpPlan},
        tools::{self, IperfPlan, PingPlan},
        udp::{self, UdpPlan, UdpReport},
    },
    wait,
};
use libtest_mimic::{Arguments, Failed, Trial};

/// Names the agent that the tests start.
const AGENT_VARIABLE: &str = "FLANNEL_AGENT";

/// Makes this program build a cluster and wait, for tests that end it: `keep` to let the cluster stay.
const CHILD_VARIABLE: &str = "LAB_TEST_CHILD";
const KEEP: &str = "keep";

type Test = fn() -> Result<()>;

fn main() -> ExitCode {
    signals::tear_down_on_signals(signals::exit_code).expect("signal handlers can be installed");
    if let Some(keep) = std::env::var_os(CHILD_VARIABLE) {
        return stay_up(keep == KEEP);
    }
    let tests: [(&str, Test); 13] = [
        ("a_signal_leaves_nothing", after_a_signal),
        (
            "leftovers_of_a_killed_process_go_with_the_next_start",
            after_a_kill,
        ),
        ("a_kept_cluster_outlives_its_process", after_keeping),
        ("agents_start_die_and_come_back", agent_lifecycle),
        (
            "stock_vxlan_nodes_reach_each_other_also_through_the_router",
            stock_vxlan,
        ),
        (
            "stock_host_gw_nodes_reach_each_other_with_service_rules",
            stock_host_gw,
        ),
        ("stock_nodes_follow_leases", stock_follows_leases),
        ("large_packets_pass_without_offloads", without_offloads),
        (
            "clusters_in_one_process_are_separate_and_leave_nothing",
            side_by_side,
        ),
        ("pods_come_and_go", pods_come_and_go),
        (
            "generators_find_nothing_on_a_sound_network",
            generators_sound,
        ),
        ("generators_find_loss_resets_and_stalls", generators_unsound),
        ("captured_frames_are_flannels_vxlan", capture_vxlan),
    ];
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: network namespaces need root");
    }
    let has_agent = std::env::var_os(AGENT_VARIABLE).is_some();
    if !has_agent {
        println!("skipped: tests of agents need {AGENT_VARIABLE}=<path of flannel-agent>");
    }
    let trials = tests.into_iter().map(|(name, test)| {
        let runs = root && (has_agent || !name.starts_with("agents_"));
        Trial::test(name, move || {
            test().map_err(|error| Failed::from(error.to_string()))
        })
        .with_ignored_flag(!runs)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn cluster(nodes: Vec<NodeConfig>, pods: usize) -> ClusterConfig {
    ClusterConfig {
        nodes,
        pods,
        ..ClusterConfig::default()
    }
}

fn host_gw() -> String {
    r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#.to_owned()
}

fn ping(from: &Netns, to: &Pod, options: &[&str]) -> Result<String> {
    let address = to.address().to_string();
    process::run(
        Some(from),
        "ping",
        &[&["-c", "1", "-W", "2"], options, &[&address]].concat(),
    )
}

fn all_reach_all(cluster: &Cluster) -> Result<()> {
    let pods: Vec<Pod> = cluster
        .nodes()
        .iter()
        .flat_map(|node| node.pods())
        .collect();
    assert!(pods.len() > 1);
    for from in &pods {
        for to in &pods {
            ping(from.netns(), to, &[])?;
        }
    }
    Ok(())
}

fn stock_vxlan() -> Result<()> {
    let nodes = vec![
        NodeConfig::stock(),
        NodeConfig::stock(),
        NodeConfig::stock().routed(),
    ];
    all_reach_all(&Cluster::start(cluster(nodes, 2))?)
}

fn stock_host_gw() -> Result<()> {
    let config = cluster(vec![NodeConfig::stock(), NodeConfig::stock()], 1);
    let cluster = Cluster::start(ClusterConfig {
        network: host_gw(),
        services: 200,
        ..config
    })?;
    all_reach_all(&cluster)?;
    let rules = process::run(Some(cluster.node(1).netns()), "iptables-save", &[])?;
    assert_eq!(rules.matches("-A KUBE-SERVICES -d").count(), 200, "{rules}");
    let jumps = rules
        .lines()
        .filter(|line| line.starts_with("-A POSTROUTING"))
        .collect::<Vec<_>>();
    assert!(
        jumps[0].ends_with("KUBE-POSTROUTING") && jumps[1].ends_with("FLANNEL-POSTRTG"),
        "{jumps:?}"
    );
    Ok(())
}

fn stock_follows_leases() -> Result<()> {
    let mut cluster = Cluster::start(cluster(vec![NodeConfig::stock()], 1))?;
    let second = cluster.add_node(&NodeConfig::stock())?;
    let pod = second.add_pod()?;
    let first = cluster.node(1).pods()[0].clone();
    ping(first.netns(), &pod, &[])?;

    second.stock().expire()?;
    cluster.node(1).stock().refresh()?;
    let show = |command: &str| process::run(Some(cluster.node(1).netns()), "sh", &["-c", command]);
    for command in [
        "ip route show dev flannel.1",
        "bridge fdb show dev flannel.1",
        "ip neighbour show dev flannel.1",
    ] {
        assert_eq!(show(command)?, "", "{command} after the only peer has gone");
    }
    assert!(ping(first.netns(), &pod, &[]).is_err());

    let third = cluster.add_node(&NodeConfig::stock())?;
    assert_eq!((third.number(), cluster.etcd().leases()?.len()), (3, 2));
    let pod = third.add_pod()?;
    ping(first.netns(), &pod, &[])?;
    cluster.remove_node(3)?;
    assert!(!third.netns().path().exists() && !pod.netns().path().exists());
    assert!(ping(first.netns(), &pod, &[]).is_err());
    assert_eq!(
        cluster.etcd().leases()?.len(),
        2,
        "the lease of a node without power stays"
    );
    Ok(())
}

fn without_offloads() -> Result<()> {
    let config = cluster(vec![NodeConfig::stock(), NodeConfig::stock()], 1);
    let underlay = Underlay {
        offloads: false,
        mtu: 1400,
    };
    let cluster = Cluster::start(ClusterConfig { underlay, ..config })?;
    let (from, to) = (&cluster.node(1).pods()[0], &cluster.node(2).pods()[0]);
    // 1400 less 50 for VXLAN, 20 for IPv4 and 8 for ICMP.
    ping(from.netns(), to, &["-M", "do", "-s", "1322"])?;
    assert!(ping(from.netns(), to, &["-M", "do", "-s", "1323"]).is_err());
    let features = process::run(Some(cluster.node(1).netns()), "ethtool", &["-k", "eth0"])?;
    assert!(
        features.contains("tcp-segmentation-offload: off"),
        "{features}"
    );
    Ok(())
}

fn side_by_side() -> Result<()> {
    let nodes = || cluster(vec![NodeConfig::stock(), NodeConfig::stock()], 1);
    let clusters = lab::cluster::in_parallel(&[(), ()], |()| Cluster::start(nodes()))?;
    let ids = [clusters[0].id(), clusters[1].id()];
    assert_ne!(ids[0], ids[1]);
    clusters.iter().try_for_each(all_reach_all)?;

    let namespaces: Vec<_> = clusters
        .iter()
        .flat_map(|cluster| cluster.nodes())
        .map(|node| node.netns().path().to_owned())
        .collect();
    assert!(namespaces.iter().all(|path| path.exists()));
    drop(clusters);
    for path in namespaces {
        assert!(!path.exists(), "{} is left", path.display());
    }
    for id in ids {
        assert!(!id.directory().exists() && !id.pin_directory().exists());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        assert!(
            !mounts.contains(&format!("/{} ", id.namespace("sw"))),
            "{mounts}"
        );
    }
    Ok(())
}

fn pods_come_and_go() -> Result<()> {
    let cluster = Cluster::start(cluster(vec![NodeConfig::stock(), NodeConfig::stock()], 1))?;
    let node = cluster.node(1);
    let pod = node.add_pod()?;
    assert_eq!(node.pods().len(), 2);
    assert!(node.subnet_env()?.subnet.contains(pod.address()));
    ping(cluster.node(2).pods()[0].netns(), &pod, &[])?;
    let (path, device) = (
        pod.netns().path().to_owned(),
        pod.attachment().host_device.clone(),
    );
    assert!(process::run(Some(node.netns()), "ip", &["link", "show", &device]).is_ok());
    node.delete_pod(pod)?;
    assert!(!path.exists());
    assert!(process::run(Some(node.netns()), "ip", &["link", "show", &device]).is_err());
    assert!(
        Path::new(state::DIRECTORY).exists(),
        "the cluster is still there"
    );
    Ok(())
}

/// Two stock nodes with one pod each.
fn pair() -> Result<(Cluster, Pod, Pod)> {
    let cluster = Cluster::start(cluster(vec![NodeConfig::stock(), NodeConfig::stock()], 1))?;
    let (from, to) = (
        cluster.node(1).pods()[0].clone(),
        cluster.node(2).pods()[0].clone(),
    );
    Ok((cluster, from, to))
}

fn generators_sound() -> Result<()> {
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

fn generators_unsound() -> Result<()> {
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

fn capture_vxlan() -> Result<()> {
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

fn agent_lifecycle() -> Result<()> {
    let config =
        AgentConfig::new(std::env::var_os(AGENT_VARIABLE).expect("tests without it are skipped"));
    let nodes = vec![NodeConfig::agent(&config), NodeConfig::stock()];
    let cluster = Cluster::start(cluster(nodes, 1))?;
    all_reach_all(&cluster)?;
    let agent = cluster.node(1).agent();
    let first = agent.status()?;
    assert_eq!((first.ready, first.peers.len()), (true, 1));
    let lease = first.lease.expect("a ready agent has a lease");
    assert_eq!(
        lease.subnet.parse::<lab::lease::Subnet>()?,
        cluster.node(1).subnet_env()?.subnet
    );

    agent.kill()?;
    assert!(agent.check_running().is_err() && agent.status().is_err());
    all_reach_all(&cluster)?;
    agent.start()?;
    let second = agent.wait_ready()?;
    assert_ne!(second.pid, first.pid);
    assert_eq!(
        second.lease.map(|lease| lease.subnet),
        Some(lease.subnet),
        "the lease is taken over"
    );

    agent.stop()?;
    agent.configure(|config| config.arguments.push("--no-such-option".to_owned()));
    agent.start()?;
    let error = agent
        .wait_ready()
        .expect_err("no agent knows this option")
        .to_string();
    assert!(
        error.contains("no-such-option"),
        "the error shows the log: {error}"
    );
    assert!(agent.log().contains("no-such-option"));
    Ok(())
}

/// The child of the tests below: builds a cluster, tells its number, and waits, or ends and leaves the cluster up.
fn stay_up(keep: bool) -> ExitCode {
    let lifetime = if keep {
        Lifetime::Outlives
    } else {
        Lifetime::Bound
    };
    let config = cluster(vec![NodeConfig::stock(), NodeConfig::stock()], 1);
    let mut cluster =
        Cluster::start(ClusterConfig { lifetime, ..config }).expect("the cluster starts");
    if keep {
        cluster.keep().expect("the cluster can be kept");
    }
    println!("{}", cluster.id());
    if !keep {
        thread::sleep(Duration::from_secs(60));
    }
    ExitCode::SUCCESS
}

/// Starts the child and waits until its cluster is up.
fn child(mode: &str) -> (Child, LabId) {
    let program = std::env::current_exe().expect("a program has a path");
    let mut command = Command::new(program);
    command.env(CHILD_VARIABLE, mode).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the test can start itself");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe was asked for"))
        .read_line(&mut line)
        .expect("a line comes");
    let id = line.trim().parse().expect("the line is a number");
    (child, id)
}

/// What bears the lab's number, by path.
fn traces(id: LabId) -> Vec<PathBuf> {
    let prefix = id.namespace("");
    let namespaces = fs::read_dir(netns::DIRECTORY)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let mut traces: Vec<_> = namespaces
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        })
        .collect();
    traces.extend(
        [id.directory(), id.pin_directory()]
            .into_iter()
            .filter(|path| path.exists()),
    );
    traces
}

/// The processes that the lab recorded.
fn processes(id: LabId) -> Vec<String> {
    let text = fs::read_to_string(id.directory().join("processes")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect()
}

/// Whether a process runs; a zombie does not.
fn runs(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn after_a_signal() -> Result<()> {
    for signal in ["TERM", "INT", "HUP"] {
        let (mut child, id) = child("bound");
        let processes = processes(id);
        assert!(!processes.is_empty() && traces(id).len() > 4);
        process::run(
            None,
            "kill",
            &[&format!("-{signal}"), &child.id().to_string()],
        )?;
        let status = child.wait().expect("a child can be waited for");
        assert!(status.code().is_some_and(|code| code > 128), "{status}");
        assert_eq!(traces(id), Vec::<PathBuf>::new(), "after SIG{signal}");
        assert!(!processes.iter().any(|pid| runs(pid)), "after SIG{signal}");
    }
    Ok(())
}

fn after_a_kill() -> Result<()> {
    let (mut child, id) = child("bound");
    let processes = processes(id);
    child
        .kill()
        .and_then(|()| child.wait())
        .expect("a child can be killed");
    // Another test's start may have done this already.
    state::reap_stale()?;
    assert_eq!(traces(id), Vec::<PathBuf>::new());
    assert!(!processes.iter().any(|pid| runs(pid)));
    Ok(())
}

fn after_keeping() -> Result<()> {
    let (mut child, id) = child(KEEP);
    assert!(child.wait().expect("a child can be waited for").success());
    state::reap_stale()?;
    let processes = processes(id);
    assert!(
        traces(id).len() > 4 && processes.iter().all(|pid| runs(pid)),
        "{processes:?}"
    );
    // `state::clean` would remove the clusters that others keep, too. One whose processes are dead is not kept.
    process::run(
        None,
        "kill",
        &[
            &["-KILL"],
            &processes.iter().map(String::as_str).collect::<Vec<_>>()[..],
        ]
        .concat(),
    )?;
    wait::until("the end of the lab", Duration::from_secs(5), || {
        state::reap_stale()?;
        let left = traces(id);
        Ok(if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        })
    })?;
    Ok(())
}

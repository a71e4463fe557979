//! The agent as a process: how it ends, and what it tells systemd, probes, Prometheus and whoever reads its log.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixDatagram,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lab::{
    Agent, Error, Node, NodeConfig,
    etcd::PREFIX,
    exposition::{self, Families},
    process,
};
use rustix::process::Signal;

use crate::support::{
    AGENT, Outcome, PROMPT, Path, Setting, eventually, shell, udp_arrives, with_cluster,
    with_unready_cluster,
};

/// Where probes ask.
const HEALTH: &str = "127.0.0.1:10256";
/// How long a requested stop may take, whatever the agent waits for.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// What cannot work ends with the documented status and one line.
pub(crate) fn exit_statuses(setting: Setting) -> Outcome {
    /// Arguments, the exit status, and what is said.
    const ENDS: [(&[&str], i32, &[&str]); 14] = [
        (&["-version"], 0, &["flannel-agent"]),
        (&["-h"], 0, &["Exit status"]),
        (&["-unknown"], 2, &["--unknown"]),
        (
            &["-subnet-lease-renew-margin=1440"],
            2,
            &["--subnet-lease-renew-margin", "1 to 1439"],
        ),
        (&["-ip-masq=maybe"], 2, &["--ip-masq", "true or false"]),
        (&["-etcd-keyfile=/k"], 1, &["--etcd-certfile is missing"]),
        (&["-etcd-certfile=/c"], 1, &["--etcd-keyfile is missing"]),
        (
            &["-etcd-cafile=/no/such/ca"],
            1,
            &["--etcd-cafile = /no/such/ca", "No such file"],
        ),
        (
            &["-etcd-endpoints=ftp://a"],
            1,
            &["--etcd-endpoints", "ftp://a"],
        ),
        (
            &["-healthz-ip=192.0.2.1", "-healthz-port=1"],
            1,
            &["--healthz-ip = 192.0.2.1", "--healthz-port = 1"],
        ),
        (&["-iface=nosuch"], 1, &["--iface = nosuch", "eth0"]),
        (
            &["-kube-subnet-mgr"],
            1,
            &["--kube-subnet-mgr", "NODE_NAME", "POD_NAMESPACE"],
        ),
        (
            &["-kube-subnet-mgr", "-kube-annotation-prefix=org/a"],
            1,
            &["--kube-annotation-prefix = org/a"],
        ),
        (
            &["-kube-subnet-mgr", "-kube-api-url=ftp://a"],
            1,
            &["--kube-api-url = ftp://a"],
        ),
    ];
    with_unready_cluster(
        setting.cluster(vec![setting.node(), NodeConfig::default()]),
        |cluster| {
            let (node, etcd) = (cluster.node(2), cluster.etcd().endpoint());
            for (arguments, code, parts) in ENDS {
                let mut command = Command::new(AGENT);
                command
                    .arg("run")
                    .arg(format!("--etcd-endpoints={etcd}"))
                    .args(own_files(node))
                    .args(arguments)
                    .env("RUST_LOG", "off");
                let (ended, output) =
                    match process::run_command(Some(node.netns()), &mut command, "") {
                        Ok(output) => (Some(0), output),
                        Err(Error::Command { status, output, .. }) => (status.code(), output),
                        Err(error) => return Err(error.into()),
                    };
                ensure!(ended == Some(code), "{arguments:?}: {ended:?}: {output}");
                // The version goes to standard error, which is not kept on success.
                let said =
                    arguments == ["-version"] || parts.iter().all(|part| output.contains(part));
                ensure!(said, "{arguments:?}: {output}");
                let lines = output.lines().filter(|line| !line.is_empty()).count();
                ensure!(
                    code != 1 || lines == 1,
                    "{arguments:?}: {lines} lines: {output}"
                );
            }
            Ok(())
        },
    )
}

/// Options that keep an agent of no lab's to the node's directory.
pub(crate) fn own_files(node: &Node) -> [String; 4] {
    let file = |name: &str| node.directory().join(name).display().to_string();
    [
        format!("--subnet-file={}", file("subnet.env")),
        format!("--status-socket={}", file("other.sock")),
        format!("--pin-dir={}", file("pins")),
        "--fast-path=off".to_owned(),
    ]
}

/// Whatever it waits for, a signal ends it at once, with success; where it hangs, the second one does.
pub(crate) fn stops(setting: Setting) -> Outcome {
    with_unready_cluster(setting.cluster(vec![setting.node()]), |cluster| {
        let node = cluster.node(1);
        let agent = node.agent();
        agent.stop()?;
        for endpoint in [
            "http://127.0.0.1:1",
            // Nobody answers.
            "http://192.168.100.77:2379",
        ] {
            agent.configure(|config| {
                config.arguments = vec![format!("--etcd-endpoints={endpoint}")];
            });
            let before = agent.log().len();
            agent.start()?;
            eventually("a start", PROMPT, || {
                let log = agent.log();
                Ok(log[before..].contains("starting").then_some(()).ok_or(log))
            })?;
            thread::sleep(Duration::from_millis(300));
            for signal in [Signal::TERM, Signal::INT] {
                if signal == Signal::INT {
                    agent.start()?;
                    thread::sleep(Duration::from_millis(300));
                }
                let asked = Instant::now();
                agent.signal(signal)?;
                let code = agent.wait_end(STOP_LIMIT)?;
                ensure!(
                    code == Some(0),
                    "{endpoint}, {signal:?}: {code:?} after {:?}",
                    asked.elapsed()
                );
            }
        }
        // It reads its former subnet from a pipe that nobody writes to.
        fs::remove_file(agent.subnet_file())?;
        shell(node, &format!("mkfifo {}", agent.subnet_file().display()))?;
        agent.configure(|config| config.arguments.clear());
        agent.start()?;
        thread::sleep(Duration::from_secs(1));
        agent.signal(Signal::TERM)?;
        thread::sleep(Duration::from_millis(500));
        agent.check_running().context("it does not hang")?;
        agent.signal(Signal::TERM)?;
        let code = agent.wait_end(STOP_LIMIT)?;
        ensure!(code.is_none(), "{code:?} instead of a death by signal");
        Ok(fs::remove_file(agent.subnet_file())?)
    })
}

/// systemd hears of readiness, of what is wrong, and of the end.
pub(crate) fn tells_systemd(setting: Setting) -> Outcome {
    with_unready_cluster(setting.cluster(vec![setting.node()]), |cluster| {
        let node = cluster.node(1);
        let agent = node.agent();
        agent.stop()?;
        let path = node.directory().join("notify");
        let socket = UnixDatagram::bind(&path)?;
        socket.set_read_timeout(Some(PROMPT))?;
        let heard = |wanted: &str| -> Outcome {
            let mut messages = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer) {
                let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if message.contains(wanted) {
                    return Ok(());
                }
                messages.push(message);
            }
            anyhow::bail!("{wanted:?} is not among {messages:?}")
        };
        agent.configure(|config| {
            let value = path.display().to_string();
            config.environment.push(("NOTIFY_SOCKET".to_owned(), value));
        });
        agent.start()?;
        heard("READY=1")?;
        cluster.etcd().stop()?;
        heard("STATUS=etcd at")?;
        cluster.etcd().start()?;
        heard("STATUS=ready")?;
        agent.stop()?;
        heard("STOPPING=1")
    })
}

/// Probes get upstream's bodies, and metrics are well-formed and true.
pub(crate) fn probes_and_metrics(setting: Setting) -> Outcome {
    let mut agent = setting.agent();
    agent.arguments.push("--healthz-ip=127.0.0.1".to_owned());
    agent.arguments.push("--healthz-port=10256".to_owned());
    let nodes = vec![NodeConfig::agent(&agent), setting.node()];
    with_cluster(setting.cluster(nodes), |cluster| {
        let (node, other) = (cluster.node(1), cluster.node(2));
        for (path, body) in [
            ("/healthz", "flanneld is running"),
            ("/readyz", "flanneld is ready"),
        ] {
            let answer = get(node, path)?;
            ensure!(
                answer.ends_with(&format!("\r\n\r\n{body}")),
                "{path}: {answer}"
            );
        }
        let families = metrics(node)?;
        let value = |families: &Families, name: &str, labels: &[(&str, &str)]| {
            let value = families.get(name).and_then(|family| family.get(labels));
            value.with_context(|| format!("{name} {labels:?}"))
        };
        for (name, expected) in [
            ("flannel_ready", 1.0),
            ("flannel_peers", 1.0),
            ("flannel_unreached_peers", 0.0),
            ("flannel_skipped_leases", 0.0),
            ("flannel_problems", 0.0),
        ] {
            ensure!(
                value(&families, name, &[])? == expected,
                "{name}: {families:?}"
            );
        }
        let expires = value(&families, "flannel_lease_expires_seconds", &[])?;
        ensure!((86_000.0..=86_400.0).contains(&expires), "{expires}");
        let resident = value(&families, "process_resident_memory_bytes", &[])?;
        ensure!(resident > 1e6, "{resident}");
        ensure!(
            families["flannel_object_changes_total"].sum() >= 2.0,
            "{families:?}"
        );
        ensure!(
            families["flannel_wrong_objects"].sum() == 0.0,
            "{families:?}"
        );

        udp_arrives(&node.pods()[0], &other.pods()[0], 2000, 64)?;
        let later = metrics(node)?;
        for (name, family) in families.iter().filter(|(name, _)| name.ends_with("_total")) {
            ensure!(
                later[name].sum() >= family.sum(),
                "{name} has shrunk: {later:?}"
            );
        }
        let packets = later["flannel_fast_path_packets_total"].sum();
        ensure!(
            (packets >= 500.0) == (setting.path == Path::Fast),
            "{packets} fast packets"
        );

        // What is broken and repaired is counted.
        let route = [("kind", "route")];
        let changes = value(&later, "flannel_object_changes_total", &route)?;
        let subnet = other.subnet_env()?.subnet;
        shell(node, &format!("ip route delete {subnet}"))?;
        eventually("a repair", PROMPT, || {
            let now = metrics(node)?;
            let repaired = value(&now, "flannel_object_changes_total", &route)? > changes;
            Ok(repaired.then_some(()).ok_or_else(|| format!("{now:?}")))
        })?;
        let key = format!("{PREFIX}/subnets/garbage");
        cluster.etcd().put(&key, "{}")?;
        eventually("a skipped key", PROMPT, || {
            let now = metrics(node)?;
            let counted = value(&now, "flannel_skipped_leases", &[])? == 1.0
                && value(&now, "flannel_etcd_watch_events_total", &[])? >= 1.0;
            Ok(counted.then_some(()).ok_or_else(|| format!("{now:?}")))
        })?;
        let errors = metrics(node)?["flannel_etcd_errors_total"].sum();
        cluster.etcd().stop()?;
        eventually("errors", PROMPT, || {
            let now = metrics(node)?;
            let counted = now["flannel_etcd_errors_total"].sum() > errors
                && value(&now, "flannel_problems", &[])? >= 1.0
                && value(&now, "flannel_peers", &[])? == 1.0;
            Ok(counted.then_some(()).ok_or_else(|| format!("{now:?}")))
        })?;
        cluster.etcd().start()?;
        eventually("another connection", 2 * PROMPT, || {
            let now = metrics(node)?;
            let counted = value(&now, "flannel_etcd_connections_total", &[])? >= 2.0
                && value(&now, "flannel_problems", &[])? == 0.0;
            Ok(counted.then_some(()).ok_or_else(|| format!("{now:?}")))
        })
    })
}

/// The whole answer to a GET on the node's health port.
fn get(node: &Node, path: &str) -> anyhow::Result<String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(HEALTH)?;
        stream.set_read_timeout(Some(PROMPT))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {HEALTH}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    Ok(node.netns().run(ask)??)
}

fn metrics(node: &Node) -> anyhow::Result<Families> {
    let answer = get(node, "/metrics")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    ensure!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    ensure!(head.contains("text/plain; version=0.0.4"), "{head}");
    exposition::parse(body).map_err(anyhow::Error::msg)
}

/// A start with a thousand leases is a few lines, each an event.
pub(crate) fn logs_are_brief(setting: Setting) -> Outcome {
    const LEASES: u32 = 1000;
    /// Lines that a start may take.
    const LINES: usize = 30;
    with_unready_cluster(setting.cluster(vec![setting.node()]), |cluster| {
        let agent = cluster.node(1).agent();
        agent.stop()?;
        cluster.etcd().put_config(
            r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.0.1.0","SubnetMax":"10.0.255.0","Backend":{"Type":"vxlan"}}"#,
        )?;
        put_leases(cluster.etcd(), LEASES)?;
        for json in [false, true] {
            agent.configure(|config| {
                let format = if json {
                    "--log-format=json"
                } else {
                    "--log-format=text"
                };
                config.arguments = vec![format.to_owned()];
            });
            let before = agent.log().len();
            agent.start()?;
            agent.wait_status("all peers", |status| {
                status.peers.len() == LEASES as usize
                    && status.objects.iter().all(|o| o.state == "ok")
            })?;
            stop(agent)?;
            let log = agent.log();
            let lines: Vec<_> = log[before..].lines().collect();
            ensure!(
                lines.len() < LINES && lines.len() > 3,
                "{} lines: {lines:#?}",
                lines.len()
            );
            for line in lines {
                let event = if json {
                    let event: serde_json::Value =
                        serde_json::from_str(line).context(line.to_owned())?;
                    event["level"].is_string() && event["fields"]["message"].is_string()
                } else {
                    // A time, as in 2026-01-31T…, and a level.
                    line.starts_with("20")
                        && [" INFO ", " WARN "]
                            .iter()
                            .any(|level| line.contains(level))
                };
                ensure!(event, "no event: {line}");
            }
        }
        Ok(())
    })
}

fn stop(agent: &Agent) -> Outcome {
    Ok(agent.stop()?)
}

/// Writes so many leases, in transactions as large as etcd takes them.
fn put_leases(etcd: &lab::etcd::Etcd, count: u32) -> Outcome {
    const TRANSACTION: usize = 128;
    let numbers: Vec<u32> = (0..count).collect();
    for numbers in numbers.chunks(TRANSACTION) {
        let puts: String = numbers
            .iter()
            .map(|number| {
                let [_, _, high, low] = number.to_be_bytes();
                let value = format!(
                    r#"{{"PublicIP":"172.16.{high}.{low}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0e:de:00:00:{high:02x}:{low:02x}"}}}}"#
                );
                // Debug quotes as etcdctl reads it: as Go.
                format!("put {PREFIX}/subnets/10.{}.{low}.0-24 {value:?}\n", 64 + high)
            })
            .collect();
        // Conditions, then what is done if they hold, then otherwise.
        etcd.ctl_with_input(&["txn"], &format!("\n{puts}\n\n"))?;
    }
    Ok(())
}

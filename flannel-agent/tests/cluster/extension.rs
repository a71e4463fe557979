//! The extension backend: commands of the operator's connect the nodes, and those that fail or hang harm no other.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use lab::{AgentConfig, ClusterConfig, Error, NodeConfig, etcd::PREFIX, process};
use serde_json::{Value, json};

use crate::{
    pair::Pair,
    process::own_files,
    suites::Test,
    support::{
        AGENT, Outcome, PROMPT, Setting, eventually, shell, udp_arrives, with_cluster,
        with_unready_cluster,
    },
};

/// All tests.
pub(crate) const TESTS: &[(&str, Test)] = &[
    ("commands_connect_pods", connect_pods),
    ("commands_that_fail_or_hang_harm_no_other", harm_no_other),
    ("a_start_without_its_commands_is_none", start_fails),
];

/// Packets of one check.
const PACKETS: u64 = 200;
/// How long a second try may take.
const RETRIED: Duration = Duration::from_secs(20);

/// What the commands are: a script that notes how it was called, and routes as host-gw does.
const SCRIPT: &str = r#"#!/bin/sh
read data
echo "$1 $SUBNET|$IPV6SUBNET $PUBLIC_IP|$PUBLIC_IPV6 $NETWORK [$data]" >> "$LOG"
case "$1 $SUBNET" in
"add 10.5.210.0/24") [ -e "$LOG.luck" ] || { echo line; echo "no luck"; exit 1; } ;;
"add 10.5.211.0/24") echo $$ > "$LOG.hangs"; sleep 1000 ;;
add*) ip route replace "$2" via "$PUBLIC_IP" ;;
remove*) ip route delete "$2" ;;
esac
"#;

/// A folder with the script; gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("flannel-extension-{}-{number}", std::process::id());
        let folder = Self(env::temp_dir().join(name));
        fs::create_dir(&folder.0)?;
        fs::write(folder.script(), SCRIPT)?;
        fs::set_permissions(folder.script(), fs::Permissions::from_mode(0o755))?;
        Ok(folder)
    }

    fn script(&self) -> PathBuf {
        self.0.join("script")
    }

    /// What the commands of a node note.
    fn log(&self, node: usize) -> PathBuf {
        self.0.join(format!("log{node}"))
    }

    fn lines(&self, node: usize) -> Vec<String> {
        let text = fs::read_to_string(self.log(node)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn node(&self, setting: Setting, number: usize) -> NodeConfig {
        let log = self.log(number).display().to_string();
        NodeConfig::agent(&AgentConfig {
            environment: vec![("LOG".into(), log)],
            ..setting.agent()
        })
    }

    fn config(&self, setting: Setting) -> ClusterConfig {
        let script = self.script().display().to_string();
        ClusterConfig {
            network: network(&json!({
                "Type": "extension",
                "PreStartupCommand": "ip -brief link show dev eth0",
                "PostStartupCommand": format!("{script} post"),
                "SubnetAddCommand": format!("  {script}  add ${{SUBNET}}"),
                "SubnetRemoveCommand": format!("{script} remove $SUBNET"),
            })),
            ..setting.cluster(vec![self.node(setting, 1), self.node(setting, 2)])
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A temporary folder that is left is no reason to fail.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn network(backend: &Value) -> String {
    json!({"Network": "10.5.0.0/16", "Backend": backend}).to_string()
}

fn lease_key(subnet: &str) -> String {
    format!("{PREFIX}/subnets/{subnet}")
}

fn lease(data: &str) -> String {
    format!(
        r#"{{"PublicIP":"192.168.100.2","PublicIPv6":null,"BackendType":"extension","BackendData":"{data}"}}"#
    )
}

/// Each command is run as upstream runs it, with the leases' data as they were at the time; nothing is run for what has
/// not changed, and a start adds all again.
fn connect_pods(setting: Setting) -> Outcome {
    let folder = Folder::new()?;
    with_cluster(folder.config(setting), |cluster| {
        let pair = Pair::of(cluster)?;
        let subnets = [pair.nodes[0].subnet_env()?, pair.nodes[1].subnet_env()?]
            .map(|env| env.subnet.to_string());
        let data = shell(pair.nodes[1], "ip -brief link show dev eth0")?;
        let data = data.trim();
        let value = cluster
            .etcd()
            .get_prefix(&lease_key(&subnets[1].replace('/', "-")))?;
        let (_, value) = value.first().context("a lease")?;
        let read: Value = serde_json::from_str(value)?;
        ensure!(
            read["BackendType"] == "extension" && read["BackendData"] == data,
            "{value} for {data:?}"
        );
        // As Go writes it.
        ensure!(value.contains(r"\u003c") && !value.contains('<'), "{value}");

        let status = pair.nodes[0].agent().status()?;
        ensure!(
            status
                .peers
                .iter()
                .all(|peer| peer.via == "extension" && peer.problem.is_none()),
            "{:?}",
            status.peers
        );

        let post = format!("post {}| 192.168.100.1| 10.5.0.0/16 []", subnets[0]);
        let add = format!("add {}| 192.168.100.2|  [{data}]", subnets[1]);
        logged(&folder, &[&post, &add])?;
        udp_arrives(&pair.pods[0], &pair.pods[1], PACKETS, 64)?;

        let etcd = cluster.etcd();
        let other = lease_key("10.5.200.0-24");
        let line =
            |verb: &str, data: &str| format!("{verb} 10.5.200.0/24| 192.168.100.2|  [{data}]");
        etcd.put(&other, &lease("one"))?;
        let one = line("add", "one");
        logged(&folder, &[&post, &add, &one])?;
        // The same again is no news; another one is.
        etcd.put(&other, &lease("one"))?;
        etcd.put(&other, &lease("two"))?;
        let (gone, two) = (line("remove", "one"), line("add", "two"));
        logged(&folder, &[&post, &add, &one, &gone, &two])?;
        eventually("its route", PROMPT, || {
            let routes = shell(pair.nodes[0], "ip route show")?;
            Ok(routes
                .contains("10.5.200.0/24 via 192.168.100.2")
                .then_some(())
                .ok_or(routes))
        })?;
        // Of another backend: not the commands' business.
        etcd.put(
            &lease_key("10.5.201.0-24"),
            r#"{"PublicIP":"192.168.100.3","PublicIPv6":null,"BackendType":"host-gw"}"#,
        )?;
        etcd.delete(&other)?;
        let two_gone = line("remove", "two");
        logged(&folder, &[&post, &add, &one, &gone, &two, &two_gone])?;
        let status = pair.nodes[0].agent().status()?;
        ensure!(
            status
                .problems
                .iter()
                .all(|problem| problem.contains("10.5.201.0/24"))
                && !status.problems.is_empty(),
            "{:?}",
            status.problems
        );

        fs::write(folder.log(1), "")?;
        pair.nodes[0].agent().restart()?;
        logged(&folder, &[&post, &add])?;
        udp_arrives(&pair.pods[1], &pair.pods[0], PACKETS, 64).map(drop)
    })
}

/// Waits until the commands of the first node have noted exactly these lines.
fn logged(folder: &Folder, lines: &[&str]) -> Outcome {
    eventually("commands", PROMPT, || {
        let now = folder.lines(1);
        Ok((now == lines).then_some(()).ok_or(format!("{now:#?}")))
    })
}

/// One command fails, another hangs: other nodes are added and removed meanwhile, the one that fails is named and tried
/// again, and the one that hangs does not outlive the agent.
fn harm_no_other(setting: Setting) -> Outcome {
    let folder = Folder::new()?;
    with_cluster(folder.config(setting), |cluster| {
        let etcd = cluster.etcd();
        let agent = cluster.node(1).agent();
        for subnet in ["10.5.210.0-24", "10.5.211.0-24"] {
            etcd.put(&lease_key(subnet), &lease("x"))?;
        }
        let script = folder.script().display().to_string();
        let expected = format!(
            "10.5.210.0/24: Backend.SubnetAddCommand: {script}: exit status: 1: line | no luck"
        );
        agent.wait_status("the problem", |status| {
            let mut peers = status.peers.iter();
            let peer = peers.find(|peer| peer.subnet == "10.5.210.0/24");
            let why = peer.and_then(|peer| peer.problem.as_ref());
            status.problems.contains(&expected) && why.is_some_and(|why| expected.ends_with(why))
        })?;
        let hangs = folder.log(1).with_extension("hangs");
        eventually("the one that hangs", PROMPT, || {
            Ok(hangs.exists().then_some(()).ok_or_else(String::new))
        })?;
        etcd.put(&lease_key("10.5.212.0-24"), &lease("y"))?;
        let has = |line: &str| -> Outcome {
            eventually(line, PROMPT, || {
                let lines = folder.lines(1);
                let found = lines.iter().any(|one| one.starts_with(line));
                Ok(found.then_some(()).ok_or(format!("{lines:#?}")))
            })
        };
        has("add 10.5.212.0/24")?;
        etcd.delete(&lease_key("10.5.212.0-24"))?;
        has("remove 10.5.212.0/24")?;
        fs::write(folder.log(1).with_extension("luck"), "")?;
        eventually("a try that succeeds", RETRIED, || {
            let problems = agent.status()?.problems;
            Ok(problems
                .is_empty()
                .then_some(())
                .ok_or(format!("{problems:?}")))
        })?;

        let process = fs::read_to_string(&hangs)?;
        let process = PathBuf::from("/proc").join(process.trim());
        ensure!(process.exists(), "it does not hang any more");
        agent.stop()?;
        eventually("its end", PROMPT, || {
            Ok((!process.exists()).then_some(()).ok_or_else(String::new))
        })
    })
}

/// A command of the start that fails ends the agent with one line.
fn start_fails(setting: Setting) -> Outcome {
    /// Fields of the backend, what is said, and how many leases there are then.
    const CASES: [(&str, &str, &str, usize); 3] = [
        (
            "PreStartupCommand",
            "ls /no/such",
            "error: Backend.PreStartupCommand: ls: exit status: 2: ls: cannot access '/no/such'",
            0,
        ),
        (
            "PreStartupCommand",
            "/no/such --option",
            "error: Backend.PreStartupCommand: cannot run \"/no/such\": No such file or directory",
            0,
        ),
        (
            "PostStartupCommand",
            "ip address add $SUBNET dev nosuch",
            "error: Backend.PostStartupCommand: ip: exit status: 1: Cannot find device",
            1,
        ),
    ];
    with_unready_cluster(setting.cluster(vec![NodeConfig::default()]), |cluster| {
        let (node, etcd) = (cluster.node(1), cluster.etcd());
        for (field, command, expected, leases) in CASES {
            etcd.put_config(&network(&json!({"Type": "extension", field: command})))?;
            let mut agent = Command::new(AGENT);
            agent
                .arg("run")
                .arg(format!("--etcd-endpoints={}", etcd.endpoint()))
                .arg("--iface=eth0")
                .args(own_files(node))
                .env("RUST_LOG", "off");
            let said = match process::run_command(Some(node.netns()), &mut agent, "") {
                Err(Error::Command { status, output, .. }) if status.code() == Some(1) => output,
                other => bail!("it did not fail: {other:?}"),
            };
            ensure!(
                said.starts_with(expected) && said.trim().lines().count() == 1,
                "{said}"
            );
            let found = etcd.leases()?.len();
            ensure!(found == leases, "{found} leases after {command}");
            let rules = shell(node, "iptables-save; nft list ruleset")?;
            ensure!(!rules.contains("10.5."), "{rules}");
            let env = node.directory().join("subnet.env");
            ensure!(!env.exists(), "there is a subnet file");
        }
        Ok(())
    })
}

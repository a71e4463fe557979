//! The CNI plugin, called as a container runtime calls it, over the real `bridge`, `host-local` and `portmap`: pods that
//! come and go on a node without an agent, whose `subnet.env` the test writes, and on nodes with agents.

mod delegates;
mod gone;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context as _, ensure};
pub(crate) use delegates::{errors, exchanged, passed_on};
pub(crate) use gone::{collected, interfaces, killed, same_container, without_state};
use lab::{ClusterConfig, Node, NodeConfig, cni::plugin_directory, netns::Netns, process};
use serde_json::{Value, json};

use crate::support::{
    Outcome, Setting, shell, udp_arrives, wait_pods_served, with_cluster, with_unready_cluster,
};

/// The plugin under test.
const PLUGIN: &str = env!("CARGO_BIN_EXE_flannel");
/// The network's name.
const NETWORK: &str = "cbr0";
/// How many containers come at once.
const CROWD: usize = 20;

const ENV: &str = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
const DUAL_ENV: &str = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:7::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";

/// A container runtime on a node.
struct Runtime<'a> {
    node: &'a Node,
    directory: PathBuf,
    /// `CNI_PATH`.
    path: OsString,
}

/// A container: an identifier and a namespace.
#[derive(Clone)]
struct Container {
    id: String,
    netns: Netns,
}

/// What the plugin has answered.
#[derive(Debug)]
struct Answer {
    success: bool,
    /// Standard output, which is JSON or empty.
    output: Value,
    stderr: String,
}

impl Answer {
    /// The result of a call that must succeed.
    fn ok(self) -> anyhow::Result<Value> {
        ensure!(self.success, "the plugin failed: {self:?}");
        Ok(self.output)
    }

    /// The code of a call that must fail.
    fn code(&self) -> anyhow::Result<u64> {
        ensure!(!self.success, "the plugin succeeded: {self:?}");
        self.output["code"]
            .as_u64()
            .with_context(|| format!("no code in {self:?}"))
    }
}

/// Runs `test` as a runtime on a node that nothing else runs on.
fn with_runtime(env: &str, test: impl FnOnce(&Runtime<'_>) -> Outcome) -> Outcome {
    let config = ClusterConfig {
        nodes: vec![NodeConfig::default()],
        ..ClusterConfig::default()
    };
    with_unready_cluster(config, |cluster| {
        let node = cluster.node(1);
        let directory = node.directory().join("runtime");
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("subnet.env"), env)?;
        test(&Runtime {
            node,
            directory,
            path: plugin_directory()?.into(),
        })
    })
}

impl Runtime<'_> {
    fn env(&self) -> PathBuf {
        self.directory.join("subnet.env")
    }

    fn states(&self) -> PathBuf {
        self.directory.join("states")
    }

    /// kube-flannel's config, for a version of the specification.
    fn conf(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "name": NETWORK,
            "type": "flannel",
            "subnetFile": self.env(),
            "dataDir": self.states(),
            "delegate": { "hairpinMode": true, "isDefaultGateway": true },
            "ipam": { "dataDir": self.directory.join("addresses") },
        })
    }

    fn container(&self) -> anyhow::Result<Container> {
        let (id, netns) = self.node.new_pod_namespace()?;
        Ok(Container { id, netns })
    }

    /// A call for an attachment; without a container, for none.
    fn command(&self, operation: &str, attachment: Option<(&Container, &str)>) -> Command {
        self.command_of(Path::new(PLUGIN), operation, attachment)
    }

    /// The same call of another plugin.
    fn command_of(
        &self,
        program: &Path,
        operation: &str,
        attachment: Option<(&Container, &str)>,
    ) -> Command {
        // Replaces itself by the plugin, so its process is the plugin's.
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.node.netns().path().display()))
            .arg(program)
            .env("CNI_COMMAND", operation)
            .env("CNI_PATH", &self.path);
        if let Some((container, interface)) = attachment {
            command
                .env("CNI_CONTAINERID", &container.id)
                .env("CNI_IFNAME", interface)
                .env("CNI_NETNS", container.netns.path());
        }
        command
    }

    fn run(&self, command: &mut Command, conf: &Value) -> anyhow::Result<Answer> {
        let output = start(command, conf)?.wait_with_output()?;
        let text = String::from_utf8(output.stdout)?;
        let json = match text.is_empty() {
            true => Value::Null,
            false => serde_json::from_str(&text).context(text)?,
        };
        Ok(Answer {
            success: output.status.success(),
            output: json,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn call(
        &self,
        operation: &str,
        container: &Container,
        interface: &str,
        conf: &Value,
    ) -> anyhow::Result<Answer> {
        let mut command = self.command(operation, Some((container, interface)));
        self.run(&mut command, conf)
    }

    fn add(&self, container: &Container, conf: &Value) -> anyhow::Result<Value> {
        self.call("ADD", container, "eth0", conf)?.ok()
    }

    fn del(&self, container: &Container, conf: &Value) -> Outcome {
        self.call("DEL", container, "eth0", conf)?.ok().map(drop)
    }

    /// What plugins have left on the node: veths, addresses that are taken, state files.
    fn left(&self) -> anyhow::Result<Vec<String>> {
        let links = process::run(Some(self.node.netns()), "ip", &["-json", "link", "show"])?;
        let links: Value = serde_json::from_str(&links)?;
        let names = links.as_array().into_iter().flatten();
        let mut left: Vec<String> = names
            .filter_map(|link| link["ifname"].as_str())
            .filter(|name| name.starts_with("veth"))
            .map(str::to_owned)
            .collect();
        left.extend(self.addresses()?);
        left.extend(files(&self.states())?);
        Ok(left)
    }

    /// Addresses that `host-local` has given away.
    fn addresses(&self) -> anyhow::Result<Vec<String>> {
        let mut files = files(&self.directory.join("addresses").join(NETWORK))?;
        files.retain(|name| name != "lock" && !name.starts_with("last_reserved_ip"));
        Ok(files)
    }

    fn nothing_is_left(&self) -> Outcome {
        let left = self.left()?;
        ensure!(left.is_empty(), "something is left: {left:?}");
        Ok(())
    }
}

fn start(command: &mut Command, conf: &Value) -> anyhow::Result<Child> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start the plugin")?;
    let mut stdin = child.stdin.take().context("standard input")?;
    stdin.write_all(conf.to_string().as_bytes())?;
    Ok(child)
}

/// Names of the files in a directory, sorted; none if there is no directory.
fn files(directory: &Path) -> anyhow::Result<Vec<String>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The config with the result of ADD, as runtimes send it from version 0.4.0 on.
fn after(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    conf
}

/// The container's address of a family in a result, without the prefix's length.
fn address(result: &Value, index: usize) -> anyhow::Result<String> {
    let address = result["ips"][index]["address"].as_str();
    let address = address.with_context(|| format!("no address {index} in {result}"))?;
    Ok(address.split('/').next().unwrap_or_default().to_owned())
}

fn pings(container: &Container, address: &str) -> Outcome {
    process::run(
        Some(&container.netns),
        "ping",
        &["-c", "1", "-W", "5", address],
    )
    .map(drop)
    .with_context(|| format!("{} reaches {address}", container.id))
}

/// ADD gives an address of the subnet that reaches the gateway, and DEL leaves nothing.
pub(crate) fn come_and_go(_: Setting) -> Outcome {
    with_runtime(ENV, |runtime| {
        for version in ["0.3.1", "0.4.0", "1.0.0"] {
            let conf = runtime.conf(version);
            let container = runtime.container()?;
            let answer = runtime.call("ADD", &container, "eth0", &conf)?;
            let told = format!("{:?}", answer.stderr);
            let result = answer.ok()?;
            ensure!(result["cniVersion"] == version, "{result}");
            let address = address(&result, 0)?;
            ensure!(address.starts_with("10.5.7."), "{result}");
            pings(&container, "10.5.7.1")?;
            let state = fs::read_to_string(runtime.states().join(&container.id))?;
            ensure!(told.contains(&format!("{state:?}")[1..20]), "{told}");
            let state: Value = serde_json::from_str(&state)?;
            ensure!(state["mtu"] == 1450 && state["ipMasq"] == false, "{state}");
            let link = process::run(Some(&container.netns), "ip", &["link", "show", "eth0"])?;
            ensure!(link.contains("mtu 1450"), "{link}");

            runtime.del(&container, &after(&conf, &result))?;
            runtime.nothing_is_left()?;
            runtime.del(&container, &after(&conf, &result))?;
        }
        Ok(())
    })
}

/// Containers that come and go all at once get an address each, and leave nothing.
pub(crate) fn crowds(_: Setting) -> Outcome {
    with_runtime(ENV, |runtime| {
        let conf = runtime.conf("1.0.0");
        let containers = (0..CROWD)
            .map(|_| runtime.container())
            .collect::<anyhow::Result<Vec<_>>>()?;
        let each = |work: &(dyn Fn(&Container) -> anyhow::Result<String> + Sync)| {
            thread::scope(|scope| {
                let threads: Vec<_> = containers
                    .iter()
                    .map(|container| scope.spawn(move || work(container)))
                    .collect();
                let results = threads.into_iter().map(|thread| thread.join().unwrap());
                results.collect::<anyhow::Result<BTreeSet<_>>>()
            })
        };
        let addresses = each(&|container| {
            let result = runtime.add(container, &conf)?;
            pings(container, "10.5.7.1")?;
            address(&result, 0)
        })?;
        ensure!(addresses.len() == CROWD, "{addresses:?}");
        each(&|container| runtime.del(container, &conf).map(|()| String::new()))?;
        runtime.nothing_is_left()
    })
}

/// A dual-stack subnet gives an address and routes of each family.
pub(crate) fn dual_stack(_: Setting) -> Outcome {
    with_runtime(DUAL_ENV, |runtime| {
        let conf = runtime.conf("1.0.0");
        let container = runtime.container()?;
        let result = runtime.add(&container, &conf)?;
        let addresses = (address(&result, 0)?, address(&result, 1)?);
        ensure!(
            addresses.0.starts_with("10.5.7.") && addresses.1.starts_with("fd00:5:0:7::"),
            "{result}"
        );
        pings(&container, "10.5.7.1")?;
        pings(&container, "fd00:5:0:7::1")?;
        let routes = process::run(Some(&container.netns), "ip", &["-6", "route"])?;
        ensure!(routes.contains("fd00:5::/48 via fd00:5:0:7::1"), "{routes}");
        runtime.del(&container, &after(&conf, &result))?;
        runtime.nothing_is_left()
    })
}

/// `portmap` takes over our result, and its own goes through our CHECK and DEL.
pub(crate) fn chained(_: Setting) -> Outcome {
    with_runtime(ENV, |runtime| {
        let conf = runtime.conf("1.0.0");
        let container = runtime.container()?;
        let result = runtime.add(&container, &conf)?;
        let mapped = json!({
            "cniVersion": "1.0.0", "name": NETWORK, "type": "portmap", "capabilities": { "portMappings": true },
            "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] },
            "prevResult": result,
        });
        let portmap = |operation: &str| {
            let program = plugin_directory()?.join("portmap");
            let mut command = runtime.command_of(&program, operation, Some((&container, "eth0")));
            runtime.run(&mut command, &mapped)?.ok()
        };
        let last = portmap("ADD")?;
        ensure!(last["ips"] == result["ips"], "{last}");
        let target = format!("{}:80", address(&result, 0)?);
        let rules = shell(runtime.node, "iptables-save -t nat")?;
        ensure!(
            rules.contains(&format!("--to-destination {target}")),
            "{rules}"
        );
        runtime
            .call("CHECK", &container, "eth0", &after(&conf, &last))?
            .ok()?;
        portmap("DEL")?;
        let rules = shell(runtime.node, "iptables-save -t nat")?;
        ensure!(!rules.contains(&target), "{rules}");
        runtime.del(&container, &after(&conf, &last))?;
        runtime.nothing_is_left()
    })
}

/// CHECK tells a container that is as ADD left it from one that is not.
pub(crate) fn checked(_: Setting) -> Outcome {
    with_runtime(ENV, |runtime| {
        let conf = runtime.conf("1.0.0");
        let container = runtime.container()?;
        let result = runtime.add(&container, &conf)?;
        let check = |conf: &Value| runtime.call("CHECK", &container, "eth0", conf);
        check(&after(&conf, &result))?.ok()?;
        // Neither a lost state file nor an agent that is away is the container's fault.
        let state = runtime.states().join(&container.id);
        let text = fs::read(&state)?;
        fs::remove_file(&state)?;
        check(&after(&conf, &result))?.ok()?;
        fs::rename(runtime.env(), runtime.directory.join("away"))?;
        ensure!(check(&after(&conf, &result))?.code()? == 11);
        fs::write(&state, text)?;
        check(&after(&conf, &result))?.ok()?;

        process::run(
            Some(&container.netns),
            "ip",
            &["address", "flush", "dev", "eth0"],
        )?;
        let answer = check(&after(&conf, &result))?;
        answer.code()?;
        let message = answer.output["msg"].as_str().unwrap_or_default();
        let address = address(&result, 0)?;
        ensure!(message.contains(&address), "{answer:?} names {address}");

        let old = check(&after(&runtime.conf("0.3.1"), &result))?;
        ensure!(old.code()? == 1, "{old:?}");
        runtime.del(&container, &after(&conf, &result))?;
        runtime.nothing_is_left()
    })
}

/// Pods that the plugin attaches by an agent's `subnet.env` are pods like any.
pub(crate) fn with_agents(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let (node, other) = (cluster.node(1), cluster.node(2));
        let pod = node.add_pod_by(Path::new(PLUGIN))?;
        let subnet = node.subnet_env()?.subnet;
        ensure!(
            pod.attachment().gateway.to_string() == subnet.host(1).to_string(),
            "{:?}",
            pod.attachment()
        );
        wait_pods_served(node)?;
        let peer = &other.pods()[0];
        udp_arrives(&pod, peer, 500, setting.pod_mtu() - 28)?;
        udp_arrives(peer, &pod, 500, 64)?;
        let device = pod.attachment().host_device.clone();
        let states = node.directory().join("flannel");
        ensure!(!files(&states)?.is_empty(), "no state file");
        node.delete_pod(pod)?;
        ensure!(files(&states)?.is_empty(), "{:?} is left", files(&states)?);
        ensure!(
            crate::support::link(node, &device)?.is_none(),
            "{device} is left"
        );
        Ok(())
    })
}

//! A container runtime for the tests: calls the plugin as one would, and looks what is left.

use std::{
    ffi::OsString,
    fs,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use lab::{ClusterConfig, Node, NodeConfig, cni::plugin_directory, netns::Netns, process};
use serde_json::{Value, json};

use super::PLUGIN;
use crate::support::{Outcome, with_unready_cluster};

/// The network's name.
const NETWORK: &str = "cbr0";

/// A container runtime on a node.
pub(super) struct Runtime<'a> {
    pub(super) node: &'a Node,
    pub(super) directory: PathBuf,
    /// `CNI_PATH`.
    pub(super) path: OsString,
}

/// A container: an identifier and a namespace.
#[derive(Clone)]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) netns: Netns,
}

/// What the plugin has answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) success: bool,
    /// Standard output, which is JSON or empty.
    pub(super) output: Value,
    pub(super) stderr: String,
}

impl Answer {
    /// The result of a call that must succeed.
    pub(super) fn ok(self) -> anyhow::Result<Value> {
        ensure!(self.success, "the plugin failed: {self:?}");
        Ok(self.output)
    }

    /// The code of a call that must fail.
    pub(super) fn code(&self) -> anyhow::Result<u64> {
        ensure!(!self.success, "the plugin succeeded: {self:?}");
        self.output["code"]
            .as_u64()
            .with_context(|| format!("no code in {self:?}"))
    }
}

/// Runs `test` as a runtime on a node that nothing else runs on.
pub(super) fn with_runtime(env: &str, test: impl FnOnce(&Runtime<'_>) -> Outcome) -> Outcome {
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
    pub(super) fn env(&self) -> PathBuf {
        self.directory.join("subnet.env")
    }

    pub(super) fn states(&self) -> PathBuf {
        self.directory.join("states")
    }

    /// kube-flannel's config, for a version of the specification.
    pub(super) fn conf(&self, version: &str) -> Value {
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

    pub(super) fn container(&self) -> anyhow::Result<Container> {
        let (id, netns) = self.node.new_pod_namespace()?;
        Ok(Container { id, netns })
    }

    /// A call for an attachment; without a container, for none.
    pub(super) fn command(
        &self,
        operation: &str,
        attachment: Option<(&Container, &str)>,
    ) -> Command {
        self.command_of(Path::new(PLUGIN), operation, attachment)
    }

    /// The same call of another plugin.
    pub(super) fn command_of(
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

    pub(super) fn run(&self, command: &mut Command, conf: &Value) -> anyhow::Result<Answer> {
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

    pub(super) fn call(
        &self,
        operation: &str,
        container: &Container,
        interface: &str,
        conf: &Value,
    ) -> anyhow::Result<Answer> {
        let mut command = self.command(operation, Some((container, interface)));
        self.run(&mut command, conf)
    }

    pub(super) fn add(&self, container: &Container, conf: &Value) -> anyhow::Result<Value> {
        self.call("ADD", container, "eth0", conf)?.ok()
    }

    pub(super) fn del(&self, container: &Container, conf: &Value) -> Outcome {
        self.call("DEL", container, "eth0", conf)?.ok().map(drop)
    }

    /// What plugins have left on the node: veths, addresses that are taken, state files.
    pub(super) fn left(&self) -> anyhow::Result<Vec<String>> {
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
    pub(super) fn addresses(&self) -> anyhow::Result<Vec<String>> {
        let mut files = files(&self.directory.join("addresses").join(NETWORK))?;
        files.retain(|name| name != "lock" && !name.starts_with("last_reserved_ip"));
        Ok(files)
    }

    pub(super) fn nothing_is_left(&self) -> Outcome {
        let left = self.left()?;
        ensure!(left.is_empty(), "something is left: {left:?}");
        Ok(())
    }
}

pub(super) fn start(command: &mut Command, conf: &Value) -> anyhow::Result<Child> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start the plugin")?;
    let mut stdin = child.stdin.take().context("standard input")?;
    match stdin.write_all(conf.to_string().as_bytes()) {
        // It has refused the command before it has read the config.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written?,
    }
    Ok(child)
}

/// Names of the files in a directory, sorted; none if there is no directory.
pub(super) fn files(directory: &Path) -> anyhow::Result<Vec<String>> {
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
pub(super) fn after(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    conf
}

/// The container's address of a family in a result, without the prefix's length.
pub(super) fn address(result: &Value, index: usize) -> anyhow::Result<String> {
    let address = result["ips"][index]["address"].as_str();
    let address = address.with_context(|| format!("no address {index} in {result}"))?;
    Ok(address.split('/').next().unwrap_or_default().to_owned())
}

pub(super) fn pings(container: &Container, address: &str) -> Outcome {
    process::run(
        Some(&container.netns),
        "ping",
        &["-c", "1", "-W", "5", address],
    )
    .map(drop)
    .with_context(|| format!("{} reaches {address}", container.id))
}

//! That a set of documents is about this agent: what they give it is what it reads, asks for and writes.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context as _, bail, ensure};
use clap::Parser as _;
use flannel_agent::{
    cmd::args::{Cli, Command as Task, RunOptions},
    netconf,
};
use serde_json::{Value, json};

use crate::{Outcome, documents::Documents};

/// The agent under test.
const AGENT: &str = env!("CARGO_BIN_EXE_flannel-agent");
/// The image, as `cargo xtask image` calls it.
const IMAGE: &str = concat!("flannel-agent:", env!("CARGO_PKG_VERSION"));
/// What the agent asks of the API server, and so all that it may: resource and verbs.
const REQUESTS: [(&str, &[&str]); 2] = [
    ("nodes", &["get", "list", "watch"]),
    ("nodes/status", &["patch"]),
];
/// Folders and files of the host that the agent uses, by its defaults and by what it looks for.
const MOUNTS: [&str; 5] = [
    "/run/flannel",
    "/etc/kube-flannel/",
    "/run/xtables.lock",
    "/sys/fs/bpf",
    "/host/proc/sys/net",
];

/// All of it.
pub(crate) fn runs_from(documents: &Documents) -> Outcome {
    let daemon_set = documents.one("DaemonSet")?;
    let pod = &daemon_set["spec"]["template"]["spec"];
    may_what_it_asks(documents, &pod["serviceAccountName"])?;
    reads_the_configs(documents.one("ConfigMap")?)?;
    replaces_upstreams(daemon_set)?;
    let container = &pod["containers"][0];
    has_its_mounts(pod, container)?;
    understands_its_arguments(container)?;
    for container in containers(pod) {
        ensure!(container["image"] == IMAGE, "image {}", container["image"]);
    }
    for installer in list(&pod["initContainers"]) {
        ensure!(
            installer["securityContext"]["capabilities"] == json!({"drop": ["ALL"]}),
            "an init container may more than write files"
        );
        let arguments = words(&installer["args"])?;
        let cli = Cli::try_parse_from(["flannel-agent".to_owned()].into_iter().chain(arguments))?;
        ensure!(
            matches!(cli.command, Task::InstallCni(_)),
            "{installer} installs nothing"
        );
    }
    Ok(())
}

/// The pod that cleans up runs the agent of the manifest, with mounts of that one, and may no more.
pub(crate) fn cleans_up_after(manifest: &Documents, cleanup: &Documents) -> Outcome {
    let agents = &manifest.one("DaemonSet")?["spec"]["template"]["spec"];
    let pod = &cleanup.one("Pod")?["spec"];
    let (agent, container) = (&agents["containers"][0], &pod["containers"][0]);
    ensure!(container["image"] == IMAGE, "image {}", container["image"]);
    let arguments = words(&container["args"])?;
    let cli = Cli::try_parse_from(["flannel-agent".to_owned()].into_iter().chain(arguments))?;
    ensure!(
        matches!(cli.command, Task::Cleanup(options) if options.keep_network),
        "it would remove the network"
    );
    let added = |container: &Value| words(&container["securityContext"]["capabilities"]["add"]);
    let (may, agent_may) = (added(container)?, added(agent)?);
    ensure!(
        may.iter().all(|capability| agent_may.contains(capability)),
        "capabilities {may:?}"
    );
    let paths = |container: &Value| -> BTreeSet<String> {
        list(&container["volumeMounts"])
            .map(|mount| format!("{} at {}", mount["name"], mount["mountPath"]))
            .collect()
    };
    ensure!(
        paths(container).is_subset(&paths(agent)),
        "mounts {:?}",
        paths(container)
    );
    let there: Vec<&Value> = list(&agents["volumes"]).collect();
    ensure!(
        list(&pod["volumes"]).all(|volume| there.contains(&volume)),
        "volumes {}",
        pod["volumes"]
    );
    Ok(())
}

/// The role has what the agent asks for and no more, and the DaemonSet's account has the role.
fn may_what_it_asks(documents: &Documents, account: &Value) -> Outcome {
    let role = documents.one("ClusterRole")?;
    let mut granted = Vec::new();
    for rule in list(&role["rules"]) {
        ensure!(rule["apiGroups"] == json!([""]), "{rule}");
        for resource in words(&rule["resources"])? {
            granted.push((resource, words(&rule["verbs"])?));
        }
    }
    let asked = REQUESTS.map(|(resource, verbs)| {
        let verbs = verbs.iter().map(|verb| (*verb).to_owned()).collect();
        (resource.to_owned(), verbs)
    });
    ensure!(granted == asked, "the role grants {granted:?}");
    let binding = documents.one("ClusterRoleBinding")?;
    let namespace = &documents.one("DaemonSet")?["metadata"]["namespace"];
    let subject = json!({"kind": "ServiceAccount", "name": account, "namespace": namespace});
    ensure!(
        binding["roleRef"]["name"] == role["metadata"]["name"]
            && binding["subjects"] == json!([subject]),
        "{binding}"
    );
    let made = &documents.one("ServiceAccount")?["metadata"];
    ensure!(
        made["name"] == *account && made["namespace"] == *namespace,
        "the account is {made}"
    );
    Ok(())
}

/// The agent takes the network config as it is, and installs the CNI config.
fn reads_the_configs(config_map: &Value) -> Outcome {
    let text = |name: &str| config_map["data"][name].as_str().context(name.to_owned());
    let check = netconf::check(text("net-conf.json")?.as_bytes());
    ensure!(
        check.config.is_some() && check.errors.is_empty() && check.warnings.is_empty(),
        "net-conf.json: {:?} {:?}",
        check.errors,
        check.warnings
    );
    let folder = tempfile(text("cni-conf.json")?)?;
    let output = Command::new(AGENT)
        .arg("install-cni")
        .arg(format!("--conf-source={}/source", folder.display()))
        .arg(format!("--conf-dir={}", folder.display()))
        .output();
    let installed = fs::read_to_string(folder.join("10-flannel.conflist"));
    fs::remove_dir_all(&folder)?;
    let output = output?;
    ensure!(
        output.status.success() && output.stderr.is_empty(),
        "cni-conf.json: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(installed? == text("cni-conf.json")?);
    Ok(())
}

/// A folder with this text in the file `source`.
fn tempfile(text: &str) -> anyhow::Result<std::path::PathBuf> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("manifests-{}-{number}", std::process::id()));
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("source"), text)?;
    Ok(folder)
}

/// Applied over a running kube-flannel it replaces it: of what names it there and cannot be changed, nothing differs.
fn replaces_upstreams(daemon_set: &Value) -> Outcome {
    let metadata = &daemon_set["metadata"];
    let spec = &daemon_set["spec"];
    let names: Vec<&Value> = containers(&spec["template"]["spec"])
        .map(|container| &container["name"])
        .collect();
    ensure!(
        metadata["name"] == "kube-flannel-ds"
            && metadata["namespace"] == "kube-flannel"
            && spec["selector"] == json!({"matchLabels": {"app": "flannel"}})
            && spec["template"]["metadata"]["labels"]["app"] == "flannel"
            && names == ["install-cni-plugin", "install-cni", "kube-flannel"],
        "{metadata} {names:?}"
    );
    Ok(())
}

/// What the agent uses is mounted, each mount has its volume, and each volume is used.
fn has_its_mounts(pod: &Value, agent: &Value) -> Outcome {
    let paths: Vec<&Value> = list(&agent["volumeMounts"])
        .map(|mount| &mount["mountPath"])
        .collect();
    ensure!(paths == MOUNTS, "mounts {paths:?}");
    let mounted: BTreeSet<String> = containers(pod)
        .flat_map(|container| list(&container["volumeMounts"]))
        .map(|mount| mount["name"].to_string())
        .collect();
    let volumes: BTreeSet<String> = list(&pod["volumes"])
        .map(|volume| volume["name"].to_string())
        .collect();
    ensure!(mounted == volumes, "mounted {mounted:?}, there {volumes:?}");
    Ok(())
}

/// The agent takes its arguments, and is asked how it is where it answers.
fn understands_its_arguments(agent: &Value) -> Outcome {
    ensure!(agent["command"] == json!(["/opt/bin/flanneld"]));
    let mut arguments = vec!["flannel-agent".to_owned(), "run".to_owned()];
    arguments.extend(words(&agent["args"])?);
    let Task::Run(options) = Cli::try_parse_from(arguments)?.command else {
        bail!("the arguments are not those of `run`");
    };
    let RunOptions {
        healthz_port,
        switches,
        ..
    } = *options;
    ensure!(switches.kube_subnet_mgr && switches.ip_masq);
    let ports = json!([{"name": "healthz", "containerPort": healthz_port, "protocol": "TCP"}]);
    ensure!(agent["ports"] == ports, "ports {}", agent["ports"]);
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        let asked = &agent[probe]["httpGet"];
        ensure!(
            *asked == json!({"path": path, "port": "healthz"}),
            "{probe} asks {asked}"
        );
    }
    let name =
        json!([{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]);
    ensure!(agent["env"] == name, "environment {}", agent["env"]);
    Ok(())
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(&pod["initContainers"]).chain(list(&pod["containers"]))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn words(value: &Value) -> anyhow::Result<Vec<String>> {
    list(value)
        .map(|word| Ok(word.as_str().context("not a text")?.to_owned()))
        .collect()
}

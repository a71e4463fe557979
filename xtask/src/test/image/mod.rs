//! The container image as a test: that it is made, small, and the same each time, and that containerd runs it, with the
//! agent of a node of a cluster in it.

mod containerd;
mod resolver;

use std::{fs, net::IpAddr, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::{
    Cluster, ClusterConfig, NodeConfig,
    traffic::tools::{PingPlan, ping},
    wait,
};
use serde_json::Value;

use self::{containerd::Containerd, resolver::Resolver};
use super::{
    Options,
    tally::{Failure, Skip, Tally},
    verdict::{self, Check, Verdict},
};
use crate::{
    build::Objects,
    command,
    image::{
        self, Arch, Files, Parts, REFERENCE,
        oci::{Archive, Reference},
    },
    setup::distro::is_root,
    workspace::Workspace,
};

/// The compressed archive is smaller.
const LARGEST: usize = 30 << 20;

/// How long the agent may take until it is ready.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// The name that etcd has for the agent in the container.
const ETCD_NAME: &str = "etcd.flannel.test";

/// The agent, and its name in upstream's manifests.
const AGENT: &str = "flannel-agent";
const FLANNELD: &str = "/opt/bin/flanneld";

/// A BPF file system that goes with its container.
const BPFFS: &str = "--mount=type=bpf,src=bpf,dst=/sys/fs/bpf,options=rw";

/// The agent's port for `/readyz`.
const HEALTH_PORT: &str = "8081";

/// What the tests look at.
struct Subject<'a> {
    workspace: &'a Workspace,
    files: Files,
    reference: Reference,
    archive: Archive,
    output: PathBuf,
}

/// Makes the image and runs the tests.
pub fn run(workspace: &Workspace, objects: &Objects, options: &Options) -> Result<Tally> {
    let checks: [Check<Subject<'_>>; 5] = [
        ("image_is_smaller_than_30_mib", small),
        ("image_of_the_same_files_is_the_same", same),
        (
            "image_has_the_agent_with_the_object_and_the_probe_works",
            programs,
        ),
        ("image_serves_upstreams_init_containers", init_containers),
        ("image_runs_a_node_of_a_cluster", node),
    ];
    let mut tally = Tally::default();
    let wanted: Vec<_> = checks
        .iter()
        .filter(|(name, _)| verdict::is_wanted(name, options))
        .collect();
    if wanted.is_empty() {
        return Ok(tally);
    }
    let parts = Arch::host().and_then(|arch| Parts::ensure(workspace, arch));
    command::check_interrupt()?;
    let parts = match parts {
        Ok(parts) => parts,
        Err(error) => {
            for (name, _) in wanted {
                println!("  {name}: skipped: {error:#}");
                tally.skipped.push(Skip {
                    test: (*name).to_owned(),
                    reason: format!("{error:#}"),
                });
            }
            return Ok(tally);
        }
    };
    match Subject::make(workspace, objects, parts) {
        Ok(subject) => verdict::run(&subject, &checks, options),
        Err(error) => {
            command::check_interrupt()?;
            println!("  image: FAILED: {error:#}");
            tally.failed.push(Failure {
                test: "image".to_owned(),
                reason: format!("{error:#}"),
            });
            Ok(tally)
        }
    }
}

/// What kubelets need: the folder of containerd's programs, and the archive of the image.
pub fn for_kubelets(workspace: &Workspace, objects: &Objects) -> Result<(PathBuf, PathBuf)> {
    let parts = Parts::ensure(workspace, Arch::host()?)?;
    let subject = Subject::make(workspace, objects, parts)?;
    let containerd = containerd::fetch(&image::folder(workspace))?;
    Ok((containerd, subject.output))
}

impl<'a> Subject<'a> {
    fn make(workspace: &'a Workspace, objects: &Objects, parts: Parts) -> Result<Self> {
        let files = parts.build(workspace, objects)?;
        let reference = Reference::parse(REFERENCE)?;
        let archive = files.archive(workspace, &reference)?;
        let output = image::folder(workspace).join("tested.tar");
        image::write(&output, &archive)?;
        Ok(Self {
            workspace,
            files,
            reference,
            archive,
            output,
        })
    }

    /// containerd with the image, in a namespace of a node; or why there is none.
    fn containerd(&self, netns: &lab::Netns) -> Result<Result<Containerd, String>> {
        if !is_root() {
            return Ok(Err("needs root".to_owned()));
        }
        let programs = match containerd::fetch(&image::folder(self.workspace)) {
            Ok(programs) => programs,
            Err(error) => {
                command::check_interrupt()?;
                return Ok(Err(format!("{error:#}")));
            }
        };
        let containerd = Containerd::start(&programs, netns)?;
        containerd.import(&self.output, &self.reference.full())?;
        Ok(Ok(containerd))
    }
}

fn small(subject: &Subject<'_>) -> Result<Verdict> {
    let size = subject.archive.bytes.len();
    println!(
        "  {REFERENCE}: {:.1} MiB, unpacked {:.1} MiB",
        image::mebibytes(size),
        image::mebibytes(subject.files.size())
    );
    ensure!(
        size < LARGEST,
        "the archive has {:.1} MiB, and is to have less than {:.0}",
        image::mebibytes(size),
        image::mebibytes(LARGEST)
    );
    Ok(Verdict::Passed)
}

fn same(subject: &Subject<'_>) -> Result<Verdict> {
    let again = subject
        .files
        .archive(subject.workspace, &subject.reference)?;
    ensure!(
        again.digest == subject.archive.digest && again.bytes == subject.archive.bytes,
        "the archive is another when it is made again: {} and {}",
        subject.archive.digest,
        again.digest
    );
    Ok(Verdict::Passed)
}

/// What is asked of the agent without a network, and that it answers as outside.
fn programs(subject: &Subject<'_>) -> Result<Verdict> {
    let netns = lab::Netns::create(&format!("image-{}", std::process::id()))?;
    let containerd = match subject.containerd(&netns)? {
        Ok(containerd) => containerd,
        Err(reason) => return Ok(Verdict::Skipped(reason)),
    };
    let version = containerd.run(&["--read-only"], &[AGENT, "--version"])?;
    ensure!(
        version.contains("BPF object embedded"),
        "the image's agent has no BPF programs: {version}"
    );
    let config = containerd.shared("net-conf.json");
    fs::write(
        &config,
        r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#,
    )
    .with_context(|| format!("cannot write {}", config.display()))?;
    let shared = containerd.mount("/shared");
    containerd.run(
        &[&shared],
        &[AGENT, "check-config", "/shared/net-conf.json"],
    )?;
    let tier = |answer: &str| -> Result<Value> {
        let answer: Value = serde_json::from_str(answer)
            .with_context(|| format!("probe --json does not answer with JSON: {answer}"))?;
        Ok(answer["tier"].clone())
    };
    let inside = containerd.run(
        &[
            "--cap-add=CAP_BPF",
            "--cap-add=CAP_PERFMON",
            "--cap-add=CAP_NET_ADMIN",
            // It attaches programs in a namespace that it makes.
            "--cap-add=CAP_SYS_ADMIN",
            BPFFS,
        ],
        &[AGENT, "probe", "--json"],
    )?;
    let mut outside = Command::new(subject.files.agent());
    let outside = command::stdout(outside.args(["probe", "--json"]))?;
    let (inside, outside) = (tier(&inside)?, tier(&outside)?);
    ensure!(
        inside == outside,
        "the agent's tier is {inside} in the container and {outside} outside"
    );
    Ok(Verdict::Passed)
}

/// What upstream's manifest calls in its init containers, whose images somebody replaces by this one.
fn init_containers(subject: &Subject<'_>) -> Result<Verdict> {
    let netns = lab::Netns::create(&format!("image-{}", std::process::id()))?;
    let containerd = match subject.containerd(&netns)? {
        Ok(containerd) => containerd,
        Err(reason) => return Ok(Verdict::Skipped(reason)),
    };
    containerd.keep_running(
        &[&containerd.mount("/opt/cni/bin")],
        &[FLANNELD, "--etcd-endpoints=http://127.0.0.1:1"],
    )?;
    let config = containerd.shared("cni-conf.json");
    fs::write(&config, "{}").with_context(|| format!("cannot write {}", config.display()))?;
    containerd.exec(&["cp", "-f", "/flannel", "/opt/cni/bin/flannel"])?;
    containerd.exec(&[
        "/opt/bin/install-conf",
        "/opt/cni/bin/cni-conf.json",
        "/opt/cni/bin/10-flannel.conflist",
    ])?;
    let installed = containerd.shared("10-flannel.conflist");
    ensure!(
        fs::read(&installed).is_ok_and(|text| text == b"{}"),
        "install-conf has not written {}",
        installed.display()
    );
    let plugin = containerd.shared("flannel");
    let versions = command::stdout(Command::new(&plugin).env("CNI_COMMAND", "VERSION"))?;
    ensure!(
        versions.contains("supportedVersions"),
        "the plugin that the image has installed does not run on this host: {versions}"
    );
    Ok(Verdict::Passed)
}

/// A node of stock flannel goes on with the agent in a container, which finds etcd by name; its pods go on, too.
fn node(subject: &Subject<'_>) -> Result<Verdict> {
    if !is_root() {
        return Ok(Verdict::Skipped("needs root".to_owned()));
    }
    let cluster = Cluster::start(ClusterConfig {
        nodes: vec![NodeConfig::stock(), NodeConfig::stock()],
        pods: 1,
        ..ClusterConfig::default()
    })?;
    let (node, other) = (cluster.node(1), cluster.node(2));
    let containerd = match subject.containerd(node.netns())? {
        Ok(containerd) => containerd,
        Err(reason) => return Ok(Verdict::Skipped(reason)),
    };
    let endpoint = cluster.etcd().endpoint();
    let address: IpAddr = endpoint
        .trim_start_matches("http://")
        .split(':')
        .next()
        .unwrap_or_default()
        .parse()
        .with_context(|| format!("{endpoint} has no address"))?;
    let _resolver = Resolver::start(node.netns(), ETCD_NAME, address)?;
    fs::write(containerd.shared("resolv.conf"), "nameserver 127.0.0.1\n")
        .context("cannot write resolv.conf")?;
    let resolv_conf = containerd.mount_file("resolv.conf", "/etc/resolv.conf");
    let etcd = format!(
        "--etcd-endpoints={}",
        endpoint.replace(&address.to_string(), ETCD_NAME)
    );
    let health = format!("--healthz-port={HEALTH_PORT}");
    containerd.keep_running(
        &[
            "--read-only",
            "--cap-add=CAP_NET_ADMIN",
            "--cap-add=CAP_NET_RAW",
            "--cap-add=CAP_BPF",
            "--cap-add=CAP_PERFMON",
            BPFFS,
            &resolv_conf,
            &containerd.mount("/run/flannel"),
        ],
        &[FLANNELD, &etcd, &health, "--ip-masq", "--iface=eth0"],
    )?;
    wait::until("the agent in the container", READY_LIMIT, || {
        let status = containerd.exec(&[AGENT, "status"]);
        Ok(status
            .map(drop)
            .map_err(|error| format!("{error:#}\n{}", containerd.log())))
    })?;
    for tool in [
        &["iptables-nft", "-t", "nat", "-S", "FLANNEL-POSTRTG"][..],
        &["ip6tables-nft", "--version"],
        &["iptables-legacy", "--version"],
        &["ip6tables-legacy-restore", "--version"],
        &["nft", "--json", "list", "tables"],
    ] {
        containerd.exec(tool)?;
    }
    let report = ping(
        node.pods()[0].netns(),
        other.pods()[0].address(),
        PingPlan::default(),
    )?;
    ensure!(report.received == 1, "no answer from the other node's pod");
    Ok(Verdict::Passed)
}

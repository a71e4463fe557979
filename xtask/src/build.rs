//! Builds the BPF object, and the agent with the object in it.
//!
//! The object has a target folder of its own, because it is built by other flags and perhaps by another toolchain. Its
//! build is a step of xtask and not a build script's, so that `cargo build`, clippy and editors need no BPF toolchain.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{
    command,
    setup::{self, BpfTools, Origin, Scope},
    workspace::Workspace,
};

/// The crate of the BPF programs, and the name of the object with the hooks.
const PROGRAMS: &str = "flannel-ebpf";

/// The agent's crate and program.
const AGENT: &str = "flannel-agent";

/// Names the object that the agent's build script embeds.
pub const OBJECT_VARIABLE: &str = "FLANNEL_EBPF_OBJECT";

/// A build that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// What a build leaves.
#[derive(Debug, Clone)]
pub struct Artefacts {
    /// The agent, with the object in it.
    pub agent: PathBuf,
    /// BPF objects by the name of their binary.
    pub objects: BTreeMap<String, PathBuf>,
}

/// `cargo xtask build`.
pub fn run(workspace: &Workspace) -> Result<()> {
    let tools = setup::ensure(workspace, Scope::Build)?;
    let artefacts = build(workspace, &tools)?;
    println!("agent: {}", artefacts.agent.display());
    for (name, path) in &artefacts.objects {
        println!("BPF object {name}: {}", path.display());
    }
    Ok(())
}

/// Builds everything that is shipped.
pub fn build(workspace: &Workspace, tools: &BpfTools) -> Result<Artefacts> {
    let objects = objects(workspace, tools)?;
    let mut cargo = workspace.cargo();
    cargo
        .args(["build", "--release", "--package", AGENT, "--bins"])
        .env(OBJECT_VARIABLE, programs(&objects)?);
    let agent = executables(&mut cargo)?
        .remove(AGENT)
        .context("the agent's build has made no program")?;
    Ok(Artefacts { agent, objects })
}

/// Builds the BPF objects; gives them by the name of their binary.
pub fn objects(workspace: &Workspace, tools: &BpfTools) -> Result<BTreeMap<String, PathBuf>> {
    let folder = match tools.toolchain.origin {
        Origin::Host => "bpf",
        Origin::Debian => "bpf-debian",
    };
    let endian = if cfg!(target_endian = "little") {
        "bpfel"
    } else {
        "bpfeb"
    };
    let flags = [
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        // BTF is made from it.
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        format!("-Clinker={}", tools.linker.display()),
    ];
    let mut cargo = tools.toolchain.cargo();
    cargo
        .current_dir(&workspace.root)
        .args(["build", "--release", "--package", PROGRAMS, "--bins"])
        .args(["-Zbuild-std=core", "--target"])
        .arg(format!("{endian}-unknown-none"))
        .arg("--target-dir")
        .arg(workspace.target.join(folder))
        // -Zbuild-std on a stable toolchain.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    let objects = executables(&mut cargo).context("cannot build the BPF object")?;
    programs(&objects)?;
    Ok(objects)
}

fn programs(objects: &BTreeMap<String, PathBuf>) -> Result<&Path> {
    objects
        .get(PROGRAMS)
        .map(PathBuf::as_path)
        .with_context(|| format!("no BPF object is called {PROGRAMS}"))
}

/// A line of `cargo build --message-format=json`, as far as it matters here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Runs a cargo build; gives the programs that it has made, by name.
fn executables(cargo: &mut Command) -> Result<BTreeMap<String, PathBuf>> {
    let mut made = BTreeMap::new();
    let status = command::lines(
        cargo.arg("--message-format=json-render-diagnostics"),
        LIMIT,
        |line| {
            if let Ok(Message {
                reason,
                target: Some(target),
                executable: Some(path),
            }) = serde_json::from_str(line)
                && reason == "compiler-artifact"
            {
                made.insert(target.name, path);
            }
        },
    )?;
    if !status.success() {
        bail!("{} failed", command::show(cargo));
    }
    Ok(made)
}

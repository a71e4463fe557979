//! The agent and the CNI plugin for the image: static, so that the agent asks nothing of the image and the plugin
//! nothing of the node that it is copied to.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::{
    Arch,
    tree::{Node, PROGRAM_MODE, Tree},
};
use crate::{
    build::{self, AGENT, OBJECT_VARIABLE, Objects, PLUGIN},
    setup::{
        self,
        distro::{Distro, Package, find_program},
    },
    workspace::Workspace,
};

/// The profile of the image's programs.
const PROFILE: &str = "image";

/// The agent in the image, in the folder where upstream's image has its own.
const AGENT_PATH: &str = "opt/bin/flannel-agent";

/// The CNI plugin, where upstream's image of it has it.
const PLUGIN_PATH: &str = "flannel";

/// Other names of the agent, which it goes by: flanneld, and what upstream's manifest calls in its init containers.
const AGENT_NAMES: [&str; 3] = ["opt/bin/flanneld", "opt/bin/install-conf", "usr/bin/cp"];

/// What compiles C for arm64, as ring needs it, and links.
const CROSS_COMPILER: &str = "aarch64-linux-gnu-gcc";

/// Installs what builds programs for an architecture, if it is not there. Gives the C compiler.
pub fn ensure_toolchain(arch: Arch) -> Result<&'static str> {
    setup::ensure_target(arch.target())?;
    ensure_compiler(arch)
}

/// Builds the programs with that compiler. Gives the agent; the plugin is beside it.
pub fn build(
    workspace: &Workspace,
    objects: &Objects,
    arch: Arch,
    compiler: &str,
) -> Result<PathBuf> {
    let target = arch.target();
    let variable = target.replace('-', "_");
    let mut cargo = workspace.cargo();
    cargo
        .args(["build", "--package", AGENT, "--bins", "--profile", PROFILE])
        .args(["--locked", "--target", target])
        .env(OBJECT_VARIABLE, objects.hooks()?)
        // What these would do is in the profile; others' flags would make another image.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env(format!("CC_{variable}"), compiler)
        .env(
            format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()),
            compiler,
        );
    build::find_agent(&build::programs(&mut cargo)?)
}

/// Puts the programs in their places.
pub fn files(agent: &Path) -> Result<Tree> {
    let mut tree = Tree::default();
    for (path, program) in [
        (AGENT_PATH, agent),
        (PLUGIN_PATH, &agent.with_file_name(PLUGIN)),
    ] {
        tree.add(path, Node::File(PROGRAM_MODE, read(program)?))?;
    }
    for name in AGENT_NAMES {
        tree.add(name, Node::Link(format!("/{AGENT_PATH}")))?;
    }
    Ok(tree)
}

fn read(program: &Path) -> Result<Vec<u8>> {
    fs::read(program).with_context(|| format!("cannot read {}", program.display()))
}

/// The C compiler and linker for an architecture, installed if it is not there.
fn ensure_compiler(arch: Arch) -> Result<&'static str> {
    if arch == Arch::host()? {
        // There already: Rust programs are linked with it.
        return Ok("cc");
    }
    if arch != Arch::Arm64 {
        bail!(
            "programs for {arch} are built on {arch} only: set-up knows no compiler for it that runs here"
        );
    }
    if find_program(CROSS_COMPILER).is_none() {
        let package = Package {
            debian: "gcc-aarch64-linux-gnu",
            fedora: "gcc-aarch64-linux-gnu",
            arch: "aarch64-linux-gnu-gcc",
            suse: "cross-aarch64-gcc14",
        };
        let libraries = Package::debian("libc6-dev-arm64-cross");
        let distro = Distro::detect();
        eprintln!("{}", distro.announce(&package, "compile C for arm64"));
        distro.install(&[package, libraries])?;
    }
    Ok(CROSS_COMPILER)
}

//! Brings what the build, the demo and the tests need, or says what is missing and what follows from that.
//!
//! Whatever can be had without changing the machine goes into the target folder; the rest is installed as packages. No
//! address is contacted but those of the package registries. When all is there, nothing is changed and nothing said.
//! What is installed is said on standard error: standard output is for results, which may be JSON.

mod apt;
pub mod distro;
pub mod helm;
mod item;
mod kernel;
pub mod kubernetes;
mod linker;
mod toolchain;
mod tools;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Serialize;

use self::{
    distro::Distro,
    item::{Item, State},
    linker::Linker,
    toolchain::{BpfToolchain, OLDEST_RUST, Rustc},
    tools::{TOOLS, Tool},
};
pub use self::{toolchain::Origin, tools::Scope};
use crate::{command, workspace::Workspace};

/// There if systemd runs the machine (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";

/// The service of Debian's package etcd-server.
const ETCD_UNIT: &str = "/lib/systemd/system/etcd.service";

/// Options of `cargo xtask setup`.
#[derive(Debug, Args)]
pub struct Options {
    /// Change nothing; fail if something is missing.
    #[arg(long)]
    check: bool,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// What builds the BPF object.
#[derive(Debug, Clone)]
pub struct BpfTools {
    /// Compiler and sources of core.
    pub toolchain: BpfToolchain,
    /// The linker's path.
    pub linker: PathBuf,
}

/// `cargo xtask setup`.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    #[derive(Serialize)]
    struct Report {
        items: Vec<Item>,
        ready: bool,
    }
    if !options.check {
        ensure(workspace, Scope::Lab)?;
    }
    let items = items(workspace)?;
    let missing: Vec<&str> = items
        .iter()
        .filter(|item| item.state == State::Missing)
        .map(|item| item.item)
        .collect();
    let complaint = missing.join(", ");
    let ready = missing.is_empty();
    if options.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&Report { items, ready })?
        );
    } else {
        print!("{}", item::table(&items));
        let distro = Distro::detect();
        if !distro.tested {
            println!("set-up is untested on {}", distro.name);
        }
    }
    if !ready {
        bail!("missing: {complaint}: run cargo xtask setup");
    }
    Ok(())
}

/// Installs the toolchain that serves where rust-src cannot be had, for the test of it.
pub fn ensure_fallback() -> Result<()> {
    BpfToolchain::ensure_debian(&Distro::detect()).map(drop)
}

/// The folder of the core library's sources in the toolchain that runs xtask, if it has them.
pub fn host_sources() -> Result<Option<PathBuf>> {
    let host = Rustc::of_host()?;
    Ok(host.has_sources().then(|| host.sources()))
}

/// Installs what is missing: for a build alone, or for the lab too.
pub fn ensure(workspace: &Workspace, scope: Scope) -> Result<BpfTools> {
    let distro = Distro::detect();
    install_tools(&distro, scope)?;
    let host = Rustc::of_host()?;
    let toolchain = BpfToolchain::ensure(&host, &distro)?;
    let linker = Linker::new(workspace, &host, &toolchain.rustc);
    linker.ensure(workspace)?;
    Ok(BpfTools {
        linker: linker.program(),
        toolchain,
    })
}

/// Installs the standard library for a target that the toolchain which runs xtask has none of.
pub fn ensure_target(target: &str) -> Result<()> {
    let host = Rustc::of_host()?;
    if host.has_target(target) {
        return Ok(());
    }
    toolchain::add_rustup_target(target)
        .and_then(|()| match host.has_target(target) {
            true => Ok(()),
            false => bail!("rustup takes it for installed, but it is not there"),
        })
        .with_context(|| {
            format!(
                "{} has no standard library for {target}: run rustup target add {target}",
                host.sysroot.display()
            )
        })
}

/// Installs what other kernels are booted with.
pub fn ensure_vm() -> Result<()> {
    install_tools(&Distro::detect(), Scope::Vm)
}

/// Installs what builds Kubernetes, and builds what the tests run of it; returns the programs' folder.
pub fn ensure_kubernetes(workspace: &Workspace) -> Result<PathBuf> {
    install_tools(&Distro::detect(), Scope::Kube)?;
    kubernetes::ensure(workspace)
}

fn install_tools(distro: &Distro, scope: Scope) -> Result<()> {
    let missing: Vec<&Tool> = TOOLS
        .iter()
        .filter(|tool| scope.includes(tool.scope))
        .filter(|tool| tool.is_missing())
        .collect();
    let lacks_etcd = !Path::new(ETCD_UNIT).exists();
    let mut packages = Vec::new();
    for tool in &missing {
        eprintln!("{}", distro.announce(&tool.package, tool.purpose));
        packages.push(tool.package);
    }
    if packages.is_empty() {
        return Ok(());
    }
    distro.install(&packages)?;
    if lacks_etcd {
        stop_packaged_etcd()?;
    }
    match missing.iter().find(|tool| tool.is_missing()) {
        None => Ok(()),
        Some(tool) => bail!(
            "{} was installed, and yet one cannot {}: it is not where it is looked for",
            distro.package_name(&tool.package),
            tool.purpose
        ),
    }
}

/// Debian's package starts a server at once and at every boot, which nobody asked for: the lab runs its own.
fn stop_packaged_etcd() -> Result<()> {
    if !Path::new(SYSTEMD).exists() || !Path::new(ETCD_UNIT).exists() {
        return Ok(());
    }
    eprintln!(
        "switching off etcd.service, which the package has started: the lab runs its own etcd"
    );
    command::quiet(distro::as_root("systemctl")?.args(["disable", "--now", "etcd.service"]))
}

/// All lines of the table.
fn items(workspace: &Workspace) -> Result<Vec<Item>> {
    let distro = Distro::detect();
    let mut items = rust_items(workspace)?;
    items.extend(TOOLS.iter().map(|tool| tool.item(&distro)));
    items.push(helm::item(workspace));
    items.push(kubernetes::item(workspace));
    items.extend(kernel::items());
    Ok(items)
}

fn rust_items(workspace: &Workspace) -> Result<Vec<Item>> {
    let host = Rustc::of_host()?;
    let (major, minor) = OLDEST_RUST;
    let toolchain = BpfToolchain::find(&host);
    let compiler = toolchain
        .as_ref()
        .map_or(&host, |toolchain| &toolchain.rustc);
    let linker = Some(Linker::new(workspace, &host, compiler)).filter(Linker::works);
    let state = |there: bool| {
        if there {
            State::Present
        } else {
            State::Missing
        }
    };
    Ok(vec![
        Item {
            item: "rustc",
            needed: format!("{major}.{minor} or newer"),
            found: host.release.clone(),
            source: host.sysroot.display().to_string(),
            state: State::Present,
            consequence: String::new(),
        },
        Item {
            item: "rust-src",
            needed: "its rustc's version".into(),
            found: toolchain
                .as_ref()
                .map_or("-".into(), |toolchain| toolchain.rustc.release.clone()),
            source: toolchain
                .as_ref()
                .map_or("rustup component", BpfToolchain::describe)
                .into(),
            state: state(toolchain.is_some()),
            consequence: "cannot build the BPF object".into(),
        },
        Item {
            item: "bpf-linker",
            needed: linker::VERSION.into(),
            found: linker.as_ref().map_or("-".into(), Linker::describe),
            source: "crates.io, built into the target folder".into(),
            state: state(linker.is_some()),
            consequence: "cannot link the BPF object".into(),
        },
    ])
}

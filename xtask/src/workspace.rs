//! Where the sources and the target folder are, and cargo as a child process.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::command;

/// Variables that `cargo run` sets for its child, by prefix: a nested cargo must not see them.
const CARGO_RUN_VARIABLES: [&str; 4] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "OUT_DIR"];

/// The cargo workspace that xtask belongs to.
#[derive(Debug, Clone, Deserialize)]
pub struct Workspace {
    /// The folder of the workspace's `Cargo.toml`.
    #[serde(rename = "workspace_root")]
    pub root: PathBuf,
    /// The target folder.
    #[serde(rename = "target_directory")]
    pub target: PathBuf,
}

impl Workspace {
    /// Asks cargo.
    pub fn find() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let metadata = command::stdout(
            cargo_with(cargo_program())
                .args(["metadata", "--no-deps", "--format-version", "1"])
                .arg("--manifest-path")
                .arg(manifest),
        )?;
        serde_json::from_str(&metadata).context("cannot read the output of cargo metadata")
    }

    /// The cargo that runs xtask, in the workspace's folder.
    pub fn cargo(&self) -> Command {
        let mut cargo = cargo_with(cargo_program());
        cargo.current_dir(&self.root);
        cargo
    }

    /// Where xtask keeps the tools that it builds.
    pub fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }
}

/// The cargo that runs xtask.
fn cargo_program() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Some cargo, without what `cargo run` left in the environment.
pub fn cargo_with(program: impl Into<OsString>) -> Command {
    let mut cargo = Command::new(program.into());
    // The running toolchain's libraries, which are wrong for any other.
    cargo.env_remove("LD_LIBRARY_PATH");
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if CARGO_RUN_VARIABLES
            .iter()
            .any(|prefix| text.starts_with(prefix))
        {
            cargo.env_remove(&name);
        }
    }
    cargo
}

//! bpf-linker: built once into the target folder, against the LLVM that rustc itself brings.
//!
//! The released linker wants to be built against an LLVM of the distribution, of one version, which is rarely there.
//! rustc's shared library is there always, and reads what rustc writes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::toolchain::Rustc;
use crate::{command, workspace::Workspace};

/// The version that is built.
pub const VERSION: &str = "0.13.0";

/// The linker and what it is linked against.
#[derive(Debug, Clone)]
pub struct Linker {
    llvm: Rustc,
    folder: PathBuf,
}

impl Linker {
    /// The linker for a compiler's output: against the LLVM of the host's rustc, unless the compiler's is newer, since
    /// LLVM reads what older versions wrote, not what newer ones did.
    pub fn new(workspace: &Workspace, host: &Rustc, compiler: &Rustc) -> Self {
        let llvm = if host.llvm >= compiler.llvm {
            host
        } else {
            compiler
        };
        Self {
            llvm: llvm.clone(),
            folder: workspace
                .tools()
                .join(format!("bpf-linker-{VERSION}-llvm{}", llvm.llvm)),
        }
    }

    /// The program.
    pub fn program(&self) -> PathBuf {
        self.folder.join("bin/bpf-linker")
    }

    /// What it is, for people.
    pub fn describe(&self) -> String {
        format!("{VERSION} with LLVM {}", self.llvm.llvm)
    }

    /// Whether it is there and runs. It stops running when an update of Rust takes its LLVM away.
    pub fn works(&self) -> bool {
        self.program().is_file()
            && command::output(
                Command::new(self.program())
                    .arg("--version")
                    .env_remove("LD_LIBRARY_PATH"),
            )
            .is_ok_and(|output| output.status.success())
    }

    /// Builds it if it does not work.
    pub fn ensure(&self, workspace: &Workspace) -> Result<()> {
        if self.works() {
            return Ok(());
        }
        command::check_interrupt()?;
        eprintln!(
            "building bpf-linker {} (crates.io, a minute or two), needed to link the BPF object",
            self.describe()
        );
        let prefix = self.link_llvm()?;
        let build = workspace.tools().join("build");
        command::quiet(
            workspace
                .cargo()
                .args(["install", "bpf-linker", "--version", VERSION, "--locked"])
                .args(["--force", "--no-default-features", "--features"])
                .arg(format!("llvm-{}", self.llvm.llvm))
                .arg("--root")
                .arg(&self.folder)
                .arg("--target-dir")
                .arg(&build)
                .env("LLVM_PREFIX", prefix)
                // Flags of the user are meant for the user's programs.
                .env_remove("RUSTFLAGS")
                .env_remove("CARGO_ENCODED_RUSTFLAGS")
                .env_remove("CARGO_BUILD_TARGET"),
        )?;
        fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))?;
        if !self.works() {
            bail!("{} was built but does not run", self.program().display());
        }
        Ok(())
    }

    /// Makes the folder that the linker's build takes for an LLVM installation: the library under the name that it is
    /// linked by, and under its own name.
    fn link_llvm(&self) -> Result<PathBuf> {
        let library = find_llvm(&self.llvm.sysroot, self.llvm.llvm).with_context(|| {
            format!(
                "no libLLVM.so.{} below {}: install Rust by rustup",
                self.llvm.llvm,
                self.llvm.sysroot.display()
            )
        })?;
        let prefix = self.folder.join("llvm");
        let folder = prefix.join("lib");
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let own_name = library.file_name().context("a library has a name")?;
        for name in ["libLLVM.so".as_ref(), own_name] {
            let link = folder.join(name);
            // Left by an earlier Rust.
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(&library, &link)
                .with_context(|| format!("cannot link {}", link.display()))?;
        }
        Ok(prefix)
    }
}

/// The shared library in a sysroot: rustup's are in `lib`, Debian's in `lib/<architecture>-linux-gnu`. A name such as
/// `libLLVM-22-rust-1.95.0-stable.so` beside it is a linker script.
fn find_llvm(sysroot: &Path, major: u32) -> Option<PathBuf> {
    let name = format!("libLLVM.so.{major}");
    let multiarch = format!("lib/{}-linux-gnu", std::env::consts::ARCH);
    ["lib", "lib64", &multiarch]
        .iter()
        .filter_map(|folder| fs::read_dir(sysroot.join(folder)).ok())
        .flat_map(|entries| entries.flatten())
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&name))
        .map(|entry| entry.path())
}

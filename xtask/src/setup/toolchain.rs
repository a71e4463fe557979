//! What builds the BPF object: a rustc, the sources of its own core library, and a linker.
//!
//! The core library is built for BPF from rust-src, and must be of the same version as the compiler. Where rustup's
//! component cannot be had, Debian's newer Rust is taken as a whole: its cargo, its rustc, its sources. The agent is always built by the toolchain that runs xtask.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::distro::{Distro, Family, Package, find_program};
use crate::{command, workspace::cargo_with};

/// The oldest Rust that builds the workspace.
pub const OLDEST_RUST: (u32, u32) = (1, 95);

/// Debian's newer toolchain: the packages, and the programs in them.
const DEBIAN_PACKAGES: [Package; 3] = [
    Package::debian("rustc-web"),
    Package::debian("cargo-web"),
    Package::debian("rust-web-src"),
];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// A Rust compiler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rustc {
    /// How it is called.
    pub program: OsString,
    /// Its version, such as `1.95.0`.
    pub release: String,
    /// Major version of its LLVM, which the linker must not be older than.
    pub llvm: u32,
    /// Its libraries' root.
    pub sysroot: PathBuf,
}

impl Rustc {
    /// The compiler of the toolchain that runs xtask.
    pub fn of_host() -> Result<Self> {
        let rustc = Self::query(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))?;
        if !rustc.is_recent() {
            let (major, minor) = OLDEST_RUST;
            bail!(
                "rustc is {}, and {major}.{minor} or newer is needed: run rustup update",
                rustc.release
            );
        }
        Ok(rustc)
    }

    /// Debian's compiler, if it is installed and recent.
    fn of_debian() -> Option<Self> {
        Path::new(DEBIAN_RUSTC).exists().then_some(())?;
        Self::query(DEBIAN_RUSTC.into())
            .ok()
            .filter(Self::is_recent)
    }

    fn query(program: OsString) -> Result<Self> {
        let ask = |arguments: &[&str]| {
            command::stdout(
                Command::new(&program)
                    .args(arguments)
                    .env_remove("LD_LIBRARY_PATH"),
            )
        };
        let text = ask(&["-vV"])?;
        let (release, llvm) = parse_version(&text)
            .with_context(|| format!("cannot read the version of rustc from: {text}"))?;
        Ok(Self {
            release,
            llvm,
            sysroot: ask(&["--print", "sysroot"])?.trim().into(),
            program,
        })
    }

    fn is_recent(&self) -> bool {
        let mut numbers = self.release.split('.').map(|number| number.parse().ok());
        let version = (
            numbers.next().flatten().unwrap_or(0),
            numbers.next().flatten().unwrap_or(0),
        );
        version >= OLDEST_RUST
    }

    /// The folder that holds the core library's sources, if there are any.
    pub fn sources(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src")
    }

    /// Whether the core library's sources are there.
    pub fn has_sources(&self) -> bool {
        self.sources().join("rust/library/Cargo.lock").is_file()
    }

    /// Whether there is a standard library for a target.
    pub fn has_target(&self, target: &str) -> bool {
        let libraries = self.sysroot.join("lib/rustlib").join(target).join("lib");
        libraries.is_dir()
    }
}

/// `release:` and the major number of `LLVM version:` in the output of `rustc -vV`.
fn parse_version(text: &str) -> Option<(String, u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let release = field("release: ")?.to_owned();
    let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
    Some((release, llvm))
}

/// Where the BPF object's toolchain comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The toolchain that runs xtask.
    Host,
    /// Debian's packages.
    Debian,
}

/// A compiler with the sources of its core library.
#[derive(Debug, Clone)]
pub struct BpfToolchain {
    /// Where it comes from.
    pub origin: Origin,
    /// The compiler.
    pub rustc: Rustc,
}

impl BpfToolchain {
    /// The one that is installed, if any.
    pub fn find(host: &Rustc) -> Option<Self> {
        Self::host(host).or_else(Self::debian)
    }

    /// The one that is installed, or else the first that can be: rustup's component, then Debian's packages.
    pub fn ensure(host: &Rustc, distro: &Distro) -> Result<Self> {
        if let Some(found) = Self::host(host) {
            return Ok(found);
        }
        if let Err(error) = add_rustup_component() {
            command::check_interrupt()?;
            eprintln!("rust-src cannot be had from rustup: {error}");
        } else if let Some(found) = Self::host(host) {
            return Ok(found);
        } else {
            eprintln!("rustup takes rust-src for installed, but it is not there");
        }
        Self::ensure_debian(distro).context("rust-src is missing")
    }

    /// Debian's, installed if it is not.
    pub fn ensure_debian(distro: &Distro) -> Result<Self> {
        if let Some(found) = Self::debian() {
            return Ok(found);
        }
        if distro.family != Family::Debian {
            bail!(
                "{} does not package Rust with its sources as Debian does: run rustup component add rust-src",
                distro.name
            );
        }
        for package in &DEBIAN_PACKAGES {
            eprintln!("{}", distro.announce(package, "build core for BPF"));
        }
        distro.install(&DEBIAN_PACKAGES)?;
        Self::debian().context(
            "Debian's rustc-web is older than the workspace needs or lacks its sources: run rustup component add rust-src",
        )
    }

    fn host(host: &Rustc) -> Option<Self> {
        host.has_sources().then(|| Self {
            origin: Origin::Host,
            rustc: host.clone(),
        })
    }

    fn debian() -> Option<Self> {
        let rustc = Rustc::of_debian().filter(Rustc::has_sources)?;
        Some(Self {
            origin: Origin::Debian,
            rustc,
        })
    }

    /// The cargo that goes with the compiler, told to use it.
    pub fn cargo(&self) -> Command {
        match self.origin {
            Origin::Host => cargo_with(env::var_os("CARGO").unwrap_or_else(|| "cargo".into())),
            Origin::Debian => {
                let mut cargo = cargo_with(DEBIAN_CARGO);
                cargo
                    .env("CARGO", DEBIAN_CARGO)
                    .env("RUSTC", DEBIAN_RUSTC)
                    .env_remove("RUSTUP_TOOLCHAIN");
                cargo
            }
        }
    }

    /// For people.
    pub fn describe(&self) -> &'static str {
        match self.origin {
            Origin::Host => "component of the toolchain",
            Origin::Debian => "Debian package rust-web-src",
        }
    }
}

fn add_rustup_component() -> Result<()> {
    eprintln!("installing rust-src (rustup component), needed to build core for BPF");
    rustup(&["component", "add", "rust-src"])
}

/// Installs the standard library for a target.
pub fn add_rustup_target(target: &str) -> Result<()> {
    eprintln!(
        "installing rust-std for {target} (rustup component), needed to build static programs"
    );
    rustup(&["target", "add", target])
}

fn rustup(arguments: &[&str]) -> Result<()> {
    if find_program("rustup").is_none() {
        bail!("rustup is not installed");
    }
    let output = command::output(Command::new("rustup").args(arguments))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!(
            "{}",
            text.lines()
                .find(|line| line.starts_with("error"))
                .unwrap_or("rustup failed")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUSTUP: &str = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\n\
        commit-hash: 59807616e1fa2540724bfbac14d7976d7e4a3860\ncommit-date: 2026-04-14\n\
        host: x86_64-unknown-linux-gnu\nrelease: 1.95.0\nLLVM version: 22.1.2\n";

    fn rustc(release: &str) -> Rustc {
        Rustc {
            program: "rustc".into(),
            release: release.into(),
            llvm: 22,
            sysroot: "/nowhere".into(),
        }
    }

    #[test]
    fn release_and_llvm_are_read_from_the_verbose_version() {
        assert_eq!(parse_version(RUSTUP), Some(("1.95.0".to_owned(), 22)));
        let nightly = RUSTUP.replace("release: 1.95.0", "release: 1.97.0-nightly");
        assert_eq!(
            parse_version(&nightly),
            Some(("1.97.0-nightly".to_owned(), 22))
        );
        // A compiler with another code generator has no LLVM.
        assert_eq!(parse_version("release: 1.95.0\n"), None);
        assert_eq!(parse_version(""), None);
    }

    #[test]
    fn older_compilers_are_refused() {
        for (release, recent) in [
            ("1.94.1", false),
            ("1.63.0", false),
            ("1.95.0", true),
            ("1.97.0-nightly", true),
            ("2.0.0", true),
            ("unknown", false),
        ] {
            assert_eq!(rustc(release).is_recent(), recent, "{release}");
        }
    }

    #[test]
    fn a_sysroot_without_sources_has_none() {
        assert!(!rustc("1.95.0").has_sources());
    }
}

//! Debian's archive, read by an apt of its own: packages are fetched and unpacked below the target folder, and the
//! system's package manager knows nothing of them. What installs on the system is in `setup`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::command;

/// Signs all of it.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where releases and backports are.
pub const MAIN: &str = "http://deb.debian.org/debian";
/// Where their security updates are.
pub const SECURITY: &str = "http://deb.debian.org/debian-security";

/// A part of the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suite {
    /// Its name, such as `bookworm-security`.
    pub name: &'static str,
    /// Where it is.
    pub archive: &'static str,
}

/// What is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Packages that can be unpacked and run.
    Binary,
    /// What they are built from.
    Source,
}

/// apt, with the lists of some suites for one architecture, and nothing of the system's.
#[derive(Debug)]
pub struct Apt {
    folder: PathBuf,
    architecture: String,
}

impl Apt {
    /// Fetches the lists into `folder`. `architecture` is Debian's name of it, such as `arm64`.
    pub fn update(folder: PathBuf, architecture: &str, suites: &[Suite]) -> Result<Self> {
        Self::update_kind(Kind::Binary, folder, architecture, suites)
    }

    /// As [`Apt::update`], of packages or of their sources.
    pub fn update_kind(
        kind: Kind,
        folder: PathBuf,
        architecture: &str,
        suites: &[Suite],
    ) -> Result<Self> {
        let entry = match kind {
            Kind::Binary => "deb",
            Kind::Source => "deb-src",
        };
        for inside in ["lists/partial", "cache/archives/partial", "empty"] {
            make_folder(&folder.join(inside))?;
        }
        let sources: String = suites
            .iter()
            .map(|Suite { name, archive }| {
                format!("{entry} [arch={architecture} signed-by={KEYRING}] {archive} {name} main\n")
            })
            .collect();
        let list = folder.join("sources.list");
        fs::write(&list, sources).with_context(|| format!("cannot write {}", list.display()))?;
        let apt = Self {
            folder,
            architecture: architecture.to_owned(),
        };
        command::quiet(apt.command("apt-get").args(["update", "-q"]))?;
        Ok(apt)
    }

    /// A program of apt's, told to use these lists.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (option, inside) in [
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::Etc::sourceparts", "empty"),
            ("Dir::State::lists", "lists"),
            ("Dir::Cache", "cache"),
        ] {
            let path = self.folder.join(inside);
            command.arg(format!("-o{option}={}", path.display()));
        }
        for option in ["APT::Architecture", "APT::Architectures"] {
            command.arg(format!("-o{option}={}", self.architecture));
        }
        // Nothing is installed as far as this apt knows. Its own user may not write here.
        command.args([
            "-oDir::State::status=/dev/null",
            "-oAPT::Sandbox::User=",
            "-oAcquire::Languages=none",
            // Descriptions for graphical shops: half of what would be fetched.
            "-oAcquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
        ]);
        command
    }

    /// Fetches a package's source into a folder, which is made anew, as it is in the archive.
    pub fn download_source(&self, package: &str, to: &Path) -> Result<()> {
        make_anew(to)?;
        command::quiet(
            self.command("apt-get")
                .args(["source", "--download-only", "-q", package])
                .current_dir(to),
        )
    }

    /// Fetches packages into a folder, which is made anew.
    pub fn download<'a>(
        &self,
        packages: impl IntoIterator<Item = &'a str>,
        to: &Path,
    ) -> Result<()> {
        make_anew(to)?;
        command::quiet(
            self.command("apt-get")
                .args(["download", "-q"])
                .args(packages)
                .current_dir(to),
        )
    }
}

/// Unpacks all packages of a folder into another.
pub fn unpack_all(packages: &Path, to: &Path) -> Result<()> {
    let entries = fs::read_dir(packages)
        .with_context(|| format!("cannot read {}", packages.display()))?
        .flatten();
    for entry in entries {
        unpack(&entry.path(), to)?;
    }
    Ok(())
}

/// Unpacks a package into a folder.
pub fn unpack(package: &Path, to: &Path) -> Result<()> {
    command::quiet(Command::new("dpkg-deb").arg("-x").arg(package).arg(to))
}

/// Makes a folder and those that it is in.
pub fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// Makes a folder that is empty: what an earlier try has left is of no use.
pub fn make_anew(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    make_folder(folder)
}

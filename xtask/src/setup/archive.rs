//! Debian's archive, read by an apt that has lists of its own and knows nothing of the system's: parts of the archive that
//! the machine does not use, without a change to what it does use.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::command;

/// Signs all parts.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where releases and their backports are.
pub const DEBIAN: &str = "http://deb.debian.org/debian";
/// Where security updates are.
pub const SECURITY: &str = "http://deb.debian.org/debian-security";

/// What is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Packages for x86_64.
    Binary,
    /// Source packages.
    Source,
}

/// One part of the archive.
#[derive(Debug)]
pub struct Archive {
    folder: PathBuf,
}

impl Archive {
    /// Fetches the list of a suite such as `bookworm-backports` into a folder of that name below `folder`.
    pub fn new(folder: &Path, kind: Kind, suite: &str, archive: &str) -> Result<Self> {
        let folder = folder.join(suite);
        for inside in ["lists/partial", "cache/archives/partial", "empty"] {
            let inside = folder.join(inside);
            fs::create_dir_all(&inside)
                .with_context(|| format!("cannot make {}", inside.display()))?;
        }
        let entry = match kind {
            Kind::Binary => format!("deb [arch=amd64 signed-by={KEYRING}]"),
            Kind::Source => format!("deb-src [signed-by={KEYRING}]"),
        };
        let list = folder.join("sources.list");
        fs::write(&list, format!("{entry} {archive} {suite} main\n"))
            .with_context(|| format!("cannot write {}", list.display()))?;
        let apt = Self { folder };
        command::quiet(apt.command("apt-get").args(["update", "-q"]))?;
        Ok(apt)
    }

    /// Where its lists are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// `apt-get` or `apt-cache`, on this part alone.
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
        // Nothing is installed as far as this apt knows. Its own user may not write here.
        command.args([
            "-oDir::State::status=/dev/null",
            "-oAPT::Sandbox::User=",
            "-oAcquire::Languages=none",
        ]);
        command
    }
}

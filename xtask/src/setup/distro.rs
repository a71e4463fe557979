//! Which distribution this is, and its package manager.
//!
//! Only Debian's packages are installed; the other distributions' names are printed, as far as known, for their users
//! to install.

use std::{env, fs, path::PathBuf, process::Command};

use anyhow::{Result, bail};

use super::apt;
use crate::command::SUDO;

/// The oldest Debian release that the packages' names and versions are tried on.
const OLDEST_TESTED_DEBIAN: u32 = 12;

/// Folders with system tools that an ordinary user's `PATH` may lack.
const SYSTEM_FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Names of one package in the distributions; empty where there is none or it is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Package {
    /// Debian and its descendants.
    pub debian: &'static str,
    /// Fedora and its relatives (dnf).
    pub fedora: &'static str,
    /// Arch Linux (pacman).
    pub arch: &'static str,
    /// openSUSE (zypper).
    pub suse: &'static str,
}

/// Distributions that share package names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// apt.
    Debian,
    /// dnf.
    Fedora,
    /// pacman.
    Arch,
    /// zypper.
    Suse,
    /// Anything else.
    Unknown,
}

/// The running distribution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distro {
    /// Its name for people.
    pub name: String,
    /// Whose package names it uses.
    pub family: Family,
    /// Whether set-up is tried on it.
    pub tested: bool,
}

impl Package {
    /// A package that has the same name everywhere.
    pub const fn everywhere(name: &'static str) -> Self {
        Self {
            debian: name,
            fedora: name,
            arch: name,
            suse: name,
        }
    }

    /// A package that only Debian has.
    pub const fn debian(name: &'static str) -> Self {
        Self {
            debian: name,
            fedora: "",
            arch: "",
            suse: "",
        }
    }
}

impl Distro {
    /// Reads `/etc/os-release`.
    pub fn detect() -> Self {
        Self::parse(&fs::read_to_string("/etc/os-release").unwrap_or_default())
    }

    /// Reads the contents of an `os-release` file (os-release(5)).
    fn parse(os_release: &str) -> Self {
        let field = |name: &str| {
            os_release
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
                .map(|value| value.trim().trim_matches(['"', '\'']).to_owned())
                .unwrap_or_default()
        };
        let id = field("ID");
        let like = field("ID_LIKE");
        let family = std::iter::once(id.as_str())
            .chain(like.split_whitespace())
            .find_map(|id| match id {
                "debian" => Some(Family::Debian),
                "fedora" | "rhel" | "centos" => Some(Family::Fedora),
                "arch" => Some(Family::Arch),
                "suse" | "opensuse" => Some(Family::Suse),
                _ => None,
            })
            .unwrap_or(Family::Unknown);
        // Debian testing and unstable have no VERSION_ID.
        let recent = field("VERSION_ID")
            .parse()
            .map_or(true, |version: u32| version >= OLDEST_TESTED_DEBIAN);
        let name = match field("PRETTY_NAME") {
            name if name.is_empty() => "an unknown distribution".to_owned(),
            name => name,
        };
        Self {
            name,
            family,
            tested: id == "debian" && recent,
        }
    }

    /// The name of a package here.
    pub fn package_name(&self, package: &Package) -> &'static str {
        match self.family {
            Family::Debian | Family::Unknown => package.debian,
            Family::Fedora => package.fedora,
            Family::Arch => package.arch,
            Family::Suse => package.suse,
        }
    }

    /// Says where a package comes from.
    pub fn package_source(&self, package: &Package) -> String {
        match self.family {
            Family::Debian => format!("Debian package {}", package.debian),
            _ => match self.package_name(package) {
                "" => "not packaged".to_owned(),
                name => format!("package {name}"),
            },
        }
    }

    /// The line that says what is about to be installed, or must be, and why.
    pub fn announce(&self, package: &Package, purpose: &str) -> String {
        match (self.family, self.package_name(package)) {
            (Family::Debian, name) => {
                format!("installing {name} (Debian package), needed to {purpose}")
            }
            (_, "") => format!(
                "missing: a package with Debian's {}, needed to {purpose}",
                package.debian
            ),
            (_, name) => format!("missing: {name} (package), needed to {purpose}"),
        }
    }

    /// Installs packages on Debian, as root or through sudo; elsewhere fails with the command to type.
    pub fn install(&self, packages: &[Package]) -> Result<()> {
        let mut names: Vec<&str> = packages
            .iter()
            .map(|package| self.package_name(package))
            .filter(|name| !name.is_empty())
            .collect();
        names.dedup();
        let tool = match self.family {
            Family::Debian => return apt::install(&names),
            Family::Fedora => "run dnf install",
            Family::Arch => "run pacman -S",
            Family::Suse => "run zypper install",
            Family::Unknown => "install what Debian calls",
        };
        if names.is_empty() {
            bail!(
                "{} (untested) has no package of it that set-up knows: install it from its source, then try again",
                self.name
            );
        }
        bail!(
            "set-up installs packages on Debian only; on {} (untested) {tool} {}, then try again",
            self.name,
            names.join(" ")
        )
    }
}

/// Where a program is, on `PATH` or in the system's folders.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM_FOLDERS.map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

/// Whether xtask runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command that runs as root: itself, or through sudo.
pub fn as_root(program: &str) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    if find_program(SUDO).is_none() {
        bail!("root is needed, and there is no sudo: run this as root");
    }
    let mut command = Command::new(SUDO);
    command.arg(program);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_12_is_tested_and_11_is_not() {
        let bookworm =
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\n";
        let distro = Distro::parse(bookworm);
        assert_eq!(distro.name, "Debian GNU/Linux 12 (bookworm)");
        assert_eq!((distro.family, distro.tested), (Family::Debian, true));
        let distro = Distro::parse(&bookworm.replace("12", "11"));
        assert_eq!((distro.family, distro.tested), (Family::Debian, false));
        let sid = Distro::parse("PRETTY_NAME=\"Debian GNU/Linux forky/sid\"\nID=debian\n");
        assert_eq!((sid.family, sid.tested), (Family::Debian, true));
    }

    #[test]
    fn descendants_use_their_parents_names_untested() {
        for (text, family) in [
            (
                "ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"24.04\"",
                Family::Debian,
            ),
            ("ID=fedora\nVERSION_ID=42", Family::Fedora),
            (
                "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"",
                Family::Fedora,
            ),
            ("ID=manjaro\nID_LIKE=arch", Family::Arch),
            (
                "ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"",
                Family::Suse,
            ),
            ("ID=nixos", Family::Unknown),
            ("", Family::Unknown),
        ] {
            let distro = Distro::parse(text);
            assert_eq!((distro.family, distro.tested), (family, false), "{text}");
        }
    }
}

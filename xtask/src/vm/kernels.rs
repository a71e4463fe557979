//! Debian's kernels: found, fetched and unpacked by apt and dpkg into a folder of the target folder, which no package
//! manager of the system knows of. What is there is not fetched again.

use std::{
    fs, iter,
    path::{Path, PathBuf},
    process::Command,
    slice,
};

use anyhow::{Context, Result, anyhow, bail};

use crate::{
    command,
    debian::{self, Apt, MAIN, SECURITY, Suite},
    setup::distro::find_program,
};

/// The kernels that are tried if none is named, oldest first.
pub const DEFAULT: [&str; 4] = ["5.10", "6.1", "6.12", NEWEST];

/// The name of the newest that there is.
pub const NEWEST: &str = "newest";

/// Parts of Debian's archive with kernels, oldest kernels first. The largest lists, those of whole releases, are not
/// needed.
const SUITES: [Suite; 4] = [
    Suite {
        name: "bullseye-security",
        archive: SECURITY,
    },
    Suite {
        name: "bookworm-security",
        archive: SECURITY,
    },
    Suite {
        name: "bookworm-backports",
        archive: MAIN,
    },
    Suite {
        name: "trixie-backports",
        archive: MAIN,
    },
];

/// What a kernel's package is called, around its release.
const PACKAGE: &str = "linux-image-";
const ARCHITECTURE: &str = "-amd64";
/// The architecture, as Debian calls it.
const AMD64: &str = "amd64";

/// A kernel that is unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// What `uname -r` will say.
    pub release: String,
    /// Its image.
    pub image: PathBuf,
    /// The folder with `lib/modules/<release>`.
    pub base: PathBuf,
}

impl Kernel {
    /// The folder of the modules.
    pub fn modules(&self) -> PathBuf {
        self.base.join("lib/modules").join(&self.release)
    }
}

/// The kernel that is called `name`: a version as far as one likes, or [`NEWEST`]. Fetches it into `folder` if it is
/// not there.
pub fn find(folder: &Path, name: &str) -> Result<Kernel> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("only kernels for x86_64 are fetched");
    }
    let unpacked = folder.join("kernels").join(name);
    if !unpacked.exists() {
        fetch(folder, name, &unpacked)?;
    }
    open(&unpacked)
}

/// Looks at an unpacked kernel. Older packages have it in `/boot` and `/lib`, newer ones all in `/usr/lib`.
fn open(unpacked: &Path) -> Result<Kernel> {
    let base = match unpacked.join("usr/lib/modules") {
        modules if modules.is_dir() => unpacked.join("usr"),
        _ => unpacked.to_owned(),
    };
    let modules = base.join("lib/modules");
    let release = fs::read_dir(&modules)
        .with_context(|| format!("cannot read {}", modules.display()))?
        .flatten()
        .find_map(|entry| entry.file_name().into_string().ok())
        .with_context(|| format!("{} is empty", modules.display()))?;
    let images = [
        unpacked.join(format!("boot/vmlinuz-{release}")),
        modules.join(&release).join("vmlinuz"),
    ];
    let image = images
        .into_iter()
        .find(|image| image.is_file())
        .with_context(|| format!("no image of kernel {release} in {}", unpacked.display()))?;
    Ok(Kernel {
        release,
        image,
        base,
    })
}

fn fetch(folder: &Path, name: &str, unpacked: &Path) -> Result<()> {
    let mut failure = None;
    let mut best: Option<(Vec<u32>, String, Apt)> = None;
    let suites = match name {
        NEWEST => &SUITES[SUITES.len() - 1..],
        _ => &SUITES,
    };
    for suite in suites {
        let lists = folder.join("apt").join(suite.name);
        let apt = match Apt::update(lists, AMD64, slice::from_ref(suite)) {
            Ok(apt) => apt,
            Err(error) => {
                command::check_interrupt()?;
                failure = Some(error);
                continue;
            }
        };
        if let Some((version, package)) = choose(&packages(&apt)?, name)
            && best.as_ref().is_none_or(|(best, ..)| *best < version)
        {
            best = Some((version, package, apt));
        }
    }
    match (best, failure) {
        (Some((_, package, apt)), _) => {
            eprintln!("fetching {package} (Debian package) into the target folder");
            unpack(&apt, &folder.join("apt"), &package, unpacked)
        }
        (None, Some(failure)) => Err(failure),
        (None, None) => Err(anyhow!("there is no such package")),
    }
    .with_context(|| format!("kernel {name} cannot be had from Debian's archive"))
}

fn packages(apt: &Apt) -> Result<String> {
    command::stdout(apt.command("apt-cache").args(["pkgnames", PACKAGE]))
}

/// The package of the highest version that begins with `name`, and the numbers of that version.
fn choose(packages: &str, name: &str) -> Option<(Vec<u32>, String)> {
    packages
        .lines()
        .filter_map(|package| {
            let release = package.strip_prefix(PACKAGE)?.strip_suffix(ARCHITECTURE)?;
            // Others are for clouds or real time, or unsigned.
            let plain = release
                .chars()
                .all(|c| c.is_ascii_digit() || ".-+deb".contains(c));
            let rest = if name == NEWEST {
                "."
            } else {
                release.strip_prefix(name)?
            };
            (plain && release.starts_with(|c: char| c.is_ascii_digit()))
                .then_some(())
                .filter(|()| !rest.starts_with(|c: char| c.is_ascii_digit()))?;
            Some((numbers(release), package.to_owned()))
        })
        .max()
}

/// The numbers in a release, in their order.
fn numbers(release: &str) -> Vec<u32> {
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// Unpacks a package and those of the same release that it depends on.
fn unpack(apt: &Apt, folder: &Path, package: &str, to: &Path) -> Result<()> {
    let release = package.trim_start_matches(PACKAGE);
    let depends = command::stdout(apt.command("apt-cache").args(["depends", package]))?;
    let parts = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .filter(|part| part.ends_with(release));
    let fetched = folder.join("fetched");
    apt.download(iter::once(package).chain(parts), &fetched)?;
    let mut whole = to.as_os_str().to_owned();
    whole.push(".part");
    let whole = PathBuf::from(whole);
    debian::make_anew(&whole)?;
    debian::unpack_all(&fetched, &whole)?;
    fs::remove_dir_all(&fetched).with_context(|| format!("cannot remove {}", fetched.display()))?;
    let kernel = open(&whole)?;
    let depmod = find_program("depmod").context("there is no depmod")?;
    command::quiet(
        Command::new(depmod)
            .arg("-b")
            .arg(&kernel.base)
            .arg(&kernel.release),
    )?;
    fs::rename(&whole, to).with_context(|| format!("cannot make {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKAGES: &str = "linux-image-6.1.0-9-amd64\nlinux-image-6.1.0-56-amd64\nlinux-image-amd64\n\
        linux-image-6.12.95+deb12-amd64\nlinux-image-6.12.90+deb12.1-amd64\nlinux-image-7.3.4+deb13-amd64\n\
        linux-image-6.12.96+deb12-cloud-amd64\nlinux-image-6.12.97+deb12-rt-amd64\n\
        linux-image-6.12.98+deb12-amd64-unsigned\nlinux-image-6.12.99+deb12-arm64\n";

    #[test]
    fn the_highest_version_of_a_series_is_chosen() {
        for (name, package) in [
            ("6.1", Some("linux-image-6.1.0-56-amd64")),
            ("6.12", Some("linux-image-6.12.95+deb12-amd64")),
            ("6.12.90", Some("linux-image-6.12.90+deb12.1-amd64")),
            ("6", Some("linux-image-6.12.95+deb12-amd64")),
            (NEWEST, Some("linux-image-7.3.4+deb13-amd64")),
            ("5.10", None),
        ] {
            let chosen = choose(PACKAGES, name).map(|(_, package)| package);
            assert_eq!(chosen.as_deref(), package, "{name}");
        }
    }
}

//! What of the image comes from Debian: the programs that write netfilter rules, their libraries, certificates and
//! lists of names. Exactly these files, and no shell.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{
    Arch,
    tree::{FILE_MODE, Node, Tree},
};
use crate::{
    command,
    debian::{self, Apt, MAIN, SECURITY, Suite},
};

/// The release that the files are of, and its updates.
const SUITES: [Suite; 2] = [
    Suite {
        name: "trixie",
        archive: MAIN,
    },
    Suite {
        name: "trixie-security",
        archive: SECURITY,
    },
];

/// Packages are fetched again when they are older.
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// A package, and what of it is in the image.
struct Package {
    name: &'static str,
    /// Paths, with `*` for any part of a name. Each must match.
    files: &'static [&'static str],
}

/// All packages. That no library is missing is tested when the image is made.
const PACKAGES: [Package; 20] = [
    // The agent writes and reads rules with either variant, whichever others on the node use; so it needs every
    // extension to read the rules of others.
    Package {
        name: "iptables",
        files: &[
            "usr/sbin/xtables-nft-multi",
            "usr/sbin/xtables-legacy-multi",
            "usr/sbin/ip*tables-nft*",
            "usr/sbin/ip*tables-legacy*",
            "usr/lib/*/xtables/*.so",
        ],
    },
    library("libxtables12", &["usr/lib/*/libxtables.so.*"]),
    library("libip4tc2", &["usr/lib/*/libip4tc.so.*"]),
    library("libip6tc2", &["usr/lib/*/libip6tc.so.*"]),
    library("libmnl0", &["usr/lib/*/libmnl.so.*"]),
    library("libnftnl11", &["usr/lib/*/libnftnl.so.*"]),
    library(
        "libnetfilter-conntrack3",
        &["usr/lib/*/libnetfilter_conntrack.so.*"],
    ),
    library("libnfnetlink0", &["usr/lib/*/libnfnetlink.so.*"]),
    library("nftables", &["usr/sbin/nft"]),
    library("libnftables1", &["usr/lib/*/libnftables.so.*"]),
    library("libjansson4", &["usr/lib/*/libjansson.so.*"]),
    library("libgmp10", &["usr/lib/*/libgmp.so.*"]),
    library("libedit2", &["usr/lib/*/libedit.so.*"]),
    library("libbsd0", &["usr/lib/*/libbsd.so.*"]),
    library("libmd0", &["usr/lib/*/libmd.so.*"]),
    library("libtinfo6", &["usr/lib/*/libtinfo.so.*"]),
    library(
        "libc6",
        &[
            // Where programs say that it is.
            "usr/lib*/ld-linux-*",
            "usr/lib/*/ld-linux-*",
            "usr/lib/*/libc.so.*",
            "usr/lib/*/libm.so.*",
        ],
    ),
    // Names of protocols and ports in rules.
    library("netbase", &["etc/protocols", "etc/services"]),
    library("ca-certificates", &["usr/share/ca-certificates/*/*.crt"]),
    // For people, and for scanners of packages.
    library("base-files", &["etc/os-release", "usr/lib/os-release"]),
];

const fn library(name: &'static str, files: &'static [&'static str]) -> Package {
    Package { name, files }
}

/// The bundle of certificates, where Rust's and other TLS libraries look, and what it is made of.
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";
const CERTIFICATES: &str = "usr/share/ca-certificates/";

/// Links that packages make when they are installed: the nftables variant is the one that Debian calls iptables.
const LINKS: [(&str, &str); 10] = [
    ("bin", "usr/bin"),
    ("sbin", "usr/sbin"),
    ("lib", "usr/lib"),
    ("var/run", "/run"),
    ("usr/sbin/iptables", "xtables-nft-multi"),
    ("usr/sbin/iptables-save", "xtables-nft-multi"),
    ("usr/sbin/iptables-restore", "xtables-nft-multi"),
    ("usr/sbin/ip6tables", "xtables-nft-multi"),
    ("usr/sbin/ip6tables-save", "xtables-nft-multi"),
    ("usr/sbin/ip6tables-restore", "xtables-nft-multi"),
];

/// Folders that are mounted over or written to, and their rights.
const FOLDERS: [(&str, u32); 6] = [
    ("dev", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr/bin", 0o755),
];

/// The files from Debian for one architecture, and the packages' versions, for people. What was fetched into `folder` within a day
/// is not fetched again.
pub fn files(folder: &Path, arch: Arch) -> Result<(Tree, String)> {
    let unpacked = folder.join(arch.debian());
    if !is_recent(&unpacked) {
        fetch(folder, arch, &unpacked)?;
    }
    let mut tree = Tree::default();
    let mut versions = Vec::new();
    for package in &PACKAGES {
        versions.push(take(package, &unpacked, &mut tree)?);
    }
    if unpacked.join("libc6/usr/lib64").exists() {
        tree.add("lib64", Node::Link("usr/lib64".into()))?;
    }
    for (path, to) in LINKS {
        tree.add(path, Node::Link(to.into()))?;
    }
    for (path, mode) in FOLDERS {
        tree.add(path, Node::Folder(mode))?;
    }
    let bundle = bundle(&tree);
    tree.add(BUNDLE, Node::File(FILE_MODE, bundle))?;
    Ok((tree, versions.join(", ")))
}

fn is_recent(folder: &Path) -> bool {
    folder
        .metadata()
        .and_then(|metadata| metadata.modified())
        .is_ok_and(|time| time.elapsed().is_ok_and(|age| age < MAX_AGE))
}

/// Fetches the packages, and unpacks each into a folder of its name, with its description beside it.
fn fetch(folder: &Path, arch: Arch, to: &Path) -> Result<()> {
    let arch = arch.debian();
    eprintln!("fetching iptables, nft and their libraries (Debian packages) for the image");
    let apt = Apt::update(folder.join("apt").join(arch), arch, &SUITES)?;
    let fetched = folder.join("apt").join("fetched");
    apt.download(PACKAGES.iter().map(|package| package.name), &fetched)?;
    let part = folder.join("part");
    debian::make_anew(&part)?;
    for package in fs::read_dir(&fetched)?.flatten() {
        let package = package.path();
        let description = command::stdout(Command::new("dpkg-deb").arg("-f").arg(&package))?;
        let name = field(&description, "Package")
            .with_context(|| format!("{} does not say its name", package.display()))?;
        debian::unpack(&package, &part.join(name))?;
        let path = description_of(&part, name);
        fs::write(&path, &description)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    debian::make_anew(to)?;
    fs::rename(&part, to).with_context(|| format!("cannot make {}", to.display()))
}

/// A field of a package's description (deb-control(5)).
fn field<'a>(description: &'a str, name: &str) -> Option<&'a str> {
    description
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn description_of(unpacked: &Path, package: &str) -> PathBuf {
    unpacked.join(format!("{package}.control"))
}

/// Takes a package's files, its licence, and its description, where scanners look for it in images without a package
/// manager. Gives name and version.
fn take(package: &Package, unpacked: &Path, tree: &mut Tree) -> Result<String> {
    let name = package.name;
    let base = unpacked.join(name);
    let licence = format!("usr/share/doc/{name}/copyright");
    for pattern in package.files.iter().copied().chain([licence.as_str()]) {
        let whole = format!(
            "{}/{pattern}",
            glob::Pattern::escape(&base.to_string_lossy())
        );
        let mut found = 0;
        for path in glob::glob(&whole)? {
            let path = path?;
            let place = path.strip_prefix(&base)?.to_string_lossy().into_owned();
            tree.copy(&path, place)?;
            found += 1;
        }
        ensure!(found > 0, "Debian's package {name} has no {pattern}");
    }
    let path = description_of(unpacked, name);
    let description =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let version = field(&description, "Version")
        .with_context(|| format!("Debian's package {name} has no version"))?;
    let shown = format!("{name} {version}");
    tree.add(
        format!("var/lib/dpkg/status.d/{name}"),
        Node::File(FILE_MODE, description.into_bytes()),
    )?;
    Ok(shown)
}

/// All certificates in one file.
fn bundle(tree: &Tree) -> Vec<u8> {
    let certificates = tree.nodes().filter_map(|(path, node)| match node {
        Node::File(_, content) if path.starts_with(CERTIFICATES) => Some(content),
        _ => None,
    });
    let mut bundle = Vec::new();
    for certificate in certificates {
        bundle.extend(certificate);
        if !certificate.ends_with(b"\n") {
            bundle.push(b'\n');
        }
    }
    bundle
}

//! Debian's package manager and its database.

use std::{fs, process::Command};

use anyhow::{Result, bail};

use super::distro::{as_root, find_program, is_root};
use crate::command::{self, SUDO};

/// Seconds that apt waits for another apt to finish.
const LOCK_TIMEOUT: &str = "-oDPkg::Lock::Timeout=120";

/// Installs packages; brings the lists up to date first where there are none, or where the first try fails.
pub fn install(packages: &[&str]) -> Result<()> {
    if is_root() || find_program(SUDO).is_some() {
        let fresh = !has_package_lists();
        if fresh {
            update()?;
        }
        let first = command::quiet(&mut install_command(packages)?);
        if first.is_ok() || fresh {
            return first;
        }
        command::check_interrupt()?;
        // Lists that are out of date name versions that the mirror no longer has, or lack the package.
        update()?;
        command::quiet(&mut install_command(packages)?)
    } else {
        bail!(
            "neither root nor sudo: run this as root, then again: apt-get install {}",
            packages.join(" ")
        )
    }
}

fn install_command(packages: &[&str]) -> Result<Command> {
    let mut command = as_root("env")?;
    command
        .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y"])
        .args(["--no-install-recommends", LOCK_TIMEOUT])
        .args(packages);
    Ok(command)
}

fn update() -> Result<()> {
    eprintln!("updating the package lists (apt-get update)");
    command::quiet(as_root("apt-get")?.args(["update", "-q", LOCK_TIMEOUT]))
}

fn has_package_lists() -> bool {
    fs::read_dir("/var/lib/apt/lists").is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    })
}

/// The version of an installed Debian package, from dpkg's database.
pub fn dpkg_version(package: &str) -> Option<String> {
    installed_version(&fs::read_to_string("/var/lib/dpkg/status").ok()?, package)
}

fn installed_version(status: &str, package: &str) -> Option<String> {
    let head = format!("Package: {package}\n");
    let record = status
        .split("\n\n")
        .find(|record| record.starts_with(&head))?;
    let field = |name: &str| {
        record
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    field("Status")?
        .ends_with(" installed")
        .then(|| field("Version").map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dpkg_records_count_only_when_installed() {
        let status = "Package: etcd-server\nStatus: install ok installed\nVersion: 3.4.23+dfsg-4\n\n\
                      Package: etcd\nStatus: deinstall ok config-files\nVersion: 3.3\n\n";
        assert_eq!(
            installed_version(status, "etcd-server").as_deref(),
            Some("3.4.23+dfsg-4")
        );
        assert_eq!(installed_version(status, "etcd"), None);
        assert_eq!(installed_version(status, "etcd-client"), None);
    }
}

//! What the manifests of `deploy/` mount of the host a second time, below `/host`: a container's own `/proc/sys` cannot be
//! written, and container runtimes' AppArmor profiles forbid to write below `/sys/fs`, whatever capabilities one has. Such
//! profiles go by path.

use std::path::{Path, PathBuf};

/// Where the manifests mount what is the host's.
const MOUNTED: &str = "/host";
/// Folders that they mount there, if they do.
const FOLDERS: [&str; 2] = ["/proc/sys/net", "/sys/fs/bpf"];

/// Where a file of the host is to be had: below `/host` if its folder is mounted there, else where it always is.
pub fn path(file: &Path) -> PathBuf {
    below(Path::new(MOUNTED), file)
}

fn below(mounted: &Path, file: &Path) -> PathBuf {
    let folder = FOLDERS.iter().find(|folder| file.starts_with(folder));
    let again = |path: &Path| mounted.join(path.strip_prefix("/").unwrap_or(path));
    match folder {
        Some(folder) if again(Path::new(folder)).exists() => again(file),
        _ => file.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_below_host_if_its_folder_is() {
        let mounted = std::env::temp_dir().join(format!("flannel-host-{}", std::process::id()));
        std::fs::create_dir_all(mounted.join("sys/fs/bpf")).unwrap();
        let found = |file: &str| below(&mounted, Path::new(file));
        assert_eq!(
            found("/sys/fs/bpf/flannel"),
            mounted.join("sys/fs/bpf/flannel")
        );
        for elsewhere in ["/proc/sys/net/x", "/sys/fs/bpfx", "/run/flannel"] {
            assert_eq!(found(elsewhere), Path::new(elsewhere));
        }
        std::fs::remove_dir_all(&mounted).unwrap();
    }
}

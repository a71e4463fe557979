//! `subnet.env`: what the CNI plugin reads, and where the agent finds its previous subnet.
//!
//! The lines are upstream's to the byte (`pkg/subnet/subnet.go`, `WriteSubnetFile`). The file is never seen half
//! written: it is replaced by a rename.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    net::Ipv4Addr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;

/// Mode of the file, whatever the umask says: CNI plugins may run as somebody else.
const FILE_MODE: u32 = 0o644;
/// Mode of a directory that has to be made.
const DIRECTORY_MODE: u32 = 0o755;

/// Why `subnet.env` could not be written or read.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}: {source}", path.display())]
pub struct Error {
    /// What was tried.
    operation: &'static str,
    /// The file or directory.
    path: PathBuf,
    /// What the system said.
    source: io::Error,
}

/// Contents of `subnet.env`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetFile {
    /// The flannel network.
    pub network: Ipv4Net,
    /// This node's subnet.
    pub subnet: Ipv4Net,
    /// MTU for pods, in bytes.
    pub mtu: u32,
    /// Whether the agent masquerades, so that the CNI plugin need not.
    pub ip_masq: bool,
}

/// The address that pods use as their gateway: the first host address of the subnet.
pub fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()).wrapping_add(1))
}

impl SubnetFile {
    /// The file's text.
    pub fn text(&self) -> String {
        format!(
            "FLANNEL_NETWORK={}\nFLANNEL_SUBNET={}/{}\nFLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n",
            self.network,
            gateway(self.subnet),
            self.subnet.prefix_len(),
            self.mtu,
            self.ip_masq,
        )
    }

    /// Writes the file if it does not hold this text already; says whether it wrote.
    ///
    /// # Errors
    /// When a directory or file cannot be made, written or renamed; an existing file is then as it was.
    pub fn write(&self, path: &Path) -> Result<bool, Error> {
        let text = self.text();
        if fs::read(path).is_ok_and(|present| present == text.as_bytes()) {
            return Ok(false);
        }
        let directory = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let step = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| Error {
                operation,
                path,
                source,
            }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(directory)
            .map_err(step("create directory", directory))?;
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let written = write_synced(&temporary, &text)
            .map_err(step("write", &temporary))
            .and_then(|()| fs::rename(&temporary, path).map_err(step("replace", path)));
        if written.is_err() {
            // The error that matters is the one above.
            let _ = fs::remove_file(&temporary);
        }
        written?;
        // The rename itself must survive a power cut, or the node takes another subnet afterwards.
        File::open(directory)
            .and_then(|handle| handle.sync_all())
            .map_err(step("sync directory", directory))?;
        Ok(true)
    }
}

fn write_synced(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(path)?;
    file.set_permissions(fs::Permissions::from_mode(FILE_MODE))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// What an earlier run wrote, as far as it can be understood: network and subnet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Previous {
    /// The flannel network.
    pub network: Option<Ipv4Net>,
    /// The node's subnet, host bits cleared.
    pub subnet: Option<Ipv4Net>,
}

/// Reads what an earlier run wrote. A file that is absent or damaged holds nothing.
pub fn previous(path: &Path) -> Previous {
    fs::read_to_string(path)
        .map(|text| parse(&text))
        .unwrap_or_default()
}

/// As upstream reads it: a value may be a list, whose invalid members are skipped; more than one valid is none.
fn parse(text: &str) -> Previous {
    let prefix = |key: &str| {
        let value = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .filter(|(name, _)| name.trim() == key)
            .map(|(_, value)| value.trim())
            .next_back()?;
        let mut valid = value
            .split(',')
            .filter_map(|member| member.trim().parse::<Ipv4Net>().ok());
        let first = valid.next()?;
        valid.next().is_none().then(|| first.trunc())
    };
    Previous {
        network: prefix("FLANNEL_NETWORK"),
        subnet: prefix("FLANNEL_SUBNET"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> SubnetFile {
        SubnetFile {
            network: "10.5.0.0/16".parse().unwrap(),
            subnet: "10.5.15.64/26".parse().unwrap(),
            mtu: 1350,
            ip_masq: true,
        }
    }

    #[test]
    fn text_is_upstreams() {
        assert_eq!(
            example().text(),
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.15.65/26\nFLANNEL_MTU=1350\nFLANNEL_IPMASQ=true\n"
        );
    }

    #[test]
    fn what_was_written_is_read_back_without_host_bits() {
        let previous = parse(&example().text());
        assert_eq!(previous.network, Some("10.5.0.0/16".parse().unwrap()));
        assert_eq!(previous.subnet, Some("10.5.15.64/26".parse().unwrap()));
    }

    #[test]
    fn lists_and_damage_are_read_as_upstream_reads_them() {
        let subnet = |value: &str| parse(&format!("FLANNEL_SUBNET={value}\n")).subnet;
        assert_eq!(
            subnet("garbage,10.5.1.1/24"),
            Some("10.5.1.0/24".parse().unwrap())
        );
        assert_eq!(subnet("10.5.1.1/24,10.5.2.1/24"), None);
        assert_eq!(subnet(""), None);
        assert_eq!(subnet("10.5.1.1/33"), None);
        assert_eq!(parse("no assignment\n"), Previous::default());
    }

    #[test]
    fn file_is_replaced_whole_with_mode_0644_and_not_rewritten() {
        let directory =
            std::env::temp_dir().join(format!("flannel-subnet-file-{}", std::process::id()));
        let path = directory.join("made").join("subnet.env");
        let file = example();
        assert!(file.write(&path).unwrap());
        assert!(!file.write(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), file.text());
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            FILE_MODE
        );
        assert!(SubnetFile { mtu: 1400, ..file }.write(&path).unwrap());
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "no temporary file is left"
        );
        fs::remove_dir_all(directory).unwrap();
    }
}

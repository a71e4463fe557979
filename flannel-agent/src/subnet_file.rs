//! `subnet.env`: what the CNI plugin reads, and where the agent finds its previous subnet.
//!
//! The lines are upstream's to the byte (`pkg/subnet/subnet.go`, `WriteSubnetFile`). The file is never seen half
//! written: it is replaced by a rename.

use std::{fmt::Write as _, fs, path::Path};

use ipnet::IpNet;

use crate::{
    atomic_file::{self, Error},
    family::{Family, PerFamily, gateway},
};

/// Mode of the file, whatever the umask says: CNI plugins may run as somebody else.
const FILE_MODE: u32 = 0o644;
/// Contents of `subnet.env`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetFile {
    /// The flannel networks.
    pub networks: PerFamily<IpNet>,
    /// This node's subnets, of the same families.
    pub subnets: PerFamily<IpNet>,
    /// MTU for pods, in bytes.
    pub mtu: u32,
    /// Whether the agent masquerades, so that the CNI plugin need not.
    pub ip_masq: bool,
}

/// What the keys of a family are called: network and subnet.
const fn keys(family: Family) -> [&'static str; 2] {
    match family {
        Family::V4 => ["FLANNEL_NETWORK", "FLANNEL_SUBNET"],
        Family::V6 => ["FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET"],
    }
}

impl SubnetFile {
    /// The file's text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (family, subnet) in self.subnets.iter() {
            let [network_key, subnet_key] = keys(family);
            if let Some(network) = self.networks.get(family) {
                let _ = writeln!(text, "{network_key}={network}");
            }
            let (gateway, len) = (gateway(*subnet), subnet.prefix_len());
            let _ = writeln!(text, "{subnet_key}={gateway}/{len}");
        }
        let (mtu, ip_masq) = (self.mtu, self.ip_masq);
        let _ = writeln!(text, "FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ={ip_masq}");
        text
    }

    /// Writes the file if it does not hold this text already; says whether it wrote.
    ///
    /// # Errors
    /// When a directory or file cannot be made, written or renamed; an existing file is then as it was.
    pub fn write(&self, path: &Path) -> Result<bool, Error> {
        // A power cut must not make the node take another subnet.
        atomic_file::replace(path, self.text().as_bytes(), FILE_MODE)
    }
}

/// What an earlier run wrote, as far as it can be understood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Previous {
    /// The flannel networks.
    pub networks: PerFamily<IpNet>,
    /// The node's subnets, host bits cleared.
    pub subnets: PerFamily<IpNet>,
}

/// Reads what an earlier run wrote. A file that is absent or damaged holds nothing.
pub fn previous(path: &Path) -> Previous {
    fs::read_to_string(path)
        .map(|text| parse(&text))
        .unwrap_or_default()
}

/// Understands the file's text as upstream does: a value may be a list, whose invalid members are skipped; more than one
/// valid is none.
pub fn parse(text: &str) -> Previous {
    let prefix = |key: &str, family| {
        let value = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .filter(|(name, _)| name.trim() == key)
            .map(|(_, value)| value.trim())
            .next_back()?;
        let mut valid = value
            .split(',')
            .filter_map(|member| member.trim().parse::<IpNet>().ok())
            .filter(|net| Family::of_net(net) == family);
        let first = valid.next()?;
        valid.next().is_none().then(|| first.trunc())
    };
    let mut previous = Previous::default();
    for family in Family::ALL {
        let [network, subnet] = keys(family);
        *previous.networks.get_mut(family) = prefix(network, family);
        *previous.subnets.get_mut(family) = prefix(subnet, family);
    }
    previous
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn example() -> SubnetFile {
        SubnetFile {
            networks: PerFamily::v4("10.5.0.0/16".parse().unwrap()),
            subnets: PerFamily::v4("10.5.15.64/26".parse().unwrap()),
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

    fn dual_stack() -> SubnetFile {
        let mut file = example();
        file.networks.v6 = Some("fd00:5::/48".parse().unwrap());
        file.subnets.v6 = Some("fd00:5:0:9::/64".parse().unwrap());
        file
    }

    #[test]
    fn both_families_have_their_lines() {
        assert_eq!(
            dual_stack().text(),
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.15.65/26\nFLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:9::1/64\nFLANNEL_MTU=1350\nFLANNEL_IPMASQ=true\n"
        );
    }

    #[test]
    fn what_was_written_is_read_back_without_host_bits() {
        for file in [example(), dual_stack()] {
            let previous = parse(&file.text());
            assert_eq!(previous.networks, file.networks);
            assert_eq!(previous.subnets, file.subnets);
        }
    }

    #[test]
    fn lists_and_damage_are_read_as_upstream_reads_them() {
        let subnet = |value: &str| parse(&format!("FLANNEL_SUBNET={value}\n")).subnets.v4;
        assert_eq!(
            subnet("garbage,10.5.1.1/24"),
            Some("10.5.1.0/24".parse().unwrap())
        );
        assert_eq!(subnet("10.5.1.1/24,10.5.2.1/24"), None);
        assert_eq!(subnet(""), None);
        assert_eq!(subnet("10.5.1.1/33"), None);
        assert_eq!(subnet("fd00::1/64"), None);
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

//! `subnet.env` as the CNI plugin reads it: strictly, since pods get what it says.
//!
//! Upstream's reader (cni-plugin `flannel.go`, `loadFlannelSubnetEnv`): exact keys, the last of several lines counts,
//! lists in the NETWORK keys, duplicates in a list once. What flanneld itself reads back is more lenient, see
//! [`crate::subnet_file`].

use std::{fs, io, path::Path};

use ipnet::IpNet;

use crate::family::{Family, PerFamily};

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("open {path}: {}", plain(source))]
    Read {
        /// Its path.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// Lines are missing. The text is upstream's.
    #[error("{path} is missing {}", keys.join(", "))]
    Missing {
        /// Its path.
        path: String,
        /// The keys, in upstream's order.
        keys: Vec<&'static str>,
    },
    /// A value breaks a rule.
    #[error("{path}: {key}={value}: {rule}")]
    Value {
        /// Its path.
        path: String,
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What it should be.
        rule: &'static str,
    },
}

/// The system's words as Go prints them, for the error that operators search the net for.
fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The cluster's networks, host bits cleared.
    pub networks: PerFamily<Vec<IpNet>>,
    /// The node's subnets, host bits cleared.
    pub subnets: PerFamily<IpNet>,
    /// MTU of pods, in bytes.
    pub mtu: u32,
    /// Whether the agent masquerades, so that the delegate need not.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// Reads the file.
    ///
    /// # Errors
    /// If it cannot be read, lacks a line, or has a wrong value.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let text = fs::read(path).map_err(|source| Error::Read {
            path: name.clone(),
            source,
        })?;
        Self::parse(&String::from_utf8_lossy(&text), &name)
    }

    /// Understands the file's text; `path` is for errors.
    ///
    /// # Errors
    /// If it lacks a line, or has a wrong value.
    pub fn parse(text: &str, path: &str) -> Result<Self, Error> {
        let mut networks = PerFamily::default();
        let mut subnets = PerFamily::default();
        let (mut mtu, mut ip_masq) = (None, None);
        for line in text.lines() {
            let (key, value) = line.split_once('=').unwrap_or((line, ""));
            let wrong = |rule| Error::Value {
                path: path.to_owned(),
                key: key.to_owned(),
                value: value.to_owned(),
                rule,
            };
            let net = |text: &str| {
                let net = text.parse::<IpNet>().ok();
                net.map(|net| net.trunc())
                    .ok_or_else(|| wrong("invalid CIDR address"))
            };
            match key {
                "FLANNEL_NETWORK" | "FLANNEL_IPV6_NETWORK" => {
                    let mut list = Vec::new();
                    for member in value.split(',') {
                        let network = net(member)?;
                        if !list.contains(&network) {
                            list.push(network);
                        }
                    }
                    *networks.get_mut(family(key)) = Some(list);
                }
                "FLANNEL_SUBNET" | "FLANNEL_IPV6_SUBNET" => {
                    *subnets.get_mut(family(key)) = Some(net(value)?);
                }
                "FLANNEL_MTU" => {
                    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
                    let number = value.parse().ok().filter(|_| digits);
                    mtu = Some(number.ok_or_else(|| wrong("must be a number of bytes"))?);
                }
                "FLANNEL_IPMASQ" => ip_masq = Some(value == "true"),
                _ => {}
            }
        }
        let mut missing = Vec::new();
        if networks.is_empty() {
            missing.extend(["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"]);
        }
        if subnets.is_empty() {
            missing.extend(["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"]);
        }
        missing.extend(mtu.is_none().then_some("FLANNEL_MTU"));
        missing.extend(ip_masq.is_none().then_some("FLANNEL_IPMASQ"));
        match (mtu, ip_masq) {
            (Some(mtu), Some(ip_masq)) if missing.is_empty() => Ok(Self {
                networks,
                subnets,
                mtu,
                ip_masq,
            }),
            _ => Err(Error::Missing {
                path: path.to_owned(),
                keys: missing,
            }),
        }
    }
}

/// Whose value a key holds.
fn family(key: &str) -> Family {
    if key.starts_with("FLANNEL_IPV6") {
        Family::V6
    } else {
        Family::V4
    }
}

//! The parts of the network config that a stock node needs, with upstream's defaults.

use serde::Deserialize;

use crate::{
    error::{Error, Result},
    lease::{Subnet, Subnet6},
};

/// Length of a node's IPv4 subnet, unless the config says another.
const SUBNET_LENGTH: u8 = 24;
/// The same for IPv6.
const SUBNET6_LENGTH: u8 = 64;

/// What a stock node does with packets to other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Vxlan,
    HostGw,
    Ipip,
    Udp,
}

impl Kind {
    /// Bytes that it adds to a packet, as upstream takes them off the MTU: VXLAN over IPv4 is outer IPv4 20, UDP 8,
    /// VXLAN 8, inner Ethernet 14.
    pub(super) fn overhead(self) -> u32 {
        match self {
            Self::Vxlan => 50,
            Self::HostGw => 0,
            Self::Ipip => 20,
            Self::Udp => 28,
        }
    }

    /// `BackendType` of its leases; `udp` has none.
    pub(super) fn lease_type(self) -> Option<&'static str> {
        match self {
            Self::Vxlan => Some("vxlan"),
            Self::HostGw => Some("host-gw"),
            Self::Ipip => Some("ipip"),
            Self::Udp => None,
        }
    }
}

/// Which subnets there are, whatever the backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Networks {
    pub(super) network: Subnet,
    pub(super) subnet_length: u8,
    /// Network and length of subnets, in dual stack.
    pub(super) ipv6: Option<(Subnet6, u8)>,
}

/// The parts of the network config that matter here.
#[derive(Debug)]
pub(super) struct NetConf {
    pub(super) networks: Networks,
    pub(super) kind: Kind,
    pub(super) backend: Backend,
    /// Whether rules are nftables' instead of iptables'.
    pub(super) enable_nftables: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Fields {
    network: String,
    subnet_len: Option<u8>,
    #[serde(default, rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(default, rename = "EnableNFTables")]
    enable_nftables: bool,
    #[serde(rename = "IPv6Network")]
    ipv6_network: Option<String>,
    #[serde(rename = "IPv6SubnetLen")]
    ipv6_subnet_len: Option<u8>,
    #[serde(default)]
    backend: Backend,
}

/// The backend's options.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Backend {
    r#type: Option<String>,
    #[serde(rename = "VNI")]
    vni: Option<u32>,
    port: Option<u16>,
    pub(super) direct_routing: bool,
}

impl Fields {
    fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|error| bad(&error, text))
    }

    fn networks(&self, text: &str) -> Result<Networks> {
        let ipv6 = match (self.enable_ipv6, &self.ipv6_network) {
            (false, _) => None,
            (true, None) => return Err(bad(&"EnableIPv6 without IPv6Network", text)),
            (true, Some(network)) => Some((
                network.parse()?,
                self.ipv6_subnet_len.unwrap_or(SUBNET6_LENGTH),
            )),
        };
        Ok(Networks {
            network: self.network.parse()?,
            subnet_length: self.subnet_len.unwrap_or(SUBNET_LENGTH),
            ipv6,
        })
    }
}

impl Networks {
    pub(super) fn parse(text: &str) -> Result<Self> {
        Fields::parse(text)?.networks(text)
    }
}

impl NetConf {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let fields = Fields::parse(text)?;
        let networks = fields.networks(text)?;
        let kind = match fields.backend.r#type.as_deref() {
            Some("vxlan") => Kind::Vxlan,
            Some("host-gw") => Kind::HostGw,
            Some("ipip") => Kind::Ipip,
            // Upstream's default.
            Some("udp") | None => Kind::Udp,
            Some(other) => {
                return Err(Error::Unsupported(format!(
                    "stock nodes cannot do backend {other:?}"
                )));
            }
        };
        Ok(Self {
            networks,
            kind,
            backend: fields.backend,
            enable_nftables: fields.enable_nftables,
        })
    }
}

fn bad(reason: &dyn ToString, text: &str) -> Error {
    Error::Parse {
        what: "network config".to_owned(),
        reason: reason.to_string(),
        text: text.to_owned(),
    }
}

impl Backend {
    /// VXLAN network identifier; flannel's default is 1.
    pub(super) fn vni(&self) -> u32 {
        self.vni.unwrap_or(1)
    }

    /// UDP port of VXLAN; flannel leaves it to the kernel, whose default is 8472.
    pub(super) fn vxlan_port(&self) -> u16 {
        self.port.filter(|port| *port != 0).unwrap_or(8472)
    }

    /// UDP port of the backend `udp`.
    pub(super) fn udp_port(&self) -> u16 {
        self.port.filter(|port| *port != 0).unwrap_or(8285)
    }
}

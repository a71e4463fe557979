//! The parts of the network config that a stock node needs, with upstream's defaults.

use serde::Deserialize;

use crate::error::{Error, Result};

/// The parts of the network config that matter here, with upstream's defaults.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NetConf {
    pub(super) network: String,
    #[serde(default = "default_subnet_len")]
    pub(super) subnet_len: u8,
    #[serde(default)]
    pub(super) backend: Backend,
}

impl NetConf {
    pub(super) fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|error| Error::Parse {
            what: "network config".to_owned(),
            reason: error.to_string(),
            text: text.to_owned(),
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Backend {
    pub(super) r#type: String,
    #[serde(rename = "VNI")]
    vni: Option<u32>,
    port: Option<u16>,
}

impl Backend {
    /// VXLAN network identifier; flannel's default is 1.
    pub(super) fn vni(&self) -> u32 {
        self.vni.unwrap_or(1)
    }

    /// UDP port; flannel leaves it to the kernel, whose default is 8472.
    pub(super) fn port(&self) -> u16 {
        self.port.filter(|port| *port != 0).unwrap_or(8472)
    }
}

fn default_subnet_len() -> u8 {
    24
}

//! Where leases are kept, as the options of `run` say, and the subnet manager for it.

use std::time::Duration;

use anyhow::bail;

use super::args::RunOptions;
use crate::lease::{
    etcd::{Etcd, Options as EtcdOptions, TlsError, TlsFiles},
    kube::{Access, Kube, Names, NodeName, Options as KubeOptions},
};

/// Where leases are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// `--etcd-endpoints`.
    Etcd,
    /// `--kube-subnet-mgr`.
    Kube,
}

impl Store {
    /// The store that the options choose.
    ///
    /// # Errors
    /// When an option cannot be honoured; it is named.
    pub fn of(options: &RunOptions) -> anyhow::Result<Self> {
        if options.switches.kube_subnet_mgr {
            return Ok(Self::Kube);
        }
        let endpoints: Vec<&String> = options
            .etcd_endpoints
            .iter()
            .filter(|url| !url.is_empty())
            .collect();
        if endpoints.is_empty() {
            bail!("--etcd-endpoints is empty: give at least one URL such as http://127.0.0.1:2379");
        }
        if let Some(url) = endpoints.iter().find(|url| !is_endpoint(url)) {
            bail!("--etcd-endpoints: {url:?} is no URL such as http://127.0.0.1:2379");
        }
        Ok(Self::Etcd)
    }
}

/// Whether `url` is an address with an optional scheme, as etcd's endpoints are.
fn is_endpoint(url: &str) -> bool {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"))
        .unwrap_or(url);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]%/".contains(&byte);
    rest.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '[')
        && rest.bytes().all(allowed)
        && !rest.contains("//")
}

/// The files of TLS, which must be there and fit together at the start as for upstream; later they may change.
fn tls_files(options: &RunOptions) -> Result<TlsFiles, TlsError> {
    let files = TlsFiles::new(
        &options.etcd_certfile,
        &options.etcd_keyfile,
        &options.etcd_cafile,
    )?;
    files.load()?;
    Ok(files)
}

/// The etcd subnet manager.
///
/// # Errors
/// When a file of TLS is missing or wrong.
pub fn etcd(options: &RunOptions) -> anyhow::Result<Etcd> {
    let user = (!options.etcd_username.is_empty()).then(|| {
        (
            options.etcd_username.clone(),
            options.etcd_password.0.clone(),
        )
    });
    let etcd = EtcdOptions {
        endpoints: options
            .etcd_endpoints
            .iter()
            .filter(|url| !url.is_empty())
            .cloned()
            .collect(),
        prefix: options.etcd_prefix.trim_end_matches('/').to_owned(),
        tls: tls_files(options)?,
        user,
    };
    let margin = Duration::from_secs(options.subnet_lease_renew_margin * 60);
    Ok(Etcd::new(etcd, margin))
}

/// The Kubernetes subnet manager. Files that prove who the agent is must be there at the start as for upstream; later
/// they may change.
///
/// # Errors
/// When an option or a file is wrong, or nothing says how this node is called.
pub async fn kube(options: &RunOptions) -> anyhow::Result<Kube> {
    let access = Access::new(&options.kubeconfig_file, &options.kube_api_url)?;
    let names = Names::new(&options.kube_annotation_prefix)?;
    let node = NodeName::from_variables(|name| std::env::var(name).ok())?;
    access.client().await?;
    Ok(Kube::new(KubeOptions {
        access,
        names,
        node,
        net_config: options.net_config_path.clone(),
        set_network_unavailable: options.switches.set_node_network_unavailable,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_told_from_other_text() {
        for url in [
            "http://127.0.0.1:2379",
            "https://etcd-0.example:2379/",
            "[fd00::1]:2379",
            "etcd:2379",
        ] {
            assert!(is_endpoint(url), "{url}");
        }
        for text in [
            "ht!tp://x",
            "ftp://etcd",
            "http://",
            "etcd 2379",
            "unix:///run/etcd",
        ] {
            assert!(!is_endpoint(text), "{text}");
        }
    }
}

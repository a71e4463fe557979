//! Where leases are kept, as the options of `run` say, and the subnet manager for it.

use std::{net::IpAddr, time::Duration};

use anyhow::bail;

use super::args::RunOptions;
use crate::{
    family::PerFamily,
    lease::{
        etcd::{Etcd, Options as EtcdOptions, TlsError, TlsFiles},
        file::{File, Options as FileOptions},
        kube::{Access, Kube, Names, NodeName, Options as KubeOptions},
    },
};

/// Where leases are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// `--etcd-endpoints`.
    Etcd,
    /// `--kube-subnet-mgr`.
    Kube,
    /// `--lease-file`.
    File,
}

impl Store {
    /// The store that the options choose.
    ///
    /// # Errors
    /// When an option cannot be honoured; it is named.
    pub fn of(options: &RunOptions) -> anyhow::Result<Self> {
        if !options.lease_file.as_os_str().is_empty() {
            if options.switches.kube_subnet_mgr {
                bail!(
                    "--lease-file = {} and --kube-subnet-mgr: leases are in the file or in the Kubernetes API; leave one out",
                    options.lease_file.display()
                );
            }
            return Ok(Self::File);
        }
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

/// The static-file subnet manager. Must be called where tasks can be started.
pub fn file(options: &RunOptions) -> File {
    File::new(FileOptions {
        path: options.lease_file.clone(),
        public: PerFamily {
            v4: options.public_ip.0.map(IpAddr::from),
            v6: options.public_ipv6.0.map(IpAddr::from),
        },
        interface_chosen: !options.iface.is_empty()
            || !options.iface_regex.is_empty()
            || options.iface_can_reach.0.is_some(),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn store(arguments: &[&str]) -> Result<Store, String> {
        let options = RunOptions::try_parse_from([&["run"], arguments].concat()).unwrap();
        Store::of(&options).map_err(|error| error.to_string())
    }

    #[test]
    fn leases_are_in_one_place() {
        assert_eq!(store(&[]), Ok(Store::Etcd));
        assert_eq!(store(&["--kube-subnet-mgr"]), Ok(Store::Kube));
        assert_eq!(store(&["--lease-file=/a"]), Ok(Store::File));
        assert_eq!(store(&["--lease-file="]), Ok(Store::Etcd));
        let error = store(&["--lease-file=/a", "--kube-subnet-mgr"]).unwrap_err();
        assert!(error.contains("--lease-file = /a"), "{error}");
    }

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

//! How the API server is reached: in a pod with its service account, else by a kubeconfig, by a URL, or by both.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use http::Uri;
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::ConfigExt as _,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tower::{BoxError, ServiceBuilder};

/// Limit for making a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may be idle before its other end is asked for a sign of life, and the time between signs.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How many signs of life may be missed.
const KEEP_ALIVE_RETRIES: u32 = 3;

/// Why there is no way to the API server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A kubeconfig cannot be used.
    #[error("--kubeconfig-file = {}: {reason}", path.display())]
    Kubeconfig {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It names a proxy.
    #[error(
        "--kubeconfig-file = {}: proxy-url = {url}: proxies are not supported; give a server that is reached directly",
        path.display()
    )]
    Proxy {
        /// The kubeconfig's path.
        path: PathBuf,
        /// The proxy.
        url: String,
    },
    /// A URL is none.
    #[error("--kube-api-url = {url}: must be a URL such as https://10.0.0.1:6443")]
    Url {
        /// The value.
        url: String,
    },
    /// There is no service account.
    #[error(
        "no way to the Kubernetes API: give --kubeconfig-file or --kube-api-url; in a pod, let the token of its service \
         account be mounted, and KUBERNETES_SERVICE_HOST and _PORT be set: {reason}"
    )]
    InCluster {
        /// What is missing.
        reason: String,
    },
    /// Tokens or certificates cannot be used.
    #[error("credentials for the Kubernetes API: {reason}")]
    Credentials {
        /// What is wrong with them.
        reason: String,
    },
}

impl Error {
    fn credentials(error: &kube::Error) -> Self {
        let reason = with_source(error);
        Self::Credentials { reason }
    }
}

/// An error with what caused it, unless it says so itself.
fn with_source(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    match error.source().map(ToString::to_string) {
        Some(source) if !text.contains(&source) => format!("{text}: {source}"),
        _ => text,
    }
}

/// Where the API server is and what proves who the agent is; an absent field was not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// `--kubeconfig-file`.
    pub kubeconfig: Option<PathBuf>,
    /// `--kube-api-url`; takes the place of the kubeconfig's server.
    pub url: Option<String>,
}

impl Access {
    /// From the options, of which an empty one was not given.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn new(kubeconfig: &Path, url: &str) -> Result<Self, Error> {
        let access = Self {
            kubeconfig: (!kubeconfig.as_os_str().is_empty()).then(|| kubeconfig.to_owned()),
            url: (!url.is_empty()).then(|| url.to_owned()),
        };
        access.uri()?;
        Ok(access)
    }

    /// The URL of `--kube-api-url`, if it was given; without a scheme it is plain HTTP, as for Go's client.
    fn uri(&self) -> Result<Option<Uri>, Error> {
        let Some(url) = &self.url else {
            return Ok(None);
        };
        let full = if url.contains("://") {
            url.clone()
        } else {
            format!("http://{url}")
        };
        let uri = full.parse::<Uri>().ok().filter(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.host().is_some_and(|host| !host.is_empty())
        });
        uri.map(Some).ok_or_else(|| Error::Url { url: url.clone() })
    }

    /// Reads all files anew: tokens and certificates rotate.
    async fn config(&self) -> Result<Config, Error> {
        let url = self.uri()?;
        let mut config = match (&self.kubeconfig, url.clone()) {
            (Some(path), _) => kubeconfig(path).await?,
            (None, Some(url)) => Config::new(url),
            (None, None) => Config::incluster().map_err(|error| Error::InCluster {
                reason: with_source(&error),
            })?,
        };
        if let Some(url) = url {
            config.cluster_url = url;
        }
        Ok(config)
    }

    /// A client, which connects when it is first used, and the server's URL.
    ///
    /// # Errors
    /// When a file is missing or wrong.
    pub async fn client(&self) -> Result<(Client, String), Error> {
        let config = self.config().await?;
        let server = config.cluster_url.to_string();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_keepalive(Some(KEEP_ALIVE));
        tcp.set_keepalive_interval(Some(KEEP_ALIVE));
        tcp.set_keepalive_retries(Some(KEEP_ALIVE_RETRIES));
        // The client's own stack would try again by itself and log each failure.
        let connector = config
            .rustls_https_connector_with_connector(tcp)
            .map_err(|error| Error::credentials(&error))?;
        let auth = config
            .auth_layer()
            .map_err(|error| Error::credentials(&error))?;
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(auth)
            .map_err(BoxError::from)
            .service(HttpClient::builder(TokioExecutor::new()).build(connector));
        Ok((Client::new(service, config.default_namespace), server))
    }
}

async fn kubeconfig(path: &Path) -> Result<Config, Error> {
    let wrong = |error: KubeconfigError| Error::Kubeconfig {
        path: path.to_owned(),
        reason: with_source(&error),
    };
    let file = Kubeconfig::read_from(path).map_err(wrong)?;
    let proxies = file
        .clusters
        .iter()
        .filter_map(|named| named.cluster.as_ref()?.proxy_url.clone());
    if let Some(url) = proxies.into_iter().find(|url| !url.is_empty()) {
        return Err(Error::Proxy {
            path: path.to_owned(),
            url,
        });
    }
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refused(access: Access) -> String {
        access
            .client()
            .await
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn urls_are_told_from_other_text() {
        for url in [
            "http://127.0.0.1:8080",
            "https://[fd00::1]:6443/",
            "api:8080",
            "",
        ] {
            assert!(Access::new(Path::new(""), url).is_ok(), "{url}");
        }
        for text in ["ftp://api", "http://", "a b", "https:///x"] {
            let error = Access::new(Path::new(""), text).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("--kube-api-url = {text}: ")),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_url_takes_the_place_of_the_kubeconfigs() {
        let path = std::env::temp_dir().join(format!("flannel-kubeconfig-{}", std::process::id()));
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
            contexts: [{name: c, context: {cluster: k, user: u}}]\n\
            clusters: [{name: k, cluster: {server: \"https://10.0.0.1:6443\"}}]\n\
            users: [{name: u, user: {token: t}}]\n";
        std::fs::write(&path, text).unwrap();
        let server = async |url| {
            let config = Access::new(&path, url).unwrap().config().await.unwrap();
            (
                config.cluster_url.to_string(),
                config.auth_info.token.is_some(),
            )
        };
        assert_eq!(
            server("").await,
            ("https://10.0.0.1:6443/".to_owned(), true)
        );
        assert_eq!(
            server("http://10.0.0.2:8080").await,
            ("http://10.0.0.2:8080/".to_owned(), true)
        );
        std::fs::write(
            &path,
            text.replace("server:", "proxy-url: \"http://proxy\", server:"),
        )
        .unwrap();
        let error = refused(Access::new(&path, "").unwrap()).await;
        std::fs::remove_file(&path).unwrap();
        assert!(
            error.contains("proxy-url = http://proxy: proxies are not supported"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn what_is_missing_is_named() {
        let error = refused(Access::new(Path::new("/nowhere/config"), "").unwrap()).await;
        assert!(
            error.starts_with("--kubeconfig-file = /nowhere/config: "),
            "{error}"
        );
        assert!(error.contains("No such file"), "{error}");
        let error = refused(Access::default()).await;
        assert!(
            error.contains("--kubeconfig-file or --kube-api-url"),
            "{error}"
        );
    }
}

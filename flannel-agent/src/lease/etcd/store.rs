//! The requests that the subnet manager makes of etcd v3: each with a time limit, every write a compare-and-swap.

use std::{fs, io, path::PathBuf, time::Duration};

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, GetOptions, Identity,
    KeyValue, PutOptions, TlsOptions, Txn, TxnOp, WatchOptions, WatchStream,
};

/// Limit for one request. With no endpoint reachable the client would wait for ever.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of HTTP/2 pings on an idle connection; etcd rejects less than 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Time for the answer to a ping, after which the connection counts as dead.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Leases per page of a listing.
const PAGE: i64 = 1000;

/// Why a request to etcd failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file named by an option cannot be read.
    #[error("{option} = {}: {source}", path.display())]
    File {
        /// The option.
        option: &'static str,
        /// Its value.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// etcd, or the way to it, refused.
    #[error("{operation}: {}", brief(.source))]
    Request {
        /// What was asked.
        operation: &'static str,
        /// The client's error.
        source: Box<etcd_client::Error>,
    },
    /// No answer in time.
    #[error("{operation}: no answer from {endpoints} within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout {
        /// What was asked.
        operation: &'static str,
        /// Who was asked.
        endpoints: String,
    },
}

/// A gRPC status without the chain of errors that its debug form unfolds.
fn brief(error: &etcd_client::Error) -> String {
    match error {
        etcd_client::Error::GRpcStatus(status) => {
            // What a transport error hides, such as "connection refused", is at the end of the chain.
            let mut source = std::error::Error::source(status);
            let mut root = None;
            while let Some(error) = source {
                root = Some(error);
                source = error.source();
            }
            match root.map(ToString::to_string) {
                Some(root) if !status.message().contains(&root) => {
                    format!("{}: {root}", status.message())
                }
                _ => status.message().to_owned(),
            }
        }
        other => other.to_string(),
    }
}

/// How to reach etcd.
#[derive(Clone)]
pub struct Options {
    /// URLs; one without scheme is `http`.
    pub endpoints: Vec<String>,
    /// Prefix of all keys, without a slash at the end.
    pub prefix: String,
    /// Client certificate, key and authority. As upstream, used only when certificate and key are both given.
    pub tls: Option<TlsFiles>,
    /// Name and password.
    pub user: Option<(String, String)>,
}

/// Files of the client's TLS identity.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// `--etcd-certfile`.
    pub certificate: PathBuf,
    /// `--etcd-keyfile`.
    pub key: PathBuf,
    /// `--etcd-cafile`; without it the system's authorities count.
    pub authority: Option<PathBuf>,
}

/// A connection to etcd, made when first needed.
pub struct Store {
    options: Options,
    client: Option<Client>,
}

/// A listing of all leases, consistent at one revision.
pub struct Listing {
    /// The revision that it shows; a watch continues from the next one.
    pub revision: i64,
    /// The leases' keys and values.
    pub entries: Vec<KeyValue>,
}

impl Store {
    /// A store that has not connected yet.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            client: None,
        }
    }

    /// The endpoints, for messages.
    pub fn endpoints(&self) -> String {
        self.options.endpoints.join(",")
    }

    /// Key of the network config.
    pub fn config_key(&self) -> String {
        format!("{}/config", self.options.prefix)
    }

    /// What the keys of all leases begin with.
    pub fn subnets_prefix(&self) -> String {
        format!("{}/subnets/", self.options.prefix)
    }

    /// Forgets the connection, so that the next request makes a new one with fresh credentials.
    pub fn reset(&mut self) {
        self.client = None;
    }

    async fn client(&mut self) -> Result<Client, Error> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let mut options = ConnectOptions::new()
            .with_require_leader(true)
            .with_connect_timeout(REQUEST_TIMEOUT)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(true)
            .with_auto_token_refresh(true);
        if let Some((user, password)) = &self.options.user {
            options = options.with_user(user, password);
        }
        // As Go's client: an endpoint with the scheme http is asked without TLS, whatever files are given.
        let plain = |endpoint: &String| endpoint.starts_with("http://");
        if let Some(files) = &self.options.tls
            && !self.options.endpoints.iter().all(plain)
        {
            options = options.with_tls(files.load()?);
        }
        let endpoints = self.options.endpoints.clone();
        let client = self
            .limited("connect", Client::connect(endpoints, Some(options)))
            .await?;
        Ok(self.client.insert(client).clone())
    }

    async fn limited<T>(
        &self,
        operation: &'static str,
        request: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
            Ok(result) => result.map_err(|source| Error::Request {
                operation,
                source: Box::new(source),
            }),
            Err(_) => Err(Error::Timeout {
                operation,
                endpoints: self.endpoints(),
            }),
        }
    }

    /// One key, and the revision at which it was read.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn get(&mut self, key: &str) -> Result<(i64, Option<KeyValue>), Error> {
        let mut client = self.client().await?;
        let mut answer = self.limited("get", client.get(key, None)).await?;
        let revision = answer.header().map_or(0, |header| header.revision());
        Ok((revision, answer.take_kvs().pop()))
    }

    /// All leases.
    ///
    /// # Errors
    /// When etcd does not answer, or compacts the revision between two pages.
    pub async fn list(&mut self) -> Result<Listing, Error> {
        let prefix = self.subnets_prefix().into_bytes();
        let end = range_end(&prefix);
        let mut from = prefix;
        let mut listing = Listing {
            revision: 0,
            entries: Vec::new(),
        };
        loop {
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(PAGE)
                .with_revision(listing.revision);
            let mut client = self.client().await?;
            let mut answer = self
                .limited("list leases", client.get(from, Some(options)))
                .await?;
            if listing.revision == 0 {
                listing.revision = answer.header().map_or(0, |header| header.revision());
            }
            let more = answer.more();
            listing.entries.extend(answer.take_kvs());
            let Some(last) = listing.entries.last().filter(|_| more) else {
                return Ok(listing);
            };
            from = last.key().to_vec();
            from.push(0);
        }
    }

    /// Puts `value` under a key that does not exist; false if it does.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn create(&mut self, key: &str, value: String, lease: i64) -> Result<bool, Error> {
        let absent = Compare::version(key, CompareOp::Equal, 0);
        self.put_if("create lease", absent, key, value, lease).await
    }

    /// Replaces the value of a key that is still at `revision`; false if it is not.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn replace(
        &mut self,
        key: &str,
        revision: i64,
        value: String,
        lease: i64,
    ) -> Result<bool, Error> {
        let unchanged = Compare::mod_revision(key, CompareOp::Equal, revision);
        self.put_if("update lease", unchanged, key, value, lease)
            .await
    }

    async fn put_if(
        &mut self,
        operation: &'static str,
        condition: Compare,
        key: &str,
        value: String,
        lease: i64,
    ) -> Result<bool, Error> {
        let put = TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)));
        let transaction = Txn::new().when([condition]).and_then([put]);
        let mut client = self.client().await?;
        Ok(self
            .limited(operation, client.txn(transaction))
            .await?
            .succeeded())
    }

    /// Deletes a key that is still at `revision`; false if it is not.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn delete(&mut self, key: &str, revision: i64) -> Result<bool, Error> {
        let unchanged = Compare::mod_revision(key, CompareOp::Equal, revision);
        let delete = TxnOp::delete(key, None::<DeleteOptions>);
        let transaction = Txn::new().when([unchanged]).and_then([delete]);
        let mut client = self.client().await?;
        Ok(self
            .limited("delete lease", client.txn(transaction))
            .await?
            .succeeded())
    }

    /// A new etcd lease of `ttl` seconds: its id.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn grant(&mut self, ttl: i64) -> Result<i64, Error> {
        let mut client = self.client().await?;
        Ok(self
            .limited("grant", client.lease_grant(ttl, None))
            .await?
            .id())
    }

    /// Ends an etcd lease.
    ///
    /// # Errors
    /// When etcd does not answer, or does not know it.
    pub async fn revoke(&mut self, lease: i64) -> Result<(), Error> {
        let mut client = self.client().await?;
        self.limited("revoke", client.lease_revoke(lease))
            .await
            .map(drop)
    }

    /// Renews an etcd lease; returns the seconds that it was granted for, or none if it has expired.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn keep_alive(&mut self, lease: i64) -> Result<Option<i64>, Error> {
        let mut client = self.client().await?;
        match self
            .limited("keep alive", client.lease_keep_alive(lease))
            .await
        {
            Ok(_) => {}
            Err(Error::Request { source, .. })
                if matches!(*source, etcd_client::Error::LeaseKeepAliveError(_)) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        let life = self
            .limited("time to live", client.lease_time_to_live(lease, None))
            .await?;
        Ok((life.ttl() > 0).then_some(life.granted_ttl()))
    }

    /// Watches all keys that begin with `prefix`, from `revision` on.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn watch(&mut self, prefix: &str, revision: i64) -> Result<WatchStream, Error> {
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(revision);
        let mut client = self.client().await?;
        self.limited("watch", client.watch(prefix, Some(options)))
            .await
    }
}

impl TlsFiles {
    fn load(&self) -> Result<TlsOptions, Error> {
        let read = |option, path: &PathBuf| {
            fs::read(path).map_err(|source| Error::File {
                option,
                path: path.clone(),
                source,
            })
        };
        let certificate = read("--etcd-certfile", &self.certificate)?;
        let key = read("--etcd-keyfile", &self.key)?;
        let tls = TlsOptions::new().identity(Identity::from_pem(certificate, key));
        Ok(match &self.authority {
            Some(path) => tls.ca_certificate(Certificate::from_pem(read("--etcd-cafile", path)?)),
            None => tls.with_enabled_roots(),
        })
    }
}

/// The first key after all that begin with `prefix`.
fn range_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end
}

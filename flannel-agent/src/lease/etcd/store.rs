//! The requests that the subnet manager makes of etcd v3: each with a time limit, every write a compare-and-swap.

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, DeleteOptions, GetOptions, KeyValue, PutOptions,
    Txn, TxnOp, WatchOptions, WatchStream,
};
use tokio::sync::watch;

use super::{error::Error, tls::TlsFiles};
use crate::{
    lease::changes::Changes,
    metrics::{COUNTERS, Request},
};

/// Limit for reaching one of several members, so that the next one's turn comes soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Limit for one request. With no endpoint reachable the client would wait for ever.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of HTTP/2 pings on an idle connection; etcd rejects less than 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Time for the answer to a ping, after which the connection counts as dead.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Scheme of an endpoint that is asked without TLS.
const HTTP: &str = "http://";
/// Scheme of an endpoint that is asked with TLS.
const HTTPS: &str = "https://";
/// Leases per page of a listing.
const PAGE: i64 = 1000;

/// How to reach etcd.
#[derive(Clone)]
pub struct Options {
    /// URLs; one without scheme is `http`.
    pub endpoints: Vec<String>,
    /// Prefix of all keys, without a slash at the end.
    pub prefix: String,
    /// Client certificate, key and authority.
    pub tls: TlsFiles,
    /// Name and password.
    pub user: Option<(String, String)>,
}

/// A connection to one member of etcd, made when first needed. A member that does not answer is left for the next one
/// in turn, so that with one of three away nothing fails.
pub struct Store {
    options: Options,
    files: Changes,
    /// Which endpoint is asked: its place in the options, counted on.
    endpoint: usize,
    client: Option<Client>,
    /// Whether the member has answered on this connection: it is only made by the first request.
    answered: bool,
}

/// A listing of all leases, consistent at one revision.
pub struct Listing {
    /// The revision that it shows; a watch continues from the next one.
    pub revision: i64,
    /// The leases' keys and values.
    pub entries: Vec<KeyValue>,
}

impl Store {
    /// A store that has not connected yet. Nodes begin with different members. Must be called where tasks can be
    /// started.
    pub fn new(options: Options) -> Self {
        Self {
            files: options.tls.changes(),
            endpoint: rand::random_range(0..options.endpoints.len().max(1)),
            options,
            client: None,
            answered: false,
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

    /// Forgets the connection, so that the next request makes a new one to the next member, with fresh credentials.
    pub fn reset(&mut self) {
        self.client = None;
        self.answered = false;
        self.endpoint = self.endpoint.wrapping_add(1);
    }

    /// Tells that files of TLS have changed since the connection was made: see [`Store::renew`].
    pub fn changed_files(&self) -> watch::Receiver<()> {
        self.files.receiver()
    }

    /// Makes the connection anew with the files as they are now; if that works, it is used from now on.
    pub async fn renew(&mut self) -> bool {
        let tried = match self.connect().await {
            Ok(mut client) => {
                let key = self.config_key();
                let asked = self.limited(Request::Get, client.get(key, None)).await;
                asked.map(|_| client)
            }
            Err(error) => Err(error),
        };
        match tried {
            Ok(client) => {
                tracing::info!("files of TLS have changed: connected to etcd with the new ones");
                self.client = Some(client);
                self.answered = true;
                COUNTERS.etcd_connections.count();
                true
            }
            Err(error) => {
                tracing::warn!(%error, "files of TLS have changed and do not work; the connection with the old ones is kept");
                false
            }
        }
    }

    fn endpoint(&self) -> &str {
        let endpoints = &self.options.endpoints;
        &endpoints[self.endpoint % endpoints.len()]
    }

    async fn client(&mut self) -> Result<Client, Error> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let client = self.connect().await?;
        Ok(self.client.insert(client).clone())
    }

    async fn connect(&mut self) -> Result<Client, Error> {
        self.files.seen();
        let several = self.options.endpoints.len() > 1;
        let mut options = ConnectOptions::new()
            .with_require_leader(true)
            .with_connect_timeout(if several {
                CONNECT_TIMEOUT
            } else {
                REQUEST_TIMEOUT
            })
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(true)
            .with_auto_token_refresh(true);
        if let Some((user, password)) = &self.options.user {
            options = options.with_user(user, password);
        }
        let endpoint = self.endpoint();
        // As Go's client: `http` is asked without TLS, whatever files are given; no scheme means TLS if there are any.
        let secure = endpoint.starts_with(HTTPS)
            || !(endpoint.starts_with(HTTP) || self.options.tls.is_empty());
        if secure {
            options = options.with_tls(self.options.tls.load()?);
        }
        self.limited(Request::Connect, Client::connect([endpoint], Some(options)))
            .await
    }

    /// Asks the member that is connected, and the others in turn while it is the member that fails.
    async fn ask<T, F>(&mut self, request: Request, ask: impl Fn(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut others = self.options.endpoints.len().saturating_sub(1);
        loop {
            let result = match self.client().await {
                Ok(client) => self.limited(request, ask(client)).await,
                Err(error) => Err(error),
            };
            match result {
                Err(error) if others > 0 && error.is_of_the_member() => {
                    tracing::debug!(endpoint = self.endpoint(), %error, "asking the next member");
                    others -= 1;
                    self.reset();
                }
                Ok(answer) => {
                    if !std::mem::replace(&mut self.answered, true) {
                        COUNTERS.etcd_connections.count();
                    }
                    return Ok(answer);
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn limited<T>(
        &self,
        request: Request,
        asked: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, Error> {
        let result = match tokio::time::timeout(REQUEST_TIMEOUT, asked).await {
            Ok(result) => result.map_err(|source| Error::Refused {
                request,
                source: Box::new(source),
            }),
            Err(_) => Err(Error::Timeout {
                request,
                endpoint: self.endpoint().to_owned(),
            }),
        };
        COUNTERS.etcd(request).count(&result);
        result
    }

    /// One key, and the revision at which it was read.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn get(&mut self, key: &str) -> Result<(i64, Option<KeyValue>), Error> {
        let mut answer = self
            .ask(Request::Get, |mut client| async move {
                client.get(key, None).await
            })
            .await?;
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
            let mut answer = self
                .ask(Request::List, |mut client| {
                    let (from, options) = (from.clone(), options.clone());
                    async move { client.get(from, Some(options)).await }
                })
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
        self.put_if(Request::Create, absent, key, value, lease)
            .await
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
        self.put_if(Request::Update, unchanged, key, value, lease)
            .await
    }

    async fn put_if(
        &mut self,
        request: Request,
        condition: Compare,
        key: &str,
        value: String,
        lease: i64,
    ) -> Result<bool, Error> {
        let put = TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)));
        let transaction = Txn::new().when([condition]).and_then([put]);
        self.change(request, transaction).await
    }

    /// Whether the transaction's condition held. Should an answer be lost on the way and the transaction be made twice,
    /// it did not hold the second time, and whoever asked looks again.
    async fn change(&mut self, request: Request, transaction: Txn) -> Result<bool, Error> {
        let answer = self
            .ask(request, |mut client| {
                let transaction = transaction.clone();
                async move { client.txn(transaction).await }
            })
            .await?;
        Ok(answer.succeeded())
    }

    /// Deletes a key that is still at `revision`; false if it is not.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn delete(&mut self, key: &str, revision: i64) -> Result<bool, Error> {
        let unchanged = Compare::mod_revision(key, CompareOp::Equal, revision);
        let delete = TxnOp::delete(key, None::<DeleteOptions>);
        let transaction = Txn::new().when([unchanged]).and_then([delete]);
        self.change(Request::Delete, transaction).await
    }

    /// A new etcd lease of `ttl` seconds: its id.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn grant(&mut self, ttl: i64) -> Result<i64, Error> {
        let answer = self
            .ask(Request::Grant, |mut client| async move {
                client.lease_grant(ttl, None).await
            })
            .await?;
        Ok(answer.id())
    }

    /// Ends an etcd lease.
    ///
    /// # Errors
    /// When etcd does not answer, or does not know it.
    pub async fn revoke(&mut self, lease: i64) -> Result<(), Error> {
        let ask = |mut client: Client| async move { client.lease_revoke(lease).await };
        self.ask(Request::Revoke, ask).await.map(drop)
    }

    /// Renews an etcd lease; returns the seconds that it was granted for, or none if it has expired.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn keep_alive(&mut self, lease: i64) -> Result<Option<i64>, Error> {
        let keep = |mut client: Client| async move { client.lease_keep_alive(lease).await };
        match self.ask(Request::KeepAlive, keep).await {
            Ok(_) => {}
            Err(Error::Refused { source, .. })
                if matches!(*source, etcd_client::Error::LeaseKeepAliveError(_)) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        let life = self
            .ask(Request::TimeToLive, |mut client| async move {
                client.lease_time_to_live(lease, None).await
            })
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
        self.ask(Request::Watch, |mut client| {
            let options = options.clone();
            async move { client.watch(prefix, Some(options)).await }
        })
        .await
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

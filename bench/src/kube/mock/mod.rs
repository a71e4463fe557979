//! A Kubernetes API server in this process, for Node objects: what flannel reads and writes there, with a real one's
//! semantics, and with every fault on demand.
//!
//! It knows lists (whole, or in pages of one revision), watches (replay, bookmarks, `410 Expired`), reads and patches of
//! nodes, reads of pods, bearer tokens and denied verbs. It does not know what flannel does not use: other objects,
//! creation and deletion by clients, label selectors, protobuf, compression, HTTP/2, and it adds no entries to
//! `managedFields`. What it does not know it refuses, so that nobody relies on it.
//!
//! The server runs on a thread of its own; its listener may be bound in a network namespace. Tests hold the
//! [`ApiServer`], which plays the rest of the cluster: it makes and changes nodes, sees every request, and spoils
//! answers. The server ends when the handle goes.

mod answer;
mod body;
mod control;
mod fault;
mod list;
mod node;
mod patch;
mod request;
mod server;
mod status;
mod store;
#[cfg(test)]
mod tests;
mod tls;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch as latest};

use self::{fault::Faults, server::Server, store::Store, tls::Tls};
pub use self::{
    fault::{Fault, Interrupt},
    node::{node, set_pod_cidrs},
    request::{Kind, Request},
};
use crate::{error::Result, netns::Netns};

/// How many interrupts an open watch may lag behind.
const INTERRUPTS: usize = 64;

/// How a server behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many changes of nodes it remembers; older ones are compacted away.
    pub log_limit: usize,
    /// How often a watch that allows bookmarks gets one.
    pub bookmarks: Duration,
    /// Speak TLS, with a certificate that is made in this directory.
    pub tls: Option<PathBuf>,
}

impl Default for Options {
    /// As many changes as a test makes, a bookmark each minute as the real server sends them, and no TLS.
    fn default() -> Self {
        Self {
            log_limit: 50_000,
            bookmarks: Duration::from_mins(1),
            tls: None,
        }
    }
}

/// A running API server.
pub struct ApiServer {
    // First: the thread ends before what it works on goes.
    server: Server,
    shared: Arc<Shared>,
    netns: Option<Netns>,
    address: SocketAddr,
    /// The authority's certificate, PEM; none without TLS.
    authority: Option<String>,
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServer")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// What the server's thread and the handle share.
#[derive(Debug)]
struct Shared {
    options: Options,
    state: Mutex<State>,
    /// Bears the revision; open watches wait for it.
    changed: latest::Sender<u64>,
    interrupts: broadcast::Sender<Interrupt>,
}

#[derive(Debug)]
struct State {
    store: Store,
    /// Pods by namespace and name.
    pods: BTreeMap<(String, String), Value>,
    requests: Vec<Request>,
    faults: Faults,
    open_watches: usize,
    /// Tokens that are let in; none: everybody is.
    tokens: Option<BTreeSet<String>>,
    /// Verbs and resources that nobody may use.
    denied: BTreeSet<(String, String)>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes open watches.
    fn announce(&self) {
        let revision = self.state().store.revision();
        self.changed.send_replace(revision);
    }
}

impl ApiServer {
    /// Starts a server that listens on `address` inside a namespace, or in that of the caller. Port 0 is any free one.
    ///
    /// # Errors
    /// If the address cannot be listened on, or without `openssl` for TLS.
    pub fn start(netns: Option<&Netns>, address: SocketAddr, options: Options) -> Result<Self> {
        let listener = server::bind(netns, address)?;
        let address = listener.local_addr().unwrap_or(address);
        let tls = options
            .tls
            .as_ref()
            .map(|directory| Tls::new(directory, address.ip()))
            .transpose()?;
        let (acceptor, authority) = tls.map(|tls| (tls.acceptor, tls.authority)).unzip();
        let store = Store::new(options.log_limit);
        let shared = Arc::new(Shared {
            changed: latest::Sender::new(store.revision()),
            interrupts: broadcast::Sender::new(INTERRUPTS),
            state: Mutex::new(State {
                store,
                pods: BTreeMap::new(),
                requests: Vec::new(),
                faults: Faults::default(),
                open_watches: 0,
                tokens: None,
                denied: BTreeSet::new(),
            }),
            options,
        });
        let server = Server::start(shared.clone(), acceptor)?;
        server.listen(listener)?;
        Ok(Self {
            server,
            shared,
            netns: netns.cloned(),
            address,
            authority,
        })
    }

    /// The URL for `--kube-api-url`.
    pub fn url(&self) -> String {
        let scheme = if self.authority.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.address)
    }

    /// A kubeconfig for this server, with the authority's certificate if it speaks TLS, and a bearer token.
    pub fn kubeconfig(&self, token: &str) -> String {
        let mut cluster = json!({ "server": self.url() });
        if let Some(authority) = &self.authority {
            cluster["certificate-authority-data"] = STANDARD.encode(authority).into();
        }
        json!({
            "kind": "Config", "apiVersion": "v1", "current-context": "lab",
            "clusters": [{ "name": "lab", "cluster": cluster }],
            "users": [{ "name": "flannel", "user": { "token": token } }],
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "flannel" } }],
        })
        .to_string()
    }

    /// The certificate of the authority that vouches for the server, PEM; none without TLS.
    pub fn authority(&self) -> Option<&str> {
        self.authority.as_deref()
    }

    /// Closes the listener and all connections, as the kernel does for a server that is killed. What it knows stays.
    pub fn stop_listening(&self) {
        self.server.close();
    }

    /// Listens again, on the same port.
    ///
    /// # Errors
    /// If somebody else has taken it.
    pub fn listen(&self) -> Result<()> {
        let listener = server::bind(self.netns.as_ref(), self.address)?;
        self.server.listen(listener)
    }
}

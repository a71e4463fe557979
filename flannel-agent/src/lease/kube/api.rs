//! The requests that the subnet manager makes of the Kubernetes API: each with a time limit, each counted.
//!
//! Answers are read into [`Node`]s at once; no whole object is kept.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use http::Method;
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    access::Access,
    annotations::Names,
    connection::{Connection, root},
    error::Error,
    list::{Listed, Page, Reader},
    node::Node,
    watch::{self, Change, Lines},
};
use crate::metrics::KubeRequest as Request;

/// Limit for a page of Nodes.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Nodes per page, as Go's client asks for: about 6 MB of JSON, which are read as they come.
const PAGE: usize = 500;
/// How long a watch lasts, in seconds, is chosen from this range, as Go's client does: not all are renewed at once.
const WATCH_SECONDS: std::ops::Range<u64> = 300..600;
/// How much later than that a watch must have ended.
const WATCH_GRACE: Duration = Duration::from_secs(15);
/// How long a watch may say nothing once it has told a bookmark: servers send about one a minute.
const SILENCE_MAX: Duration = Duration::from_secs(150);

/// The Kubernetes API, connected to when first needed.
pub struct Api {
    connection: Connection,
    names: Names,
}

#[derive(Deserialize)]
struct Pod {
    #[serde(default)]
    spec: PodSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(default)]
    node_name: String,
}

impl Api {
    /// An API that has not been asked for anything yet.
    pub fn new(access: Access, names: Names) -> Self {
        Self {
            connection: Connection::new(access),
            names,
        }
    }

    /// The server's URL, for messages.
    pub fn server(&self) -> &str {
        self.connection.server()
    }

    /// The names of annotations.
    pub const fn names(&self) -> &Names {
        &self.names
    }

    /// Forgets the connection, so that the next request makes a new one with the files as they are then.
    pub fn reset(&mut self) {
        self.connection.reset();
    }

    /// One Node.
    ///
    /// # Errors
    /// When the server does not answer or refuses.
    pub async fn node(&mut self, name: &str) -> Result<Node, Error> {
        let path = format!("/api/v1/nodes/{}", escaped(name));
        let answer = self
            .connection
            .one(Request::Node, Method::GET, &path, String::new())
            .await?;
        self.read_node(Request::Node, &answer)
    }

    /// The name of the Node that a pod runs on; empty while it runs on none.
    ///
    /// # Errors
    /// When the server does not answer or refuses.
    pub async fn node_of_pod(&mut self, namespace: &str, name: &str) -> Result<String, Error> {
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}",
            escaped(namespace),
            escaped(name)
        );
        let answer = self
            .connection
            .one(Request::Pod, Method::GET, &path, String::new())
            .await?;
        let pod: Pod = parsed(Request::Pod, &answer)?;
        Ok(pod.spec.node_name)
    }

    /// Patches a Node's status, which is also the way to its annotations that needs the least permission. Returns the
    /// Node as it is then.
    ///
    /// # Errors
    /// When the server does not answer or refuses.
    pub async fn patch(&mut self, name: &str, patch: String) -> Result<Node, Error> {
        let path = format!("/api/v1/nodes/{}/status", escaped(name));
        let answer = self
            .connection
            .one(Request::Patch, Method::PATCH, &path, patch)
            .await?;
        self.read_node(Request::Patch, &answer)
    }

    /// A page of all Nodes, or of the one called `only`; gives `take` each as it comes, also if the page fails then.
    ///
    /// # Errors
    /// When the server does not answer or refuses, or has forgotten what `next` continues.
    pub async fn page(
        &mut self,
        only: Option<&str>,
        next: &str,
        mut take: impl FnMut(Listed),
    ) -> Result<Page, Error> {
        let mut path = format!("/api/v1/nodes?limit={PAGE}");
        select(&mut path, only);
        if !next.is_empty() {
            let _ = write!(path, "&continue={}", escaped(next));
        }
        let request = Request::List;
        let garbled = |source| Error::Answer { request, source };
        let mut reader = Reader::new(&self.names);
        let push = |bytes: &[u8]| reader.push(bytes, &mut take).map_err(garbled);
        self.connection
            .in_parts(request, &path, PAGE_TIMEOUT, push)
            .await?;
        reader.end().map_err(garbled)
    }

    /// All changes of Nodes since `version`, or of the one called `only`.
    ///
    /// # Errors
    /// When the server does not answer or refuses, or has forgotten `version`.
    pub async fn watch(&mut self, only: Option<&str>, version: &str) -> Result<Watch, Error> {
        let seconds = rand::random_range(WATCH_SECONDS);
        let mut path = format!(
            "/api/v1/nodes?watch=true&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={seconds}",
            escaped(version)
        );
        select(&mut path, only);
        let limit = Duration::from_secs(seconds) + WATCH_GRACE;
        let response = self.connection.open(Request::Watch, &path).await?;
        Ok(Watch {
            body: response.into_body(),
            lines: Lines::default(),
            heard: Instant::now(),
            bookmarks: false,
            end: Instant::now() + limit,
            limit,
        })
    }

    fn read_node(&self, request: Request, answer: &[u8]) -> Result<Node, Error> {
        let json: &RawValue = parsed(request, answer)?;
        Node::read(json.get(), &self.names).map_err(|source| Error::Answer { request, source })
    }
}

/// Changes as the server tells them.
pub struct Watch {
    body: Body,
    lines: Lines,
    /// When the server has last sent anything.
    heard: Instant,
    /// Whether it sends bookmarks, which a server need not.
    bookmarks: bool,
    /// When it must have ended.
    end: Instant,
    limit: Duration,
}

impl Watch {
    /// The next change; none when the server has ended the watch, as it does after a while. Nothing is lost when the
    /// future is dropped.
    ///
    /// # Errors
    /// When the connection is lost, or says what is no event.
    pub async fn next(&mut self, names: &Names) -> Result<Option<Change>, Error> {
        loop {
            if let Some(line) = self.lines.next_line() {
                let change = watch::read(line, names)?;
                self.bookmarks |= matches!(change, Change::Bookmark(_));
                return Ok(Some(change));
            }
            let (deadline, limit) = self.deadline();
            let frame = tokio::time::timeout_at(deadline.into(), self.body.frame());
            match frame.await {
                Ok(Some(Ok(frame))) => {
                    self.heard = Instant::now();
                    if let Some(bytes) = frame.data_ref() {
                        self.lines.push(bytes)?;
                    }
                }
                Ok(Some(Err(error))) => {
                    return Err(Error::Transport {
                        request: Request::Watch,
                        reason: root(&error),
                    });
                }
                Ok(None) => return Ok(None),
                Err(_) => return Err(Error::Silent(limit)),
            }
        }
    }

    /// Until when the server must have sent something, and the limit that this comes from.
    fn deadline(&self) -> (Instant, Duration) {
        let quiet = self.heard + SILENCE_MAX;
        if self.bookmarks && quiet < self.end {
            (quiet, SILENCE_MAX)
        } else {
            (self.end, self.limit)
        }
    }
}

fn parsed<'a, T: Deserialize<'a>>(request: Request, answer: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(answer).map_err(|source| Error::Answer { request, source })
}

/// Restricts a request to one Node.
fn select(path: &mut String, only: Option<&str>) {
    if let Some(name) = only {
        let _ = write!(path, "&fieldSelector=metadata.name%3D{}", escaped(name));
    }
}

/// Text as a value in a URL's query (RFC 3986, section 2.3: what need not be escaped).
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_noticed_soon_once_there_are_bookmarks() {
        let (heard, limit) = (Instant::now(), SILENCE_MAX * 2);
        let mut watch = Watch {
            body: Body::from(Vec::<u8>::new()),
            lines: Lines::default(),
            heard,
            bookmarks: false,
            end: heard + limit,
            limit,
        };
        assert_eq!(watch.deadline(), (heard + limit, limit));
        watch.bookmarks = true;
        assert_eq!(watch.deadline(), (heard + SILENCE_MAX, SILENCE_MAX));
        watch.heard += limit;
        assert_eq!(watch.deadline(), (heard + limit, limit));
    }

    #[test]
    fn values_in_a_query_are_escaped() {
        assert_eq!(escaped("n1.example-a_b~c"), "n1.example-a_b~c");
        assert_eq!(escaped("a/b+c=d&e"), "a%2Fb%2Bc%3Dd%26e");
        let mut path = "/api/v1/nodes?limit=1".to_owned();
        select(&mut path, Some("n1"));
        assert_eq!(
            path,
            "/api/v1/nodes?limit=1&fieldSelector=metadata.name%3Dn1"
        );
    }
}

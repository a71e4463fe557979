//! The requests that the subnet manager makes of the Kubernetes API: each with a time limit, each counted.
//!
//! Answers are read into [`Node`]s at once; no whole object is kept.

use std::{
    fmt::Write as _,
    ops::Deref,
    time::{Duration, Instant},
};

use http::{Method, Response, header};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::{
    access::Access,
    annotations::Names,
    error::{Error, Refusal},
    list::{Listed, Page, Reader},
    node::Node,
    watch::{self, Change, Lines},
};
use crate::metrics::{COUNTERS, KubeRequest as Request};

/// Limit for a request that concerns one object.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit for a page of Nodes.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Nodes per page, as Go's client asks for: about 6 MB of JSON, which are read as they come.
const PAGE: usize = 500;
/// How long a watch lasts, in seconds, is chosen from this range, as Go's client does: not all are renewed at once.
const WATCH_SECONDS: std::ops::Range<u64> = 300..600;
/// How much later than that a watch must have ended.
const WATCH_GRACE: Duration = Duration::from_secs(15);
/// How much of a refusal's body is read, in bytes.
const REFUSAL_MAX: usize = 64 << 10;
/// A patch that adds to what is there.
const STRATEGIC_MERGE: &str = "application/strategic-merge-patch+json";

/// The Kubernetes API, connected to when first needed.
pub struct Api {
    access: Access,
    names: Names,
    client: Option<Client>,
    server: String,
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
            access,
            names,
            client: None,
            server: String::new(),
        }
    }

    /// The server's URL, for messages.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The names of annotations.
    pub const fn names(&self) -> &Names {
        &self.names
    }

    /// Forgets the connection, so that the next request makes a new one with the files as they are then.
    pub fn reset(&mut self) {
        self.client = None;
    }

    /// One Node.
    ///
    /// # Errors
    /// When the server does not answer or refuses.
    pub async fn node(&mut self, name: &str) -> Result<Node, Error> {
        let path = format!("/api/v1/nodes/{}", escaped(name));
        let answer = self
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
        let names = self.names.clone();
        counted(request, async {
            let whole = async {
                let response = self.send(request, Method::GET, &path, String::new());
                let mut body = response.await?.into_body();
                let mut reader = Reader::new(&names);
                while let Some(bytes) = next_bytes(request, &mut body).await? {
                    reader.push(&bytes, &mut take).map_err(garbled)?;
                }
                reader.end().map_err(garbled)
            };
            within(request, PAGE_TIMEOUT, whole).await
        })
        .await
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
        let response = counted(Request::Watch, async {
            let response = self.send(Request::Watch, Method::GET, &path, String::new());
            within(Request::Watch, REQUEST_TIMEOUT, response).await
        });
        Ok(Watch {
            body: response.await?.into_body(),
            lines: Lines::default(),
            end: Instant::now() + limit,
            limit,
        })
    }

    fn read_node(&self, request: Request, answer: &[u8]) -> Result<Node, Error> {
        let json: &RawValue = parsed(request, answer)?;
        Node::read(json.get(), &self.names).map_err(|source| Error::Answer { request, source })
    }

    async fn one(
        &mut self,
        request: Request,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<Vec<u8>, Error> {
        self.limited(request, method, path, body, REQUEST_TIMEOUT)
            .await
    }

    /// A request with its whole answer.
    async fn limited(
        &mut self,
        request: Request,
        method: Method,
        path: &str,
        body: String,
        limit: Duration,
    ) -> Result<Vec<u8>, Error> {
        counted(request, async {
            let whole = async {
                let response = self.send(request, method, path, body).await?;
                read_body(request, response, usize::MAX).await
            };
            within(request, limit, whole).await
        })
        .await
    }

    /// Sends a request; a status that is no success is an error.
    async fn send(
        &mut self,
        request: Request,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<Response<Body>, Error> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => {
                let (client, server) = self.access.client().await?;
                self.server = server;
                COUNTERS.kube_connections.count();
                self.client.insert(client).clone()
            }
        };
        let broken = |error: &dyn std::error::Error| Error::Transport {
            request,
            reason: root(error),
        };
        let mut builder = http::Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT, "application/json")
            .header(
                header::USER_AGENT,
                concat!("flannel-agent/", env!("CARGO_PKG_VERSION")),
            );
        if !body.is_empty() {
            builder = builder.header(header::CONTENT_TYPE, STRATEGIC_MERGE);
        }
        let asked = builder
            .body(Body::from(body.into_bytes()))
            .map_err(|error| broken(&error))?;
        let response = client.send(asked).await.map_err(|error| broken(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let retry_after = response.headers().get(header::RETRY_AFTER).cloned();
        let body = read_body(request, response, REFUSAL_MAX)
            .await
            .unwrap_or_default();
        let retry_after = retry_after.as_ref().and_then(|value| value.to_str().ok());
        Err(Error::Refused {
            request,
            refusal: Refusal::read(&body).with_head(code, retry_after),
        })
    }
}

/// Changes as the server tells them.
pub struct Watch {
    body: Body,
    lines: Lines,
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
                return Ok(Some(watch::read(line, names)?));
            }
            let frame = tokio::time::timeout_at(self.end.into(), self.body.frame());
            match frame.await {
                Ok(Some(Ok(frame))) => {
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
                Err(_) => return Err(Error::Silent(self.limit)),
            }
        }
    }
}

/// Counts what became of a request.
async fn counted<T>(
    request: Request,
    asked: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let result = asked.await;
    COUNTERS.kube(request).count(&result);
    result
}

async fn within<T>(
    request: Request,
    limit: Duration,
    asked: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout(limit, asked)
        .await
        .unwrap_or(Err(Error::Timeout { request, limit }))
}

/// Reads an answer's body, up to about `most` bytes.
async fn read_body(
    request: Request,
    response: Response<Body>,
    most: usize,
) -> Result<Vec<u8>, Error> {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(part) = next_bytes(request, &mut body).await? {
        bytes.extend_from_slice(&part);
        if bytes.len() > most {
            break;
        }
    }
    Ok(bytes)
}

/// What comes next of an answer's body; none at its end.
async fn next_bytes(
    request: Request,
    body: &mut Body,
) -> Result<Option<impl Deref<Target = [u8]>>, Error> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Error::Transport {
            request,
            reason: root(&error),
        })?;
        if let Ok(bytes) = frame.into_data() {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
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

/// The last of an error's causes, such as "connection refused", with what an operator can do about it.
fn root(error: &dyn std::error::Error) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    let text = root.to_string();
    let remedy = REMEDIES.iter().find(|(part, _)| text.contains(part));
    match remedy {
        Some((_, remedy)) => format!("{text}; {remedy}"),
        None => text,
    }
}

/// What is part of an error's text, and what to do then.
const REMEDIES: [(&str, &str); 3] = [
    (
        "UnknownIssuer",
        "give the authority that signed the API server's certificate: certificate-authority in --kubeconfig-file",
    ),
    (
        "not valid for name",
        "use a name or address of the API server that its certificate holds",
    ),
    (
        "Connection refused",
        "is the API server running, and is this its address?",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_an_error_comes_with_its_remedy() {
        let shown = |text: &str| {
            let inner = std::io::Error::other(text.to_owned());
            root(&std::io::Error::other(inner))
        };
        assert_eq!(shown("broken pipe"), "broken pipe");
        let line = shown("invalid peer certificate: UnknownIssuer");
        assert!(
            line.ends_with("certificate-authority in --kubeconfig-file"),
            "{line}"
        );
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

//! The connection to the API server: requests and answers as bytes, with time limits, counted, and refusals as errors.

use std::{ops::Deref, time::Duration};

use http::{Method, Response, header};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use tokio::time::timeout;

use super::{
    access::Access,
    error::{Error, Refusal},
};
use crate::metrics::{COUNTERS, KubeRequest as Request};

/// Limit for a request that concerns one object.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of a refusal's body is read, in bytes.
const REFUSAL_MAX: usize = 64 << 10;
/// A patch that adds to what is there.
const STRATEGIC_MERGE: &str = "application/strategic-merge-patch+json";

/// A connection, made when first needed.
pub struct Connection {
    access: Access,
    client: Option<Client>,
    server: String,
}

impl Connection {
    /// One that is not made yet.
    pub const fn new(access: Access) -> Self {
        Self {
            access,
            client: None,
            server: String::new(),
        }
    }

    /// The server's URL, for messages; empty before there was a request.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Forgets the connection, so that the next request makes a new one with the files as they are then.
    pub fn reset(&mut self) {
        self.client = None;
    }

    /// A request that concerns one object, with its answer.
    pub(super) async fn one(
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
    pub(super) async fn limited(
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

    /// A request of which `take` gets the answer part by part, all within `limit`.
    pub(super) async fn in_parts(
        &mut self,
        request: Request,
        path: &str,
        limit: Duration,
        mut take: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        counted(request, async {
            let whole = async {
                let response = self.send(request, Method::GET, path, String::new());
                let mut body = response.await?.into_body();
                while let Some(part) = next_part(request, &mut body).await? {
                    take(&part)?;
                }
                Ok(())
            };
            within(request, limit, whole).await
        })
        .await
    }

    /// A request whose answer comes bit by bit.
    pub(super) async fn open(
        &mut self,
        request: Request,
        path: &str,
    ) -> Result<Response<Body>, Error> {
        counted(request, async {
            let response = self.send(request, Method::GET, path, String::new());
            within(request, REQUEST_TIMEOUT, response).await
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
    while let Some(part) = next_part(request, &mut body).await? {
        bytes.extend_from_slice(&part);
        if bytes.len() > most {
            break;
        }
    }
    Ok(bytes)
}

/// What comes next of an answer's body; none at its end.
async fn next_part(
    request: Request,
    body: &mut Body,
) -> Result<Option<impl Deref<Target = [u8]>>, Error> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Error::Transport {
            request,
            reason: root(&error),
        })?;
        if let Ok(part) = frame.into_data() {
            return Ok(Some(part));
        }
    }
    Ok(None)
}

/// The last of an error's causes, such as "connection refused", with what an operator can do about it.
pub(super) fn root(error: &dyn std::error::Error) -> String {
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
}

//! An HTTP client that shows everything.

use std::{net::SocketAddr, time::Duration};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, runtime::Runtime, task::JoinHandle, time::timeout};

use super::super::{ApiServer, Options};

/// How long an answer may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a stream is silent before it is called so.
const SILENCE: Duration = Duration::from_millis(200);

pub(super) const MERGE: &str = "application/merge-patch+json";
pub(super) const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// A server on a free port of the loopback device, and its client.
pub(super) struct Client {
    pub(super) server: ApiServer,
    runtime: Runtime,
    pub(super) token: Option<String>,
}

/// What came back.
pub(super) struct Answer {
    pub(super) code: u16,
    pub(super) retry_after: Option<String>,
    pub(super) body: Value,
}

/// The client's part of a connection, at work.
type Connection = JoinHandle<hyper::Result<()>>;

/// An open watch; closed when it goes.
pub(super) struct Watch<'a> {
    client: &'a Client,
    body: Option<Incoming>,
    connection: Option<Connection>,
    rest: Vec<u8>,
}

/// How a watch went on.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    Line(Value),
    NoJson(String),
    End,
    Broken,
    Silent,
}

impl Next {
    /// `ADDED n1`, `BOOKMARK`.
    pub(super) fn brief(&self) -> String {
        let Self::Line(line) = self else {
            return format!("{self:?}");
        };
        let name = line["object"]["metadata"]["name"].as_str();
        [line["type"].as_str(), name]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" ")
    }
}

impl Client {
    pub(super) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(super) fn with(options: Options) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            server: ApiServer::start(None, address, options).unwrap(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            token: None,
        }
    }

    /// A server with nodes `n1` to `n<count>`.
    pub(super) fn with_nodes(count: u8) -> Self {
        let client = Self::new();
        for number in 1..=count {
            client.add(number);
        }
        client
    }

    pub(super) fn add(&self, number: u8) {
        let address = [192, 0, 2, number].into();
        let node = super::super::node(
            &format!("n{number}"),
            &[address],
            &[&format!("10.5.{number}.0/24")],
        );
        self.server.put_node(node);
    }

    /// An error of the connection, as text.
    pub(super) fn try_get(&self, path: &str) -> Result<Answer, String> {
        self.request(Method::GET, path, "", "")
    }

    pub(super) fn get(&self, path: &str) -> Answer {
        self.try_get(path).unwrap()
    }

    pub(super) fn patch(&self, path: &str, form: &str, body: &Value) -> Answer {
        self.request(Method::PATCH, path, form, &body.to_string())
            .unwrap()
    }

    pub(super) fn request(
        &self,
        method: Method,
        path: &str,
        form: &str,
        body: &str,
    ) -> Result<Answer, String> {
        self.runtime.block_on(async {
            let exchange = async {
                let (response, _) = self.send(method, path, form, body).await?;
                let code = response.status().as_u16();
                let retry_after = response.headers().get("retry-after").cloned();
                let body = response.into_body().collect().await.map_err(text)?;
                Ok(Answer {
                    code,
                    retry_after: retry_after.map(|value| value.to_str().unwrap().to_owned()),
                    body: serde_json::from_slice(&body.to_bytes()).unwrap_or_default(),
                })
            };
            timeout(LIMIT, exchange).await.map_err(text)?
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        form: &str,
        body: &str,
    ) -> Result<(Response<Incoming>, Connection), String> {
        let stream = TcpStream::connect(self.server.address)
            .await
            .map_err(text)?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
        let connection = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        if !form.is_empty() {
            request = request.header("Content-Type", form);
        }
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
        let response = sender.send_request(request.body(body).unwrap()).await;
        Ok((response.map_err(text)?, connection))
    }

    /// Opens a watch; `query` comes behind `watch=true`.
    pub(super) fn watch(&self, query: &str) -> Watch<'_> {
        let path = format!("/api/v1/nodes?watch=true&{query}");
        let response = self.runtime.block_on(self.send(Method::GET, &path, "", ""));
        let (response, connection) = response.unwrap();
        assert_eq!(response.status(), 200);
        Watch {
            client: self,
            body: Some(response.into_body()),
            connection: Some(connection),
            rest: Vec::new(),
        }
    }
}

impl Watch<'_> {
    /// The next line, or what comes in its place.
    pub(super) fn next(&mut self) -> Next {
        self.next_within(LIMIT)
    }

    /// Expects nothing for a while.
    pub(super) fn is_silent(&mut self) -> bool {
        self.next_within(SILENCE) == Next::Silent
    }

    fn next_within(&mut self, limit: Duration) -> Next {
        let body = self.body.as_mut().unwrap();
        self.client.runtime.block_on(async {
            loop {
                if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                    let line = self.rest.drain(..=end).collect::<Vec<_>>();
                    return serde_json::from_slice(&line).map_or_else(
                        |_| Next::NoJson(String::from_utf8_lossy(&line).into_owned()),
                        Next::Line,
                    );
                }
                match timeout(limit, body.frame()).await {
                    Err(_) => return Next::Silent,
                    Ok(None) => return Next::End,
                    Ok(Some(Err(_))) => return Next::Broken,
                    Ok(Some(Ok(frame))) => {
                        self.rest.extend(frame.into_data().unwrap_or_default());
                    }
                }
            }
        })
    }

    /// The next lines, each briefly.
    pub(super) fn briefly(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.next().brief()).collect()
    }

    /// What came of a line that was never finished.
    pub(super) fn unfinished(&self) -> &[u8] {
        &self.rest
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.body = None;
        if let Some(connection) = self.connection.take() {
            // The client's runtime works only when it is waited for.
            let closed = async { timeout(LIMIT, connection).await };
            self.client.runtime.block_on(closed).ok();
        }
    }
}

fn text(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

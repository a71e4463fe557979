//! Health for orchestrators over HTTP: `/healthz` and `/readyz` with upstream's bodies, and `/metrics`.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

use crate::{
    board::Board,
    metrics::exposition,
    reconcile::{Call, Wanted},
    status_socket,
};

/// A request line is short; what is longer is no probe.
const REQUEST_LIMIT: u64 = 8 * 1024;
/// A probe that says nothing does not hold its connection for longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Binds the health port. `address` is an address or a name; empty means all addresses of both families, as in Go.
///
/// # Errors
/// When address and port cannot be bound.
pub async fn bind(address: &str, port: u16) -> io::Result<TcpListener> {
    if !address.is_empty() {
        return TcpListener::bind((address, port)).await;
    }
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        // A host without IPv6.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        bound => bound,
    }
}

/// Answers probes for ever; `calls` reach the reconciler, which measures for `/metrics`.
pub async fn serve(listener: TcpListener, board: Board, calls: mpsc::Sender<Call>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (board, calls) = (board.clone(), calls.clone());
                tokio::spawn(async move {
                    // A probe that fails to read its answer is its own problem.
                    let _ = timeout(REQUEST_TIMEOUT, answer(stream, &board, &calls)).await;
                });
            }
            Err(error) => {
                tracing::debug!(%error, "health: accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(
    mut stream: TcpStream,
    board: &Board,
    calls: &mpsc::Sender<Call>,
) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader.take(REQUEST_LIMIT));
    let mut request = String::new();
    reader.read_line(&mut request).await?;
    let mut header = String::new();
    while reader.read_line(&mut header).await? > 0 && !header.trim().is_empty() {
        header.clear();
    }
    let request = Request::read(&request);
    if request.path == METRICS {
        status_socket::call(calls, Wanted::Metrics).await;
    }
    writer.write_all(request.response(board).as_bytes()).await?;
    writer.shutdown().await
}

/// The path of the metrics.
const METRICS: &str = "/metrics";

/// The first line of a request.
#[derive(Clone, Copy)]
struct Request<'a> {
    method: &'a str,
    /// Without query.
    path: &'a str,
}

impl<'a> Request<'a> {
    fn read(line: &'a str) -> Self {
        let mut words = line.split_whitespace();
        let method = words.next().unwrap_or_default();
        let path = words.next().unwrap_or_default();
        Self {
            method,
            path: path.split('?').next().unwrap_or_default(),
        }
    }

    fn response(self, board: &Board) -> String {
        let page = match (self.method, self.path) {
            ("GET" | "HEAD", METRICS) => board.exposition(),
            _ => String::new(),
        };
        let plain = "text/plain; charset=utf-8";
        let (status, kind, body) = match (self.method, self.path) {
            ("GET" | "HEAD", "/healthz") => ("200 OK", plain, "flanneld is running"),
            ("GET" | "HEAD", "/readyz") if board.ready() => ("200 OK", plain, "flanneld is ready"),
            ("GET" | "HEAD", "/readyz") => (
                "503 Service Unavailable",
                plain,
                "flanneld is not ready yet",
            ),
            ("GET" | "HEAD", METRICS) => ("200 OK", exposition::CONTENT_TYPE, page.as_str()),
            ("GET" | "HEAD", _) => ("404 Not Found", plain, "404 page not found"),
            _ => ("405 Method Not Allowed", plain, ""),
        };
        let shown = if self.method == "HEAD" { "" } else { body };
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{shown}",
            body.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_and_codes_are_upstreams() {
        let first_and_last = |request: &str, ready| {
            let board = Board::default();
            board.update(|status| status.ready = ready);
            let text = Request::read(request).response(&board);
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            (head.lines().next().unwrap().to_owned(), body.to_owned())
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            first_and_last("GET /healthz HTTP/1.1", false),
            pair("HTTP/1.1 200 OK", "flanneld is running")
        );
        assert_eq!(
            first_and_last("GET /readyz?v HTTP/1.1", true),
            pair("HTTP/1.1 200 OK", "flanneld is ready")
        );
        assert_eq!(
            first_and_last("GET /readyz HTTP/1.0", false),
            pair(
                "HTTP/1.1 503 Service Unavailable",
                "flanneld is not ready yet"
            )
        );
        assert_eq!(
            first_and_last("HEAD /readyz HTTP/1.1", true),
            pair("HTTP/1.1 200 OK", "")
        );
        let (status, page) = first_and_last("GET /metrics HTTP/1.1", true);
        assert_eq!(status, "HTTP/1.1 200 OK");
        let metrics = lab::exposition::parse(&page).unwrap();
        assert_eq!(metrics["flannel_ready"].get(&[]), Some(1.0));
        assert_eq!(
            first_and_last("GET / HTTP/1.1", true).0,
            "HTTP/1.1 404 Not Found"
        );
        assert_eq!(
            first_and_last("POST /healthz HTTP/1.1", true).0,
            "HTTP/1.1 405 Method Not Allowed"
        );
        assert_eq!(
            first_and_last("", true).0,
            "HTTP/1.1 405 Method Not Allowed"
        );
    }
}

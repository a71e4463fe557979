//! Health for orchestrators: `/healthz` and `/readyz` over HTTP with upstream's bodies, and `READY=1` for systemd.

use std::{
    env, io,
    net::{Ipv4Addr, Ipv6Addr},
    os::{linux::net::SocketAddrExt as _, unix::ffi::OsStrExt as _},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::board::Board;

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

/// Answers probes for ever.
pub async fn serve(listener: TcpListener, board: Board) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let board = board.clone();
                tokio::spawn(async move {
                    // A probe that fails to read its answer is its own problem.
                    let _ = timeout(REQUEST_TIMEOUT, answer(stream, &board)).await;
                });
            }
            Err(error) => {
                tracing::debug!(%error, "health: accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream, board: &Board) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader.take(REQUEST_LIMIT));
    let mut request = String::new();
    reader.read_line(&mut request).await?;
    let mut header = String::new();
    while reader.read_line(&mut header).await? > 0 && !header.trim().is_empty() {
        header.clear();
    }
    writer
        .write_all(response(&request, board.ready()).as_bytes())
        .await?;
    writer.shutdown().await
}

fn response(request: &str, ready: bool) -> String {
    let mut words = request.split_whitespace();
    let method = words.next().unwrap_or_default();
    let path = words
        .next()
        .unwrap_or_default()
        .split('?')
        .next()
        .unwrap_or_default();
    let (status, body) = match (method, path) {
        ("GET" | "HEAD", "/healthz") => ("200 OK", "flanneld is running"),
        ("GET" | "HEAD", "/readyz") if ready => ("200 OK", "flanneld is ready"),
        ("GET" | "HEAD", "/readyz") => ("503 Service Unavailable", "flanneld is not ready yet"),
        ("GET" | "HEAD", _) => ("404 Not Found", "404 page not found"),
        _ => ("405 Method Not Allowed", ""),
    };
    let shown = if method == "HEAD" { "" } else { body };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{shown}",
        body.len()
    )
}

/// Tells systemd, if it started the agent with `Type=notify`, that the agent is ready.
pub fn notify_ready() {
    let Some(path) = env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
        return;
    };
    let sent = std::os::unix::net::UnixDatagram::unbound().and_then(|socket| {
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => std::os::unix::net::SocketAddr::from_abstract_name(name)?,
            None => std::os::unix::net::SocketAddr::from_pathname(&path)?,
        };
        socket.send_to_addr(b"READY=1", &address)
    });
    if let Err(error) = sent {
        tracing::warn!(%error, socket = ?path, "systemd could not be told that the agent is ready");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_and_codes_are_upstreams() {
        let first_and_last = |request: &str, ready| {
            let text = response(request, ready);
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

//! The server's thread: listener, connections, and the way from bytes to [`Request`]s.

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{
    Shared,
    answer::{Reset, answer},
    request::{Request, Target},
};
use crate::{
    error::{IoContext, Result},
    netns::Netns,
};

/// How long to wait after the kernel refused a connection, for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An order to the server's thread.
enum Order {
    /// Accepts connections here from now on.
    Listen(TcpListener),
    /// Closes the listener and resets all connections, then says so.
    Close(oneshot::Sender<()>),
}

/// The thread; it ends with this.
#[derive(Debug)]
pub(super) struct Server {
    orders: Option<mpsc::UnboundedSender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(shared: Arc<Shared>, tls: Option<TlsAcceptor>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start", "the API server's runtime")?;
        let (orders, inbox) = mpsc::unbounded_channel();
        let thread = thread::Builder::new()
            .name("API server".to_owned())
            .spawn(move || runtime.block_on(serve(shared, tls, inbox)))
            .context("start", "the API server's thread")?;
        Ok(Self {
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    pub(super) fn listen(&self, listener: TcpListener) -> Result<()> {
        listener
            .set_nonblocking(true)
            .context("prepare", "the API server's listener")?;
        self.order(Order::Listen(listener));
        Ok(())
    }

    /// Returns when nobody listens any more.
    pub(super) fn close(&self) {
        let (sender, closed) = oneshot::channel();
        self.order(Order::Close(sender));
        // An error means that the thread has ended, and the listener with it.
        closed.blocking_recv().ok();
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            orders.send(order).ok();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Binds a listener inside a namespace, or in that of the caller.
pub(super) fn bind(netns: Option<&Netns>, address: SocketAddr) -> Result<TcpListener> {
    let bind = || TcpListener::bind(address).context("listen on", address);
    match netns {
        Some(netns) => netns.run(bind)?,
        None => bind(),
    }
}

/// Works until nobody can give orders any more.
async fn serve(
    shared: Arc<Shared>,
    tls: Option<TlsAcceptor>,
    mut inbox: mpsc::UnboundedReceiver<Order>,
) {
    let mut listener = None;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            order = inbox.recv() => match order {
                Some(Order::Listen(new)) => listener = tokio::net::TcpListener::from_std(new).ok(),
                Some(Order::Close(done)) => {
                    listener = None;
                    connections.shutdown().await;
                    done.send(()).ok();
                }
                None => break,
            },
            accepted = accept(listener.as_ref()) => match accepted {
                Ok(stream) => {
                    connections.spawn(connection(shared.clone(), tls.clone(), stream));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
    connections.shutdown().await;
}

async fn accept(listener: Option<&tokio::net::TcpListener>) -> std::io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

/// The client's end of a connection, for those who want to treat it badly.
#[derive(Clone, Debug)]
pub(super) struct Connection(Arc<OwnedFd>);

impl Connection {
    /// The client will see a reset instead of an orderly end.
    pub(super) fn reset_when_closed(&self) {
        rustix::net::sockopt::set_socket_linger(&*self.0, Some(Duration::ZERO)).ok();
    }
}

async fn connection(shared: Arc<Shared>, tls: Option<TlsAcceptor>, stream: TcpStream) {
    stream.set_nodelay(true).ok();
    let Ok(handle) = stream.as_fd().try_clone_to_owned() else {
        return;
    };
    let connection = Connection(Arc::new(handle));
    match tls {
        None => converse(shared, connection, stream).await,
        // Who does not trust the certificate goes.
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                converse(shared, connection, stream).await;
            }
        }
    }
}

async fn converse(
    shared: Arc<Shared>,
    connection: Connection,
    stream: impl AsyncRead + AsyncWrite + Unpin,
) {
    let service = service_fn(|request| {
        let (shared, connection) = (shared.clone(), connection.clone());
        async move { answer(&shared, &connection, read(request).await?).await }
    });
    // An error is the client's end, or a fault that was wanted.
    http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
        .ok();
}

async fn read(request: hyper::Request<Incoming>) -> Result<Request, Reset> {
    let (head, body) = request.into_parts();
    let query = form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes())
        .into_owned()
        .collect();
    let body = body.collect().await.map_err(|_| Reset)?.to_bytes();
    let path = head.uri.path().to_owned();
    let method = head.method.to_string();
    let token = header(&head.headers, AUTHORIZATION);
    Ok(Request {
        kind: Target::of(&path).kind(&method, &query),
        token: token.strip_prefix("Bearer ").map(str::to_owned),
        content_type: header(&head.headers, CONTENT_TYPE),
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        method,
        path,
        query,
    })
}

fn header(headers: &HeaderMap, name: HeaderName) -> String {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

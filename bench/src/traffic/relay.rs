//! A server that knows nothing itself and asks another, as a caching resolver on a node does: what a pod asks of the node,
//! the node asks of a service.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    thread,
    time::Duration,
};

use crate::{
    error::{IoContext, Result},
    netns::Netns,
    traffic::{
        server::{Server, Stop},
        whoami::{MESSAGE, open},
    },
};

/// How long the other may take for an answer, and a client for its next question.
const LIMIT: Duration = Duration::from_secs(10);

/// Passes questions on to another server, and its answers back: one connection for each client's, and one flow for all
/// datagrams. Stopped when dropped.
#[derive(Debug)]
pub struct Relay {
    _thread: Server,
}

impl Relay {
    /// Listens at one address of a namespace, and asks `server` from that namespace.
    ///
    /// # Errors
    /// If the port cannot be opened.
    pub fn start(netns: &Netns, at: SocketAddrV4, server: SocketAddrV4) -> Result<Self> {
        let (listener, socket) = open(netns, at)?;
        let connect = || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(server)?;
            socket.set_read_timeout(Some(LIMIT))?;
            io::Result::Ok(socket)
        };
        let upstream = netns.run(connect)?.context("connect to", server)?;
        let netns = netns.clone();
        let thread = Server::start(move |stop| {
            serve(&netns, &listener, &socket, &upstream, stop, server);
        })?;
        Ok(Self { _thread: thread })
    }
}

fn serve(
    netns: &Netns,
    listener: &TcpListener,
    socket: &UdpSocket,
    upstream: &UdpSocket,
    stop: &Stop,
    server: SocketAddrV4,
) {
    let mut message = [0; MESSAGE];
    while stop.wait_readable([listener.as_fd(), socket.as_fd()]) {
        if let Ok((client, _)) = listener.accept() {
            let netns = netns.clone();
            // A connection's thread ends with it, or after the limit.
            thread::spawn(move || pass_on(&netns, client, server));
        }
        if let Ok((MESSAGE, client)) = socket.recv_from(&mut message) {
            let asked = upstream
                .send(&message)
                .and_then(|_| upstream.recv(&mut message));
            if let Ok(MESSAGE) = asked {
                socket.send_to(&message, client).ok();
            }
        }
    }
}

fn pass_on(netns: &Netns, mut client: TcpStream, server: SocketAddrV4) -> Result<()> {
    let converse = || {
        let mut server = TcpStream::connect_timeout(&server.into(), LIMIT)?;
        client.set_nonblocking(false)?;
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(LIMIT))?;
        }
        let mut message = [0; MESSAGE];
        loop {
            client.read_exact(&mut message)?;
            server.write_all(&message)?;
            server.read_exact(&mut message)?;
            client.write_all(&message)?;
        }
    };
    let ended: io::Result<()> = netns.run(converse)?;
    ended.context("pass on to", server)
}

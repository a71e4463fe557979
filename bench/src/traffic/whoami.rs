//! Who answers, and whom the answer is for: a server that tells its name and the address that a request came from, as a
//! service's backends do in Kubernetes' own tests. Shows where address translation has led a request.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};

use crate::{
    error::{Error, IoContext, Result},
    netns::Netns,
    traffic::{
        rtt::Transport,
        server::{Server, Stop},
    },
};

/// Bytes of a request, and of an answer: large enough for some hundred to leave any TCP window that conntrack has seen.
pub(super) const MESSAGE: usize = 1024;
/// How long a connection may be idle at the server.
const IDLE_LIMIT: Duration = Duration::from_secs(20);

/// Answers each request with its name and where the request came from, on one port of both
/// transports. Stopped when dropped.
#[derive(Debug)]
pub struct WhoAmI {
    asked: Arc<AtomicU64>,
    _thread: Server,
}

impl WhoAmI {
    /// Starts a server of that name in a namespace, on all its addresses.
    ///
    /// # Errors
    /// If the port cannot be opened.
    pub fn start(netns: &Netns, name: &str, port: u16) -> Result<Self> {
        let (listener, socket) = open(netns, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
        let asked = Arc::new(AtomicU64::new(0));
        let (count, name) = (asked.clone(), name.to_owned());
        let thread = Server::start(move |stop| serve(&listener, &socket, stop, &name, &count))?;
        Ok(Self {
            asked,
            _thread: thread,
        })
    }

    /// How many connections and datagrams have come.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

/// Opens a port of both transports for polling.
pub(super) fn open(netns: &Netns, at: SocketAddrV4) -> Result<(TcpListener, UdpSocket)> {
    let open = || {
        let (listener, socket) = (TcpListener::bind(at)?, UdpSocket::bind(at)?);
        listener.set_nonblocking(true)?;
        socket.set_nonblocking(true)?;
        io::Result::Ok((listener, socket))
    };
    netns
        .run(open)?
        .context("open port", format_args!("{at} in {}", netns.name()))
}

fn serve(listener: &TcpListener, socket: &UdpSocket, stop: &Stop, name: &str, asked: &AtomicU64) {
    let mut request = [0; MESSAGE];
    while stop.wait_readable([listener.as_fd(), socket.as_fd()]) {
        if let Ok((stream, peer)) = listener.accept() {
            asked.fetch_add(1, Ordering::Relaxed);
            let name = name.to_owned();
            // A connection's thread ends with it, or after the idle limit.
            thread::spawn(move || converse(stream, peer, &name));
        }
        if let Ok((MESSAGE, peer)) = socket.recv_from(&mut request) {
            asked.fetch_add(1, Ordering::Relaxed);
            socket.send_to(&answer(&request, name, peer), peer).ok();
        }
    }
}

fn converse(mut stream: TcpStream, peer: SocketAddr, name: &str) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE_LIMIT))?;
    let mut request = [0; MESSAGE];
    loop {
        stream.read_exact(&mut request)?;
        stream.write_all(&answer(&request, name, peer))?;
    }
}

/// The request's first byte, name and address with a space between them, a line feed, and the rest of the request.
fn answer(request: &[u8; MESSAGE], name: &str, peer: SocketAddr) -> [u8; MESSAGE] {
    let mut answer = *request;
    let text = format!("{name} {peer}\n");
    answer[1..=text.len()].copy_from_slice(text.as_bytes());
    answer
}

/// What a server has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its name.
    pub server: String,
    /// Where it has seen the request come from.
    pub client: SocketAddrV4,
}

/// One flow of questions.
#[derive(Debug)]
pub struct Questioner {
    socket: Socket,
    to: SocketAddrV4,
    number: u8,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    /// Not connected, so that answers from elsewhere are seen.
    Udp(UdpSocket),
}

impl Questioner {
    /// Opens a socket in a namespace, on a given port or any, and connects it if it is TCP's.
    ///
    /// # Errors
    /// If the port is taken, or nobody takes the connection within `limit`.
    pub fn open(
        netns: &Netns,
        to: SocketAddrV4,
        transport: Transport,
        port: u16,
        limit: Duration,
    ) -> Result<Self> {
        let local = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        let open = || {
            Ok(match transport {
                Transport::Tcp => Socket::Tcp(connected(local, to, limit)?),
                Transport::Udp => {
                    let socket = UdpSocket::bind(local)?;
                    socket.set_read_timeout(Some(limit))?;
                    Socket::Udp(socket)
                }
            })
        };
        let socket: io::Result<Socket> = netns.run(open)?;
        Ok(Self {
            socket: socket.context("connect to", to)?,
            to,
            number: 0,
        })
    }

    /// The port that it asks from.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn port(&self) -> Result<u16> {
        match &self.socket {
            Socket::Tcp(stream) => stream.local_addr(),
            Socket::Udp(socket) => socket.local_addr(),
        }
        .map(|address| address.port())
        .context("query", "socket")
    }

    /// Turns to another address; a TCP connection cannot.
    pub fn turn_to(&mut self, to: SocketAddrV4) {
        self.to = to;
    }

    /// How long an answer is waited for from now on.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn set_limit(&self, limit: Duration) -> Result<()> {
        match &self.socket {
            Socket::Tcp(stream) => stream.set_read_timeout(Some(limit)),
            Socket::Udp(socket) => socket.set_read_timeout(Some(limit)),
        }
        .context("set", "time limit")
    }

    /// Asks once.
    ///
    /// # Errors
    /// If no answer comes in time, or one that is not to this question, or from elsewhere than where it was asked.
    pub fn ask(&mut self) -> Result<Answer> {
        self.number = self.number.wrapping_add(1);
        let request = [self.number; MESSAGE];
        self.send(&request).context("ask", self.to)?;
        self.answer()
    }

    /// Waits for the answer to the last question, once more.
    ///
    /// # Errors
    /// As [`Questioner::ask`].
    pub fn answer(&mut self) -> Result<Answer> {
        let mut bytes = [0; MESSAGE];
        self.receive(&mut bytes)
            .map_err(|error| match error.kind() {
                // What the kernel calls a receive timeout.
                ErrorKind::WouldBlock => io::Error::new(ErrorKind::TimedOut, "no answer in time"),
                _ => error,
            })
            .context("wait for the answer of", self.to)?;
        let bad = |reason: &str| Error::Parse {
            what: format!("answer of {}", self.to),
            reason: reason.to_owned(),
            text: String::from_utf8_lossy(&bytes[..64]).into_owned(),
        };
        let text = bytes[1..].split(|byte| *byte == b'\n').next();
        let text = text.and_then(|text| std::str::from_utf8(text).ok());
        let (server, client) = text
            .and_then(|text| text.split_once(' '))
            .ok_or_else(|| bad("expected name and address"))?;
        if bytes[0] != self.number || bytes[MESSAGE - 1] != self.number {
            return Err(bad("it answers another question"));
        }
        Ok(Answer {
            server: server.to_owned(),
            client: client.parse().map_err(|_| bad("no address"))?,
        })
    }

    fn send(&mut self, request: &[u8; MESSAGE]) -> io::Result<()> {
        match &mut self.socket {
            Socket::Tcp(stream) => stream.write_all(request),
            Socket::Udp(socket) => socket.send_to(request, self.to).map(drop),
        }
    }

    fn receive(&mut self, bytes: &mut [u8; MESSAGE]) -> io::Result<()> {
        let socket = match &mut self.socket {
            Socket::Tcp(stream) => return stream.read_exact(bytes),
            Socket::Udp(socket) => socket,
        };
        loop {
            let (length, from) = socket.recv_from(bytes)?;
            if from != SocketAddr::V4(self.to) {
                let text = format!("an answer of {length} bytes from {from}");
                return Err(io::Error::new(ErrorKind::InvalidData, text));
            }
            // An earlier answer may be late.
            if bytes[0] == self.number {
                return Ok(());
            }
        }
    }

    /// Ends a connection as both ends should, and waits for the server's end of it.
    ///
    /// # Errors
    /// If that does not come in time.
    pub fn close(self) -> Result<()> {
        let Socket::Tcp(mut stream) = self.socket else {
            return Ok(());
        };
        let mut close = || {
            stream.shutdown(std::net::Shutdown::Write)?;
            match stream.read(&mut [0; 1])? {
                0 => Ok(()),
                _ => Err(io::Error::new(
                    ErrorKind::InvalidData,
                    "more than the answer",
                )),
            }
        };
        close().context("close the connection to", self.to)
    }

    /// Ends a connection with a reset.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn reset(self) -> Result<()> {
        let Socket::Tcp(stream) = self.socket else {
            return Ok(());
        };
        sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).context("reset", self.to)
    }
}

/// A TCP connection from a port that other connections may have, too.
fn connected(from: SocketAddrV4, to: SocketAddrV4, limit: Duration) -> io::Result<TcpStream> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &from)?;
    // Linux takes this for the time that connecting may take, too.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(limit))?;
    connect(&socket, &to)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(limit))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_keeps_the_question_at_both_ends() {
        let answer = answer(&[7; MESSAGE], "n1", "10.5.1.2:80".parse().unwrap());
        assert_eq!(&answer[..17], b"\x07n1 10.5.1.2:80\n\x07");
        assert_eq!(answer[MESSAGE - 1], 7);
    }
}

//! Request and response: an echo server for a pod, round-trip times, and the question "can these two talk?".

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use crate::{
    error::{Error, IoContext, Result},
    netns::Netns,
    traffic::{
        Host, any,
        server::{Server, Stop},
    },
};

/// How long the server waits for the next request of a connection.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// Largest datagram.
const BUFFER: usize = 64 << 10;

/// The transport of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One connection for all requests.
    Tcp,
    /// Datagrams from one socket. A lost one fails the request: nothing is sent again.
    Udp,
}

/// Answers each request with its own bytes, on one TCP and one UDP port of the same number. Stopped when dropped.
#[derive(Debug)]
pub struct EchoServer {
    port: u16,
    _thread: Server,
}

impl EchoServer {
    /// Starts a server in a namespace, on all its IPv4 addresses and a free port.
    ///
    /// # Errors
    /// If no port can be opened.
    pub fn start(netns: &Netns) -> Result<Self> {
        Self::start_for(netns, Ipv4Addr::UNSPECIFIED.into())
    }

    /// The same on all addresses of the family that `address` is of.
    ///
    /// # Errors
    /// If no port can be opened.
    pub fn start_for(netns: &Netns, address: IpAddr) -> Result<Self> {
        let (listener, socket) = netns
            .run(|| open(any(address)))?
            .context("open echo ports in", netns.name())?;
        let port = listener.local_addr().context("query", "socket")?.port();
        let thread = Server::start(move |stop| serve(&listener, &socket, stop))?;
        Ok(Self {
            port,
            _thread: thread,
        })
    }

    /// The port of both transports.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Opens the same port for both transports; another socket may have the UDP port of a free TCP port.
fn open(any: IpAddr) -> io::Result<(TcpListener, UdpSocket)> {
    const ATTEMPTS: usize = 16;
    let attempt = || {
        let listener = TcpListener::bind((any, 0))?;
        let socket = UdpSocket::bind((any, listener.local_addr()?.port()))?;
        listener.set_nonblocking(true)?;
        socket.set_nonblocking(true)?;
        Ok((listener, socket))
    };
    (1..ATTEMPTS)
        .find_map(|_| attempt().ok())
        .map_or_else(attempt, Ok)
}

fn serve(listener: &TcpListener, socket: &UdpSocket, stop: &Stop) {
    let mut buffer = vec![0; BUFFER];
    while stop.wait_readable([listener.as_fd(), socket.as_fd()]) {
        if let Ok((stream, _)) = listener.accept() {
            // A connection's thread ends with it, or after the idle limit.
            thread::spawn(move || echo(stream));
        }
        if let Ok((length, source)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..length], source).ok();
        }
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE_LIMIT))?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

/// Round-trip times in the order of the requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoundTrips(pub Vec<Duration>);

impl RoundTrips {
    /// The time that `percent` of the requests did not exceed; zero if there was none.
    pub fn percentile(&self, percent: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        let rank = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
        sorted
            .get(rank.clamp(1, sorted.len().max(1)) - 1)
            .copied()
            .unwrap_or_default()
    }
}

/// Sends `count` requests of `size` bytes one after the other and waits for each answer.
///
/// # Errors
/// The first request that is not answered with its own bytes within `limit`.
pub fn round_trips(
    from: &dyn Host,
    to: SocketAddr,
    transport: Transport,
    count: usize,
    size: usize,
    limit: Duration,
) -> Result<RoundTrips> {
    let mut client = Client::connect(from, to, transport, limit).context("connect to", to)?;
    let mut request = vec![0; size.max(1)];
    let mut times = Vec::with_capacity(count);
    for number in 0..count {
        let number = u8::try_from(number % 256).expect("less than 256");
        request.fill(number);
        let start = Instant::now();
        client
            .exchange(&request)
            .context("exchange request with", to)?;
        times.push(start.elapsed());
    }
    Ok(RoundTrips(times))
}

/// Connects, sends one request, waits for the answer and closes, `count` times; the times include all of it.
///
/// # Errors
/// The first connection that fails.
pub fn connect_request_close(
    from: &dyn Host,
    to: SocketAddr,
    count: usize,
    limit: Duration,
) -> Result<RoundTrips> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        round_trips(from, to, Transport::Tcp, 1, 1, limit)?;
        times.push(start.elapsed());
    }
    Ok(RoundTrips(times))
}

enum Client {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Client {
    fn connect(
        from: &dyn Host,
        to: SocketAddr,
        transport: Transport,
        limit: Duration,
    ) -> io::Result<Self> {
        let in_namespace = |work: &(dyn Fn() -> io::Result<Self> + Sync)| {
            from.netns()
                .run(work)
                .map_err(|error: Error| io::Error::other(error.to_string()))?
        };
        in_namespace(&|| match transport {
            Transport::Tcp => {
                let stream = TcpStream::connect_timeout(&to, limit)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(limit))?;
                stream.set_write_timeout(Some(limit))?;
                Ok(Self::Tcp(stream))
            }
            Transport::Udp => {
                let socket = UdpSocket::bind((any(to.ip()), 0))?;
                socket.connect(to)?;
                socket.set_read_timeout(Some(limit))?;
                Ok(Self::Udp(socket))
            }
        })
    }

    fn exchange(&mut self, request: &[u8]) -> io::Result<()> {
        self.try_exchange(request)
            .map_err(|error| match error.kind() {
                // What the kernel calls a receive timeout.
                ErrorKind::WouldBlock => io::Error::new(ErrorKind::TimedOut, "no answer in time"),
                _ => error,
            })
    }

    fn try_exchange(&mut self, request: &[u8]) -> io::Result<()> {
        let mut answer = vec![0; request.len()];
        match self {
            Self::Tcp(stream) => {
                stream.write_all(request)?;
                stream.read_exact(&mut answer)?;
            }
            Self::Udp(socket) => {
                socket.send(request)?;
                let length = socket.recv(&mut answer)?;
                answer.truncate(length);
            }
        }
        if answer == request {
            Ok(())
        } else {
            Err(io::Error::new(
                ErrorKind::InvalidData,
                "the answer is not the request",
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let times = RoundTrips((1..=10).rev().map(Duration::from_micros).collect());
        assert_eq!(times.percentile(50.0), Duration::from_micros(5));
        assert_eq!(times.percentile(99.0), Duration::from_micros(10));
        assert_eq!(times.percentile(0.0), Duration::from_micros(1));
        assert_eq!(RoundTrips::default().percentile(50.0), Duration::ZERO);
    }
}

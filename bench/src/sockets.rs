//! Sockets of both ends of flows, and threads that use them, each on the CPU that it is told.
//!
//! Blocking calls, and one byte each way unless more is asked for: what is between the sockets should be as much as possible of what is measured.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lab::{
    error::IoContext,
    traffic::{Host, rtt::Transport},
};
use rustix::{
    net::{
        RecvFlags, SendFlags, recv, send,
        sockopt::{Timeout, set_socket_timeout},
    },
    thread::CpuSet,
};

use crate::testbed::{End, Result};

/// How long an answer may take. Nothing is sent again: a lost packet spoils the measurement.
pub const LIMIT: Duration = Duration::from_secs(5);

/// The CPUs of the two ends.
#[derive(Clone, Copy, Debug)]
pub struct Cpus {
    /// Where requests are made.
    pub client: usize,
    /// Where they are answered.
    pub server: usize,
}

/// Binds the calling thread to a CPU.
pub fn pin(cpu: usize) -> lab::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    rustix::thread::sched_setaffinity(None, &cpus)
        .context("pin thread to", format_args!("CPU {cpu}"))
}

/// Runs `client` and `server`, each in its namespace and on its CPU, at the same time.
///
/// # Errors
/// The client's, if both fail: it is the first to miss something.
pub fn at_both_ends<T: Send>(
    ends: &[End; 2],
    cpus: Cpus,
    client: impl FnOnce() -> lab::Result<T> + Send,
    server: impl FnOnce() -> lab::Result<()> + Send,
) -> Result<T> {
    let [near, far] = ends;
    let (done, served) = thread::scope(|scope| {
        let server = scope.spawn(|| {
            far.netns()
                .run(|| pin(cpus.server).and_then(|()| server()))?
        });
        let done = near
            .netns()
            .run(|| pin(cpus.client).and_then(|()| client()));
        let served = server
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (done, served)
    });
    let done = done??;
    served?;
    Ok(done)
}

/// The two ends of one flow.
pub struct Pair {
    client: OwnedFd,
    server: OwnedFd,
}

impl Pair {
    /// Opens a flow.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub fn open(ends: &[End; 2], transport: Transport) -> Result<Self> {
        let (listener, address) = Listener::open(&ends[1], transport)?;
        let client = ends[0]
            .netns()
            .run(|| connect(address, transport))?
            .context("connect to", address)?;
        let server = listener.accept(&client).context("accept at", address)?;
        Ok(Self {
            client: client.into(),
            server,
        })
    }
}

/// A connected socket of either transport.
enum Client {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl From<Client> for OwnedFd {
    fn from(client: Client) -> Self {
        match client {
            Client::Tcp(stream) => stream.into(),
            Client::Udp(socket) => socket.into(),
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Listener {
    fn open(end: &End, transport: Transport) -> Result<(Self, SocketAddr)> {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        let opened: io::Result<(Self, u16)> = end.netns().run(|| match transport {
            Transport::Tcp => {
                let listener = TcpListener::bind(any)?;
                let port = listener.local_addr()?.port();
                Ok((Self::Tcp(listener), port))
            }
            Transport::Udp => {
                let socket = UdpSocket::bind(any)?;
                let port = socket.local_addr()?.port();
                Ok((Self::Udp(socket), port))
            }
        })?;
        let (listener, port) = opened.context("open port in", end.netns().name())?;
        Ok((listener, (end.address(), port).into()))
    }

    /// The other end of `client`'s flow. Its connection is there already; a datagram has to come first.
    fn accept(self, client: &Client) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(LIMIT))?;
                Ok(stream.into())
            }
            Self::Udp(socket) => {
                socket.set_read_timeout(Some(LIMIT))?;
                if let Client::Udp(client) = client {
                    client.send(&[0])?;
                }
                let (_, from) = socket.recv_from(&mut [0])?;
                socket.connect(from)?;
                Ok(socket.into())
            }
        }
    }
}

fn connect(to: SocketAddr, transport: Transport) -> io::Result<Client> {
    match transport {
        Transport::Tcp => {
            let stream = TcpStream::connect_timeout(&to, LIMIT)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(LIMIT))?;
            Ok(Client::Tcp(stream))
        }
        Transport::Udp => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(LIMIT))?;
            Ok(Client::Udp(socket))
        }
    }
}

/// One after the other, `count` requests and answers of `bytes` bytes in each flow, all flows at the same time; the times
/// of all.
///
/// # Errors
/// If an answer is missing.
pub fn round_trips(
    pairs: &[Pair],
    count: usize,
    bytes: usize,
    cpus: Cpus,
) -> Result<Vec<Duration>> {
    let start = Barrier::new(2 * pairs.len());
    let times = thread::scope(|scope| {
        let start = &start;
        let threads: Vec<_> = pairs
            .iter()
            .flat_map(|pair| {
                let server = scope.spawn(move || {
                    let pinned = pin(cpus.server);
                    start.wait();
                    pinned?;
                    serve(&pair.server, count, bytes).context("answer", "request")?;
                    lab::Result::Ok(Vec::new())
                });
                let client = scope.spawn(move || {
                    let pinned = pin(cpus.client);
                    start.wait();
                    pinned?;
                    ask(&pair.client, count, bytes).context("wait for answer to", "request")
                });
                [client, server]
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect::<lab::Result<Vec<_>>>()
    })?;
    Ok(times.concat())
}

/// Datagrams that are sent without waiting for anything.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// How many per second; as many as the sender can without.
    pub rate: Option<u32>,
    /// For how long.
    pub time: Duration,
    /// Bytes of each.
    pub bytes: usize,
}

/// What became of them.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// Handed to the kernel.
    pub sent: u64,
    /// Read at the other end.
    pub received: u64,
}

impl Flood {
    /// What did not arrive.
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }
}

/// Sends from the client's end, and counts at the server's.
///
/// # Errors
/// If a socket fails.
pub fn flood(pair: &Pair, offer: &Offer, cpus: Cpus) -> Result<Flood> {
    /// Nothing is under way any more when nothing has come for so long.
    const QUIET: Duration = Duration::from_millis(50);
    set_socket_timeout(&pair.server, Timeout::Recv, Some(QUIET))
        .map_err(io::Error::from)
        .context("set up", "socket")?;
    let done = AtomicBool::new(false);
    let flood: lab::Result<Flood> = thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            pin(cpus.server)?;
            count(&pair.server, &done).context("receive", "datagrams")
        });
        let sender = scope.spawn(|| {
            let sent = pin(cpus.client)
                .and_then(|()| send_all(&pair.client, offer).context("send", "datagrams"));
            done.store(true, Ordering::Release);
            sent
        });
        let join = |thread: thread::ScopedJoinHandle<'_, lab::Result<u64>>| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        let (sent, received) = (join(sender), join(receiver));
        Ok(Flood {
            sent: sent?,
            received: received?,
        })
    });
    set_socket_timeout(&pair.server, Timeout::Recv, Some(LIMIT))
        .map_err(io::Error::from)
        .context("set up", "socket")?;
    Ok(flood?)
}

fn count(socket: &OwnedFd, done: &AtomicBool) -> rustix::io::Result<u64> {
    let mut buffer = [0; 2048];
    let mut received = 0;
    loop {
        match recv(socket, &mut buffer, RecvFlags::empty()) {
            Ok(_) => received += 1,
            Err(rustix::io::Errno::AGAIN) if done.load(Ordering::Acquire) => return Ok(received),
            Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(error),
        }
    }
}

fn send_all(socket: &OwnedFd, offer: &Offer) -> rustix::io::Result<u64> {
    /// Where a rate is kept, so many go together: waking up for each would cost more than they.
    const BURST: u64 = 8;
    let buffer = vec![0; offer.bytes];
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < offer.time {
        for _ in 0..BURST {
            send(socket, &buffer, SendFlags::NOSIGNAL)?;
        }
        sent += BURST;
        if let Some(rate) = offer.rate {
            let due = Duration::from_secs_f64(sent as f64 / f64::from(rate));
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
    Ok(sent)
}

fn serve(socket: &OwnedFd, count: usize, bytes: usize) -> rustix::io::Result<()> {
    let mut buffer = vec![0; bytes];
    (0..count).try_for_each(|_| {
        receive(socket, &mut buffer)?;
        send(socket, &buffer, SendFlags::NOSIGNAL).map(drop)
    })
}

fn ask(socket: &OwnedFd, count: usize, bytes: usize) -> rustix::io::Result<Vec<Duration>> {
    let mut buffer = vec![0; bytes];
    (0..count)
        .map(|_| {
            let start = Instant::now();
            send(socket, &buffer, SendFlags::NOSIGNAL)?;
            receive(socket, &mut buffer)?;
            Ok(start.elapsed())
        })
        .collect()
}

/// All that fits into the buffer: a stream may bring it in parts.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> rustix::io::Result<()> {
    let mut received = 0;
    while received < buffer.len() {
        let (_, length) = recv(socket, &mut buffer[received..], RecvFlags::empty())?;
        if length == 0 {
            // The other thread has failed, and says why.
            return Err(rustix::io::Errno::CONNRESET);
        }
        received += length;
    }
    Ok(())
}

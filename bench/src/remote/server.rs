//! `bench server`: answers to one client at a time, for any number of them one after the other.
//!
//! Whoever holds the control connection is the client. Data connections and datagrams from other addresses get no
//! answer, so that a forged source cannot make two servers echo to each other. When the control connection ends, in
//! whatever way, the agent gets its mode back.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use rustix::net::sockopt;

use super::{
    admission::{Connections, Place, Until},
    agent::{Agent, Restoring},
    cpu,
    protocol::{
        self, ANSWER, Answer, COUNT, Counts, IDLE_LIMIT, Node, PORT, Purpose, Request,
        SILENCE_LIMIT, VERSION,
    },
};

/// Threads that accept connections. One that waits for the first bytes of a connection must not keep others waiting.
const ACCEPTORS: usize = 4;
/// How long a connection may take to say what it is for, and a client to say hello.
const GREETING_LIMIT: Duration = Duration::from_secs(5);
/// Pause after a failure to accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes per read at most; no datagram is larger.
const BUFFER: usize = 128 << 10;
/// What the socket's buffer for datagrams is asked to hold, in bytes; the system grants less (`net.core.rmem_max`).
const DATAGRAM_BUFFER: usize = 4 << 20;
/// Where to listen, and whose mode to change.
#[derive(Debug, Args)]
pub struct Options {
    /// Address and port to listen on, TCP and UDP.
    #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], PORT)), value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// The --status-socket of this node's agent, whose fast path the client may switch [default: none]
    #[arg(long, value_name = "PATH")]
    agent_socket: Option<PathBuf>,
}

/// Serves until the process ends.
///
/// # Errors
/// If the port cannot be opened, or the agent does not answer.
pub fn run(options: &Options) -> Result<bool> {
    let agent = options.agent_socket.as_deref().map(Agent::new);
    if let Some(agent) = &agent {
        agent.mode()?;
    }
    let server = Arc::new(Server {
        agent,
        place: Place::default(),
        connections: Connections::default(),
        datagrams: AtomicU64::new(0),
    });
    let ending = Arc::clone(&server);
    super::on_signals(move || {
        if let Some(agent) = &ending.agent {
            agent.restore_and_end();
        }
    })?;
    let (listener, socket) = open(options.listen).with_context(|| {
        format!(
            "--listen = {}: cannot listen there: choose a free port and an address of this node or pod",
            options.listen
        )
    })?;
    println!("listening on {}", listener.local_addr()?);
    io::stdout().flush()?;
    thread::scope(|scope| {
        for _ in 0..ACCEPTORS {
            scope.spawn(|| server.accept(&listener));
        }
        server.datagrams(&socket);
    });
    Ok(true)
}

/// Opens the same port for both transports.
fn open(address: SocketAddr) -> io::Result<(TcpListener, UdpSocket)> {
    let listener = TcpListener::bind(address)?;
    let socket = UdpSocket::bind(listener.local_addr()?)?;
    sockopt::set_socket_recv_buffer_size(&socket, DATAGRAM_BUFFER)?;
    Ok((listener, socket))
}

struct Server {
    agent: Option<Agent>,
    /// Who holds the control connection.
    place: Place,
    /// Those with a thread of their own.
    connections: Connections,
    /// How many datagrams of floods have arrived.
    datagrams: AtomicU64,
}

impl Server {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            match listener.accept() {
                // A client that goes away is no matter of the server's.
                Ok((stream, from)) => drop(self.connection(stream, from.ip())),
                Err(_) => thread::sleep(ACCEPT_PAUSE),
            }
        }
    }

    fn connection(self: &Arc<Self>, mut stream: TcpStream, from: IpAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let deadline = Instant::now() + GREETING_LIMIT;
        stream.set_write_timeout(Some(IDLE_LIMIT))?;
        let mut first = [0; 2];
        let mut greeting = Until {
            stream: &stream,
            deadline,
        };
        greeting.read_exact(&mut first)?;
        if Purpose::of(first[0]) != Some(Purpose::Control) {
            stream.set_read_timeout(Some(IDLE_LIMIT))?;
        }
        let Some(purpose) = Purpose::of(first[0]) else {
            return Ok(());
        };
        if purpose != Purpose::Control && !self.place.serves(from) {
            return Ok(());
        }
        let server = Arc::clone(self);
        match purpose {
            // Without a thread of its own, which would be measured too.
            Purpose::One => {
                stream.write_all(&first[1..])?;
                // The client is to close first, as clients do.
                let _ = stream.read(&mut first)?;
            }
            // Its end is all that matters, and that is the same for all reasons.
            Purpose::Control => self.spawn(move || drop(server.control(stream, from, deadline)))?,
            Purpose::Echo => self.spawn(move || drop(echo(stream)))?,
            Purpose::Sink => self.spawn(move || drop(sink(stream)))?,
        }
        Ok(())
    }

    /// Gives a connection a thread, or closes it: if there are too many, or the system has none left.
    fn spawn(&self, connection: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let Some(taken) = self.connections.take() else {
            return Ok(());
        };
        let run = move || {
            let _taken = taken;
            connection();
        };
        thread::Builder::new()
            .name("connection".to_owned())
            .spawn(run)
            .map(drop)
    }

    fn control(
        &self,
        mut stream: TcpStream,
        from: IpAddr,
        deadline: Instant,
    ) -> Result<(), protocol::Error> {
        let mut greeting = Until {
            stream: &stream,
            deadline,
        };
        let Some(hello) = protocol::read::<Request>(&mut greeting)? else {
            return Ok(());
        };
        if hello != (Request::Hello { version: VERSION }) {
            let why = format!(
                "the server speaks version {VERSION}, the client asks for {hello:?}: run the same build on both nodes"
            );
            return protocol::write(&mut stream, &Answer::Refused(why));
        }
        let Some(_admitted) = self.place.admit(from) else {
            let why = "another client is being served: wait for its end".to_owned();
            return protocol::write(&mut stream, &Answer::Refused(why));
        };
        // Restored before the next client is admitted.
        let _restoring = self.agent.as_ref().map(Restoring);
        protocol::keep_alive(&stream)?;
        // A client that hangs must not keep the mode and the place for ever, though its machine is there.
        stream.set_read_timeout(Some(SILENCE_LIMIT))?;
        let answer = match self.agent.as_ref().map(Agent::mode).transpose() {
            Ok(mode) => Answer::Hello(Node::this(mode)),
            Err(error) => Answer::Refused(error.to_string()),
        };
        protocol::write(&mut stream, &answer)?;
        while let Some(request) = protocol::read(&mut stream)? {
            let answer = self.answer(request).unwrap_or_else(Answer::Refused);
            protocol::write(&mut stream, &answer)?;
        }
        Ok(())
    }

    fn answer(&self, request: Request) -> Result<Answer, String> {
        let say = |error: super::agent::Error| error.to_string();
        Ok(match request {
            Request::Hello { .. } => return Err("already served".to_owned()),
            Request::Mode(mode) => {
                let agent = self.agent.as_ref();
                let agent = agent.ok_or("the server was started without --agent-socket")?;
                agent.set(mode).map_err(say)?;
                Answer::Mode(mode)
            }
            Request::Counts => Answer::Counts(Counts {
                cpu_ns: cpu::busy().map_err(|error| error.to_string())?,
                datagrams: self.datagrams.load(Ordering::Relaxed),
            }),
            Request::FastPath => {
                let agent = self.agent.as_ref();
                Answer::FastPath(agent.map(Agent::fast_path).transpose().map_err(say)?)
            }
            Request::Restore => {
                let agent = self.agent.as_ref();
                let restored = agent.map(Agent::restore).transpose().map_err(say)?;
                Answer::Restored(restored.flatten())
            }
        })
    }

    fn datagrams(&self, socket: &UdpSocket) {
        let mut buffer = vec![0; BUFFER];
        loop {
            // What ICMP has said of an earlier answer is no reason to end.
            let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            if !self.place.serves(from.ip()) {
                continue;
            }
            match buffer[..length].first() {
                Some(&COUNT) => drop(self.datagrams.fetch_add(1, Ordering::Relaxed)),
                // One that cannot be answered is lost, and the client notices.
                Some(&ANSWER) => drop(socket.send_to(&buffer[..length], from)),
                _ => {}
            }
        }
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut bytes = 0_u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&bytes.to_be_bytes()),
            length => bytes += length as u64,
        }
    }
}

#[cfg(test)]
#[path = "tests/server.rs"]
mod tests;

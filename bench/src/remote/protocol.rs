//! What client and server say to each other: messages as JSON behind their length, four bytes in network order.
//!
//! The first request is [`Request::Hello`] with the version, and nothing else is understood before it: a server of
//! another version can then say so instead of misunderstanding.

use std::{
    fmt,
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use clap::ValueEnum;
use lab::status::Counters;
use rustix::net::sockopt;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::cpu;

/// The version of all that follows. It changes with every change that the other side would notice.
pub const VERSION: u32 = 1;
/// The port of both transports.
pub const PORT: u16 = 5210;
/// The longest message, in bytes: a bound on what a stranger can make us allocate.
const LONGEST: u32 = 64 << 10;
/// How long the server keeps a connection on which nothing comes.
pub const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// The longest measurement: nobody would wait for more. The control connection is silent meanwhile.
pub const LONGEST_MEASUREMENT: Duration = Duration::from_secs(600);
/// How long a client may be silent: the longest measurement, its last answers, and what comes before the next one.
pub const SILENCE_LIMIT: Duration = LONGEST_MEASUREMENT.saturating_add(Duration::from_secs(60));
/// A peer that is silent for so long is asked whether it is still there, so often, and then given up.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const KEEP_ALIVE_PROBES: u32 = 3;
/// How long what was sent may stay without acknowledgment, in milliseconds: nothing is probed meanwhile.
const UNACKNOWLEDGED_MS: u32 = 20_000;

/// Why a message could not be exchanged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection failed, or was closed.
    #[error("control connection: {0}")]
    Io(#[from] io::Error),
    /// The length is not that of a message.
    #[error(
        "control connection: a message of {0} bytes, more than {LONGEST}: is something else listening there?"
    )]
    Length(u32),
    /// It is no message.
    #[error("control connection: a message that is not understood: {0}")]
    Content(serde_json::Error),
}

/// A mode of an agent's fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The kernel carries everything.
    Off,
    /// BPF carries all that the topology allows.
    Subnet,
    /// BPF carries flows that the kernel has passed.
    Flow,
}

impl Mode {
    const ALL: [Self; 3] = [Self::Off, Self::Subnet, Self::Flow];

    /// What the agent calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Subnet => "subnet",
            Self::Flow => "flow",
        }
    }

    /// The mode that an agent has named.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What the client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// To be served; answered by [`Answer::Hello`].
    Hello {
        /// The client's [`VERSION`].
        version: u32,
    },
    /// Another mode of the server's agent; answered by [`Answer::Mode`].
    Mode(Mode),
    /// What the server has counted; answered by [`Answer::Counts`].
    Counts,
    /// What the server's agent has counted; answered by [`Answer::FastPath`].
    FastPath,
    /// The mode that the server's agent had before the first [`Request::Mode`]; answered by [`Answer::Restored`]. The
    /// end of the connection does the same, but nobody would hear that it failed.
    Restore,
}

/// What the server answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The client is served.
    Hello(Node),
    /// The agent has the mode.
    Mode(Mode),
    /// See [`Request::Counts`].
    Counts(Counts),
    /// See [`Request::FastPath`]; nothing without an agent's socket.
    FastPath(Option<FastPath>),
    /// The mode that the agent was given back; nothing if it was never changed.
    Restored(Option<Mode>),
    /// It cannot be done, and why.
    Refused(String),
}

/// One of the two nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Kernel release.
    pub kernel: String,
    /// Number of CPUs that are online.
    pub cpus: usize,
    /// The mode that its agent has, if its socket was given.
    pub agent: Option<Mode>,
}

impl Node {
    /// The node that this process runs on.
    pub fn this(agent: Option<Mode>) -> Self {
        Self {
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            // Not those that this process may use, which a container or a mask may limit.
            cpus: cpu::number().unwrap_or(0),
            agent,
        }
    }
}

/// What a server has counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// CPU time that the whole node has spent, in nanoseconds.
    pub cpu_ns: u64,
    /// Datagrams of floods that have arrived.
    pub datagrams: u64,
}

/// What an agent says of its fast path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FastPath {
    /// Packets by outcome.
    pub counters: Counters,
    /// Why BPF carries nothing, if it was asked to.
    pub reason: Option<String>,
}

/// What a TCP connection is for: its first byte. A second byte follows, which is the request where there is one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Messages.
    Control,
    /// Each byte is answered by itself.
    Echo,
    /// The second byte is answered, then the client closes.
    One,
    /// Bytes are counted until the client ends; then the count is answered, eight bytes in network order.
    Sink,
}

impl Purpose {
    const ALL: [Self; 4] = [Self::Control, Self::Echo, Self::One, Self::Sink];

    /// The two bytes that a connection begins with.
    pub fn bytes(self) -> [u8; 2] {
        let first = match self {
            Self::Control => b'c',
            Self::Echo => b'e',
            Self::One => b'o',
            Self::Sink => b's',
        };
        [first, 0]
    }

    /// What the first byte of a connection means.
    pub fn of(first: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|purpose| purpose.bytes()[0] == first)
    }
}

/// The first byte of a datagram that is to be answered with its own bytes.
pub const ANSWER: u8 = b'a';
/// The first byte of a datagram that is only counted.
pub const COUNT: u8 = b'n';

/// Makes a connection fail when the other machine is gone, whether or not anything is under way to it.
///
/// # Errors
/// If the system does not take the options.
pub fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEP_ALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE)?;
    sockopt::set_tcp_keepcnt(stream, KEEP_ALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS)?;
    Ok(())
}

/// Writes a message.
///
/// # Errors
/// Those of the connection.
pub fn write(to: &mut impl Write, message: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_vec(message).map_err(Error::Content)?;
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    if length > LONGEST {
        return Err(Error::Length(length));
    }
    // In one piece: two segments would wait for an acknowledgment.
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(text);
    Ok(to.write_all(&bytes)?)
}

/// Reads a message; nothing if the other side has closed before it.
///
/// # Errors
/// Those of the connection, and if it is no message.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> Result<Option<T>, Error> {
    let mut length = [0; 4];
    match from.read(&mut length[..1])? {
        0 => return Ok(None),
        _ => from.read_exact(&mut length[1..])?,
    }
    let length = u32::from_be_bytes(length);
    if length > LONGEST {
        return Err(Error::Length(length));
    }
    let mut text = vec![0; length as usize];
    from.read_exact(&mut text)?;
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(Error::Content)
}

#[cfg(test)]
#[path = "tests/protocol.rs"]
mod tests;

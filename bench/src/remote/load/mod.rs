//! The client's traffic: one module per kind. Each has a little of it to see the path by, and a measurement.

mod flood;
mod stream;
mod trips;

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{
    control::Control,
    cpu,
    protocol::{Counts, Purpose},
};

/// How long anything may take to be answered. In a stream and in floods nothing takes longer on a path that works.
const LIMIT: Duration = Duration::from_secs(5);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// One byte each way by one TCP connection.
    TcpRr,
    /// One datagram each way by one pair of ports.
    UdpRr,
    /// A connection for one byte each way.
    Crr,
    /// As much as one TCP connection carries.
    Stream,
    /// Datagrams at a fixed rate.
    Flood,
}

impl Kind {
    /// All, in the order of the report.
    pub const ALL: [Self; 5] = [
        Self::TcpRr,
        Self::UdpRr,
        Self::Crr,
        Self::Stream,
        Self::Flood,
    ];

    /// What the report calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::TcpRr => "TCP round trip",
            Self::UdpRr => "UDP round trip",
            Self::Crr => "TCP connect, request, close",
            Self::Stream => "TCP stream",
            Self::Flood => "UDP flood",
        }
    }

    /// Opens its sockets.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub fn open(self, target: Target) -> Result<Box<dyn Load>> {
        Ok(match self {
            Self::TcpRr => Box::new(trips::Tcp::open(target)?),
            Self::UdpRr => Box::new(trips::Udp::open(target)?),
            Self::Crr => Box::new(trips::Connections::new(target)),
            Self::Stream => Box::new(stream::Stream::open(target)?),
            Self::Flood => Box::new(flood::Flood::open(target)?),
        })
    }
}

/// Where to, and how much.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The server.
    pub address: SocketAddr,
    /// Datagrams per second of a flood.
    pub rate: u32,
    /// Bytes of each.
    pub size: usize,
}

impl Target {
    fn connect(&self, purpose: Purpose) -> Result<TcpStream> {
        self.try_connect(purpose)
            .with_context(|| format!("cannot connect to {}", self.address))
    }

    fn try_connect(&self, purpose: Purpose) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&self.address, LIMIT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        stream.write_all(&purpose.bytes())?;
        Ok(stream)
    }

    fn socket(&self) -> Result<UdpSocket> {
        let open = || -> io::Result<UdpSocket> {
            let any: SocketAddr = match self.address {
                SocketAddr::V4(_) => ([0; 4], 0).into(),
                SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
            };
            let socket = UdpSocket::bind(any)?;
            socket.connect(self.address)?;
            Ok(socket)
        };
        open().with_context(|| format!("cannot open a socket to {}", self.address))
    }
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// Time on the clock.
    #[serde(rename = "µs")]
    Microseconds,
    /// Things per second.
    #[serde(rename = "1/s")]
    PerSecond,
    /// Payload, 10⁹ bits per second.
    #[serde(rename = "Gbit/s")]
    GigabitsPerSecond,
    /// CPU time of a whole node for each 10⁹ bytes of payload.
    #[serde(rename = "ns/GB")]
    NanosecondsPerGigabyte,
    /// CPU time of a whole node for each packet.
    #[serde(rename = "ns/packet")]
    NanosecondsPerPacket,
    /// Hundredths: compared by difference, since there may be none.
    #[serde(rename = "%")]
    Percent,
}

impl Unit {
    /// What the report calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Microseconds => "µs",
            Self::PerSecond => "1/s",
            Self::GigabitsPerSecond => "Gbit/s",
            Self::NanosecondsPerGigabyte => "ns/GB",
            Self::NanosecondsPerPacket => "ns/packet",
            Self::Percent => "%",
        }
    }
}

/// One number of one measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// What it is of, the same in each round.
    pub name: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// How much.
    pub value: f64,
}

/// How many packets hooks must have counted at the least, if the fast path carried them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Least {
    /// At the client's node, outwards.
    pub sent: u64,
    /// At the server's node, inwards.
    pub received: u64,
    /// The way back, at both.
    pub back: u64,
}

impl Least {
    /// Nine of ten: a packet that asks the kernel again, or waits for it, may take its path.
    fn most_of(sent: u64, received: u64, back: u64) -> Self {
        let most = |number: u64| number - number / 10;
        Self {
            sent: most(sent),
            received: most(received),
            back: most(back),
        }
    }
}

/// What a measurement yields.
#[derive(Clone, Debug)]
pub struct Done {
    /// The figures, always the same ones in the same order.
    pub figures: Vec<Figure>,
    /// What the hooks must have counted meanwhile.
    pub least: Least,
}

/// A kind of traffic with its sockets.
pub trait Load {
    /// A little of the traffic, by the same sockets where it is not in their nature to be new.
    ///
    /// # Errors
    /// If an answer is missing.
    fn probe(&mut self) -> Result<Least>;
    /// Measures for so long.
    ///
    /// # Errors
    /// If anything makes the figures doubtful.
    fn run(&mut self, duration: Duration, control: &mut Control) -> Result<Done>;
}

/// What both nodes have spent and the server has counted.
#[derive(Clone, Copy, Debug)]
struct Spent {
    /// CPU time of the client's node, in nanoseconds.
    client_ns: u64,
    server: Counts,
}

impl Spent {
    fn read(control: &mut Control) -> Result<Self> {
        Ok(Self {
            client_ns: cpu::busy()?,
            server: control.counts()?,
        })
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            client_ns: self.client_ns.saturating_sub(before.client_ns),
            server: Counts {
                cpu_ns: self.server.cpu_ns.saturating_sub(before.server.cpu_ns),
                datagrams: self
                    .server
                    .datagrams
                    .saturating_sub(before.server.datagrams),
            },
        }
    }

    /// What each of `units` things has cost.
    fn each(&self, units: f64, unit: Unit, names: [&'static str; 2]) -> [Figure; 2] {
        let spent = [self.client_ns, self.server.cpu_ns];
        [0, 1].map(|side| Figure {
            name: names[side],
            unit,
            value: spent[side] as f64 / units,
        })
    }
}

//! Round trips: one request at a time, by one connection, one pair of ports, or a new connection each.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::traffic::rtt::RoundTrips;

use super::{Done, Figure, Least, Load, Target, Unit};
use crate::remote::{
    control::Control,
    protocol::{ANSWER, Purpose},
};

/// Requests of a probe.
const PROBE: u64 = 50;
/// How long an answer by UDP may take before it is lost.
const LOST_AFTER: Duration = Duration::from_millis(500);
/// So many lost in a row are no loss but the absence of a path.
const LOST_IN_A_ROW: u32 = 10;
/// Connections of a measurement at most: each keeps a port of the client for a minute, and there are 28 000.
const MOST_CONNECTIONS: usize = 4_000;
/// What an answer holds at least: its kind and its number.
pub(super) const HEADER: usize = 9;

/// The four percentiles that are shown of one transport.
type Names = [&'static str; 4];

const PERCENTILES: [f64; 4] = [50.0, 90.0, 99.0, 99.9];
const TCP: Names = [
    "TCP round trip, p50",
    "TCP round trip, p90",
    "TCP round trip, p99",
    "TCP round trip, p99.9",
];
const UDP: Names = [
    "UDP round trip, p50",
    "UDP round trip, p90",
    "UDP round trip, p99",
    "UDP round trip, p99.9",
];

/// One connection.
pub(super) struct Tcp(TcpStream);

impl Tcp {
    pub(super) fn open(target: Target) -> Result<Self> {
        target.connect(Purpose::Echo).map(Self)
    }

    fn exchange(&mut self) -> Result<()> {
        let mut byte = [0];
        let mut exchange = || -> io::Result<()> {
            self.0.write_all(&byte)?;
            self.0.read_exact(&mut byte)
        };
        exchange().context("a request by TCP is not answered")
    }
}

impl Load for Tcp {
    fn probe(&mut self) -> Result<Least> {
        (0..PROBE).try_for_each(|_| self.exchange())?;
        Ok(Least::most_of(PROBE, PROBE, PROBE))
    }

    fn run(&mut self, duration: Duration, _: &mut Control) -> Result<Done> {
        let start = Instant::now();
        let mut times = Vec::new();
        while start.elapsed() < duration {
            let asked = Instant::now();
            self.exchange()?;
            times.push(asked.elapsed());
        }
        done(times, start.elapsed(), TCP, "TCP round trips")
    }
}

/// One pair of ports.
pub(super) struct Udp {
    socket: UdpSocket,
    number: u64,
}

impl Udp {
    pub(super) fn open(target: Target) -> Result<Self> {
        let socket = target.socket()?;
        socket.set_read_timeout(Some(LOST_AFTER))?;
        Ok(Self { socket, number: 0 })
    }

    /// The socket itself, for what is not answered.
    pub(super) fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Sends a numbered request of so many bytes; whether its answer has come.
    fn exchange(&mut self, request: &mut [u8]) -> Result<bool> {
        self.number += 1;
        request[0] = ANSWER;
        request[1..HEADER].copy_from_slice(&self.number.to_be_bytes());
        let exchange = || -> io::Result<bool> {
            self.socket.send(request)?;
            let mut answer = [0; HEADER];
            loop {
                match self.socket.recv(&mut answer) {
                    Ok(_) if answer == request[..HEADER] => return Ok(true),
                    // That of an earlier request, which was given up.
                    Ok(_) => {}
                    // What the kernel calls a receive timeout.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        };
        exchange().context("a request by UDP fails")
    }

    /// Requests until `over`; the times of those that were answered, and the number of all.
    pub(super) fn exchanges(
        &mut self,
        size: usize,
        mut over: impl FnMut(u64) -> bool,
    ) -> Result<(Vec<Duration>, u64)> {
        let mut request = vec![0; size.max(HEADER)];
        let (mut times, mut sent, mut lost) = (Vec::new(), 0, 0);
        while !over(sent) {
            let asked = Instant::now();
            sent += 1;
            if self.exchange(&mut request)? {
                times.push(asked.elapsed());
                lost = 0;
            } else {
                lost += 1;
                ensure!(
                    lost < LOST_IN_A_ROW,
                    "{lost} requests by UDP in a row are not answered: does the server's port pass by UDP too?"
                );
            }
        }
        Ok((times, sent))
    }

    /// A little traffic with answers; most of it is fast in both directions, if the path is.
    pub(super) fn probe_of(&mut self, size: usize) -> Result<Least> {
        self.exchanges(size, |sent| sent == PROBE)?;
        Ok(Least::most_of(PROBE, PROBE, PROBE))
    }
}

impl Load for Udp {
    fn probe(&mut self) -> Result<Least> {
        self.probe_of(HEADER)
    }

    fn run(&mut self, duration: Duration, _: &mut Control) -> Result<Done> {
        let start = Instant::now();
        let (times, sent) = self.exchanges(HEADER, |_| start.elapsed() >= duration)?;
        let answered = times.len() as f64;
        let mut done = done(times, start.elapsed(), UDP, "UDP round trips")?;
        done.figures.push(Figure {
            name: "UDP round trips, lost",
            unit: Unit::Percent,
            value: 100.0 * (1.0 - answered / sent as f64),
        });
        Ok(done)
    }
}

/// A new connection for each request.
pub(super) struct Connections(Target);

impl Connections {
    pub(super) fn new(target: Target) -> Self {
        Self(target)
    }

    fn exchange(&self) -> Result<()> {
        let exchange = || -> io::Result<()> {
            // What a connection begins with is the request.
            let mut stream = self.0.try_connect(Purpose::One)?;
            stream.read_exact(&mut [0])?;
            stream.shutdown(Shutdown::Both)
        };
        exchange().context("a connection for one request fails")
    }
}

impl Load for Connections {
    fn probe(&mut self) -> Result<Least> {
        (0..PROBE).try_for_each(|_| self.exchange())?;
        Ok(FEW_OF_CONNECTIONS)
    }

    fn run(&mut self, duration: Duration, _: &mut Control) -> Result<Done> {
        let start = Instant::now();
        let mut times = Vec::new();
        while start.elapsed() < duration && times.len() < MOST_CONNECTIONS {
            let asked = Instant::now();
            self.exchange()?;
            times.push(asked.elapsed());
        }
        answered(&times)?;
        let rate = times.len() as f64 / start.elapsed().as_secs_f64();
        let figure = |name, unit, value| Figure { name, unit, value };
        let median = microseconds(&RoundTrips(times), 50.0);
        Ok(Done {
            figures: vec![
                figure(
                    "TCP connect, request, close, p50",
                    Unit::Microseconds,
                    median,
                ),
                figure("TCP connections", Unit::PerSecond, rate),
            ],
            least: FEW_OF_CONNECTIONS,
        })
    }
}

/// Most of such a connection is its handshake and its end, which the kernel carries in mode `flow`.
const FEW_OF_CONNECTIONS: Least = Least {
    sent: 1,
    received: 1,
    back: 1,
};

/// Without an answer there is no time: a percentile of nothing would be 0, the best of all.
fn answered(times: &[Duration]) -> Result<()> {
    ensure!(!times.is_empty(), "no request was answered");
    Ok(())
}

fn done(times: Vec<Duration>, took: Duration, names: Names, rate: &'static str) -> Result<Done> {
    answered(&times)?;
    let number = times.len() as u64;
    let mut times = RoundTrips(times);
    // Once, since each percentile sorts.
    times.0.sort_unstable();
    let mut figures: Vec<_> = names
        .into_iter()
        .zip(PERCENTILES)
        .map(|(name, percent)| Figure {
            name,
            unit: Unit::Microseconds,
            value: microseconds(&times, percent),
        })
        .collect();
    figures.push(Figure {
        name: rate,
        unit: Unit::PerSecond,
        value: number as f64 / took.as_secs_f64(),
    });
    Ok(Done {
        figures,
        least: Least::most_of(number, number, number),
    })
}

fn microseconds(times: &RoundTrips, percent: f64) -> f64 {
    times.percentile(percent).as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_percentiles_and_a_rate() {
        let times = (1..=1000).rev().map(Duration::from_micros).collect();
        let done = done(times, Duration::from_secs(2), TCP, "rate").unwrap();
        let values: Vec<_> = done
            .figures
            .iter()
            .map(|figure| figure.value.round())
            .collect();
        assert_eq!(values, [500.0, 900.0, 990.0, 999.0, 500.0]);
        assert_eq!((done.least.sent, done.least.back), (900, 900));
    }

    #[test]
    fn no_answer_is_an_error() {
        assert!(done(Vec::new(), Duration::from_secs(2), UDP, "rate").is_err());
    }
}

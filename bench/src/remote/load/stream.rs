//! One TCP connection, as fast as it goes, and what a byte costs both nodes.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{Done, Figure, Least, Load, Spent, Target, Unit};
use crate::remote::{control::Control, protocol::Purpose};

/// Bytes per write.
const CHUNK: usize = 128 << 10;
/// Chunks of a probe.
const PROBE: u64 = 32;
/// A packet that a hook sees holds so many bytes at most.
const LARGEST_PACKET: u64 = 64 << 10;
/// In 10⁹ bytes.
const GIGABYTE: f64 = 1e9;

/// See the module.
pub(super) struct Stream {
    stream: TcpStream,
    sent: u64,
}

impl Stream {
    pub(super) fn open(target: Target) -> Result<Self> {
        Ok(Self {
            stream: target.connect(Purpose::Sink)?,
            sent: 0,
        })
    }

    /// Sends chunks until `over`; how many bytes.
    fn send(&mut self, mut over: impl FnMut(u64) -> bool) -> Result<u64> {
        let chunk = vec![0; CHUNK];
        let mut bytes = 0;
        while !over(bytes) {
            self.stream
                .write_all(&chunk)
                .context("the stream is not taken")?;
            bytes += CHUNK as u64;
        }
        self.sent += bytes;
        Ok(bytes)
    }
}

fn least(bytes: u64) -> Least {
    // More than half of it goes there at the least. Acknowledgments come back in a number that nobody knows.
    let packets = bytes / LARGEST_PACKET / 2;
    Least {
        sent: packets,
        received: packets,
        back: 1,
    }
}

impl Load for Stream {
    fn probe(&mut self) -> Result<Least> {
        self.send(|bytes| bytes >= PROBE * CHUNK as u64)
            // The last bytes are still under way.
            .map(|bytes| least(bytes / 2))
    }

    fn run(&mut self, duration: Duration, control: &mut Control) -> Result<Done> {
        let before = Spent::read(control)?;
        let start = Instant::now();
        let bytes = self.send(|_| start.elapsed() >= duration)?;
        let finish = |stream: &mut TcpStream| -> io::Result<u64> {
            stream.shutdown(Shutdown::Write)?;
            let mut count = [0; 8];
            stream.read_exact(&mut count)?;
            Ok(u64::from_be_bytes(count))
        };
        let received = finish(&mut self.stream).context("the stream's end is not answered")?;
        let took = start.elapsed();
        let spent = Spent::read(control)?.since(&before);
        ensure!(
            received == self.sent,
            "of {} bytes {received} have arrived",
            self.sent
        );
        let mut figures = vec![Figure {
            name: "TCP stream",
            unit: Unit::GigabitsPerSecond,
            value: bytes as f64 * 8.0 / 1e9 / took.as_secs_f64(),
        }];
        figures.extend(spent.each(
            bytes as f64 / GIGABYTE,
            Unit::NanosecondsPerGigabyte,
            ["TCP stream, client's CPU", "TCP stream, server's CPU"],
        ));
        Ok(Done {
            figures,
            least: least(bytes),
        })
    }
}

//! Datagrams at a fixed rate that nobody answers: how many arrive, and what one costs both nodes.
//!
//! The same pair of ports has answered the probes before: a flow that nobody has ever answered is not one that `flow`
//! remembers.

use std::{
    io::ErrorKind,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{Done, Figure, Least, Load, Spent, Target, Unit, trips::Udp};
use crate::remote::{control::Control, protocol::COUNT};

/// Datagrams are sent in bursts, one for each such time.
const TICK: Duration = Duration::from_millis(1);
/// A sender that is late by more does not catch up: the burst would be lost in the first queue.
const LATEST: Duration = Duration::from_millis(10);
/// How long the last datagrams may be under way.
const UNDER_WAY: Duration = Duration::from_millis(500);
/// Pause between two questions whether they have arrived.
const PAUSE: Duration = Duration::from_millis(20);

/// See the module.
pub(super) struct Flood {
    udp: Udp,
    target: Target,
}

impl Flood {
    pub(super) fn open(target: Target) -> Result<Self> {
        Ok(Self {
            udp: Udp::open(target)?,
            target,
        })
    }

    /// Sends for so long; how many, in what time.
    fn send(&self, duration: Duration) -> Result<(u64, Duration)> {
        let mut datagram = vec![0; self.target.size];
        datagram[0] = COUNT;
        let mut pace = Pace::new(self.target.rate);
        let start = Instant::now();
        loop {
            let elapsed = start.elapsed();
            if elapsed >= duration {
                return Ok((pace.sent, elapsed));
            }
            for _ in 0..pace.due(elapsed) {
                match self.udp.socket().send(&datagram) {
                    Ok(_) => {}
                    // The device's queue is full: lost at the first place where that can happen.
                    Err(error)
                        if error.raw_os_error()
                            == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {}
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error).context("a datagram is not taken"),
                }
            }
            sleep(TICK.saturating_sub(start.elapsed() - elapsed));
        }
    }
}

impl Load for Flood {
    fn probe(&mut self) -> Result<Least> {
        self.udp.probe_of(self.target.size)
    }

    fn run(&mut self, duration: Duration, control: &mut Control) -> Result<Done> {
        let before = Spent::read(control)?;
        let (sent, took) = self.send(duration)?;
        let end = Instant::now();
        let mut spent = Spent::read(control)?.since(&before);
        while spent.server.datagrams < sent && end.elapsed() < UNDER_WAY {
            sleep(PAUSE);
            spent = Spent::read(control)?.since(&before);
        }
        let received = spent.server.datagrams;
        ensure!(
            received > 0,
            "of {sent} datagrams none has arrived: does the server's port pass by UDP too?"
        );
        ensure!(
            received <= sent,
            "of {sent} datagrams {received} have arrived"
        );
        let figure = |name, unit, value| Figure { name, unit, value };
        let rate = |number: u64| number as f64 / took.as_secs_f64();
        let lost = 100.0 * (sent - received) as f64 / sent as f64;
        let mut figures = vec![
            figure("UDP flood, sent", Unit::PerSecond, rate(sent)),
            figure("UDP flood, received", Unit::PerSecond, rate(received)),
            figure("UDP flood, lost", Unit::Percent, lost),
        ];
        let [client, _] = spent.each(sent as f64, Unit::NanosecondsPerPacket, NAMES);
        let [_, server] = spent.each(received as f64, Unit::NanosecondsPerPacket, NAMES);
        figures.extend([client, server]);
        Ok(Done {
            figures,
            least: Least::most_of(sent, received, 0),
        })
    }
}

const NAMES: [&str; 2] = ["UDP flood, client's CPU", "UDP flood, server's CPU"];

/// How many datagrams are due.
struct Pace {
    rate: f64,
    sent: u64,
    /// Time that was given up.
    skipped: Duration,
}

impl Pace {
    fn new(rate: u32) -> Self {
        Self {
            rate: rate.into(),
            sent: 0,
            skipped: Duration::ZERO,
        }
    }

    /// Those due after so long that have not been sent; they are taken as sent.
    fn due(&mut self, elapsed: Duration) -> u64 {
        let reached = Duration::from_secs_f64(self.sent as f64 / self.rate);
        let late = elapsed.saturating_sub(self.skipped + reached);
        self.skipped += late.saturating_sub(LATEST);
        let all = (elapsed.saturating_sub(self.skipped).as_secs_f64() * self.rate) as u64;
        let due = all.saturating_sub(self.sent);
        self.sent += due;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_and_a_long_delay_is_not_caught_up() {
        let mut pace = Pace::new(10_000);
        let after = Duration::from_millis;
        assert_eq!(pace.due(after(1)), 10);
        assert_eq!(pace.due(after(1)), 0);
        assert_eq!(pace.due(after(4)), 30, "a short one is");
        assert_eq!(pace.due(after(1004)), 100, "ten milliseconds of a second");
        assert_eq!(pace.due(after(1005)), 10);
        assert_eq!(pace.sent, 150);
    }
}

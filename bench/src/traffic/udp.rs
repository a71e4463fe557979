//! A one-way UDP flow of numbered packets: finds out how many were lost, repeated, overtaken or altered.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    error::{Error, IoContext, Result},
    traffic::{Host, any},
};

/// Bytes before the pattern: the sequence number, big-endian.
const HEADER: usize = 8;
/// How long the receiver waits for stragglers after the sender has ended.
const QUIET: Duration = Duration::from_millis(500);
/// The longest pause between two looks at the schedule and at the stop flag.
const TICK: Duration = Duration::from_millis(20);
/// Receive buffer in bytes. Large, so that a busy machine does not look like a lossy network.
const BUFFER: usize = 16 << 20;
/// Largest UDP payload over IPv4.
const MAX_SIZE: usize = 65_507;

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct UdpPlan {
    /// How many packets; [`UdpFlow::stop`] ends the flow earlier.
    pub packets: u64,
    /// Packets per second.
    pub rate: u32,
    /// UDP payload in bytes, at least 8.
    pub size: usize,
}

/// What became of the packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UdpReport {
    /// Packets that the socket took.
    pub sent: u64,
    /// Packets that the sender's kernel refused, for want of a route and the like. Not counted as sent.
    pub refused: u64,
    /// Different packets that arrived.
    pub received: u64,
    /// Packets that never arrived.
    pub lost: u64,
    /// Arrivals beyond the first of the same packet.
    pub duplicated: u64,
    /// Arrivals after a packet that was sent later.
    pub reordered: u64,
    /// Arrivals whose length or content was not what was sent.
    pub corrupted: u64,
    /// The source address that the receiver saw last.
    pub source: Option<SocketAddr>,
    /// The longest time between two arrivals.
    pub longest_gap: Duration,
}

/// A running flow.
#[derive(Debug)]
pub struct UdpFlow {
    stop: Arc<AtomicBool>,
    arrived: Arc<AtomicU64>,
    sender: JoinHandle<Result<(u64, u64)>>,
    receiver: JoinHandle<Result<UdpReport>>,
}

/// Sends all packets of the plan and waits for the verdict.
///
/// # Errors
/// If a socket fails.
pub fn run(from: &dyn Host, to: &dyn Host, plan: UdpPlan) -> Result<UdpReport> {
    UdpFlow::start(from, to, plan)?.finish()
}

impl UdpFlow {
    /// Starts a flow to a free port of `to`.
    ///
    /// # Errors
    /// If a socket cannot be opened, or the plan's size is impossible.
    pub fn start(from: &dyn Host, to: &dyn Host, plan: UdpPlan) -> Result<Self> {
        if !(HEADER..=MAX_SIZE).contains(&plan.size) || plan.rate == 0 {
            return Err(Error::Unsupported(format!("UDP flow with {plan:?}")));
        }
        let sink = bind(to)?;
        let target = SocketAddr::from((
            to.ip(),
            sink.local_addr().context("query", "socket")?.port(),
        ));
        let source = bind(from)?;
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicBool::new(false));
        let arrived = Arc::new(AtomicU64::new(0));
        let sender = {
            let (stop, done) = (stop.clone(), done.clone());
            thread::spawn(move || {
                let outcome = send(&source, target, plan, &stop);
                done.store(true, Ordering::Release);
                outcome
            })
        };
        let receiver = {
            let arrived = arrived.clone();
            thread::spawn(move || receive(&sink, plan, &done, &arrived))
        };
        Ok(Self {
            stop,
            arrived,
            sender,
            receiver,
        })
    }

    /// Arrivals so far.
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    /// Ends the flow now and returns the verdict.
    ///
    /// # Errors
    /// If a socket failed.
    pub fn stop(self) -> Result<UdpReport> {
        self.stop.store(true, Ordering::Relaxed);
        self.finish()
    }

    /// Waits until the plan is fulfilled and returns the verdict.
    ///
    /// # Errors
    /// If a socket failed.
    pub fn finish(self) -> Result<UdpReport> {
        let join = |panic| std::panic::resume_unwind(panic);
        let (sent, refused) = self.sender.join().unwrap_or_else(join)?;
        let report = self
            .receiver
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(UdpReport {
            sent,
            refused,
            lost: sent - report.received,
            ..report
        })
    }
}

fn bind(host: &dyn Host) -> Result<UdpSocket> {
    let name = host.netns().name();
    let socket = host
        .netns()
        .run(|| UdpSocket::bind((any(host.ip()), 0)))?
        .context("open UDP socket in", name)?;
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)
        .context("size socket in", name)?;
    socket
        .set_read_timeout(Some(TICK))
        .context("set up socket in", name)?;
    Ok(socket)
}

/// Sends by a fixed schedule: what a pause has delayed is caught up with. Returns packets taken and refused.
fn send(
    socket: &UdpSocket,
    target: SocketAddr,
    plan: UdpPlan,
    stop: &AtomicBool,
) -> Result<(u64, u64)> {
    let mut packet = pattern(plan.size);
    let interval = Duration::from_secs(1) / plan.rate;
    let start = Instant::now();
    let (mut sent, mut refused) = (0, 0);
    for number in 0..plan.packets {
        let due = interval.saturating_mul(u32::try_from(number).unwrap_or(u32::MAX));
        while let Some(early) = due
            .checked_sub(start.elapsed())
            .filter(|early| !early.is_zero())
        {
            if stop.load(Ordering::Relaxed) {
                return Ok((sent, refused));
            }
            thread::sleep(early.min(TICK));
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
        // A refused number is used again: the receiver judges gaps.
        packet[..HEADER].copy_from_slice(&sent.to_be_bytes());
        match socket.send_to(&packet, target) {
            Ok(_) => sent += 1,
            Err(error) if is_passing(error.kind()) => refused += 1,
            Err(error) => return Err(error).context("send to", target),
        }
    }
    Ok((sent, refused))
}

/// Errors that tell of the network's present state, not of a wrong call.
fn is_passing(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::NetworkUnreachable
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::PermissionDenied
    )
}

fn receive(
    socket: &UdpSocket,
    plan: UdpPlan,
    done: &AtomicBool,
    arrived: &AtomicU64,
) -> Result<UdpReport> {
    let expected = pattern(plan.size);
    let mut buffer = vec![0; MAX_SIZE];
    let mut report = UdpReport::default();
    let mut seen = Seen::default();
    let mut last = None::<Instant>;
    let mut quiet_since = None::<Instant>;
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, source)) => {
                quiet_since = None;
                let now = Instant::now();
                report.longest_gap = report
                    .longest_gap
                    .max(last.map_or(Duration::ZERO, |last| now - last));
                last = Some(now);
                report.source = Some(source);
                arrived.fetch_add(1, Ordering::Relaxed);
                let packet = &buffer[..length];
                if length != plan.size || packet[HEADER..] != expected[HEADER..] {
                    report.corrupted += 1;
                    continue;
                }
                let number = u64::from_be_bytes(packet[..HEADER].try_into().expect("eight bytes"));
                seen.arrival(number, &mut report);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let quiet = *quiet_since.get_or_insert_with(Instant::now);
                if done.load(Ordering::Acquire) && quiet.elapsed() > QUIET {
                    return Ok(report);
                }
            }
            Err(error) => return Err(error).context("receive from", "UDP socket"),
        }
    }
}

/// Which numbers have arrived.
#[derive(Default)]
struct Seen {
    words: Vec<u64>,
    highest: Option<u64>,
}

impl Seen {
    fn arrival(&mut self, number: u64, report: &mut UdpReport) {
        let word = usize::try_from(number / 64).expect("numbers of one flow fit into memory");
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        let bit = 1 << (number % 64);
        if self.words[word] & bit != 0 {
            report.duplicated += 1;
            return;
        }
        self.words[word] |= bit;
        report.received += 1;
        if self.highest.is_some_and(|highest| number < highest) {
            report.reordered += 1;
        }
        self.highest = self.highest.max(Some(number));
    }
}

/// A payload whose bytes depend on their position, with room for the header.
fn pattern(size: usize) -> Vec<u8> {
    /// Prime, so that a shift by any power of two shows.
    const PERIOD: usize = 251;
    (0..size)
        .map(|position| u8::try_from(position % PERIOD).expect("the period is less than 256"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_repeats_and_overtaking_are_told_apart() {
        let mut report = UdpReport::default();
        let mut seen = Seen::default();
        for number in [0, 1, 3, 2, 2, 70, 5] {
            seen.arrival(number, &mut report);
        }
        assert_eq!(
            (report.received, report.duplicated, report.reordered),
            (6, 1, 2)
        );
    }

    #[test]
    fn patterns_show_shifts() {
        let pattern = pattern(600);
        assert_ne!(pattern[8..300], pattern[16..308]);
    }
}

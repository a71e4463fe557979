//! A one-way TCP stream with known content: finds altered bytes, resets, stalls and retransmissions.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    error::{IoContext, Result},
    traffic::{Host, any},
};

/// How long connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A stream that moves no byte for so long is dead.
const STALL_LIMIT: Duration = Duration::from_secs(20);
/// How often a paced sender and a waiting receiver look at the clock.
const TICK: Duration = Duration::from_millis(10);
/// Bytes per write and read.
const CHUNK: usize = 64 << 10;
/// The content repeats after so many bytes: prime, so that no segment or page size divides it.
const PERIOD: usize = 65_521;

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct TcpPlan {
    /// How many bytes; [`TcpFlow::stop`] ends the stream earlier.
    pub bytes: u64,
    /// Bytes per second at most; none for as fast as possible.
    pub rate: Option<u64>,
}

/// What became of the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcpReport {
    /// Bytes that the sender's socket took.
    pub sent: u64,
    /// Bytes that arrived with the right content.
    pub received: u64,
    /// Position of the first byte that was wrong.
    pub corrupted_at: Option<u64>,
    /// Segments that the sender sent again (`tcpi_total_retrans`).
    pub retransmits: u32,
    /// Why the stream ended before its time: a reset, a stall.
    pub failure: Option<String>,
    /// From the connection to the last byte.
    pub duration: Duration,
    /// The longest time between two arrivals.
    pub longest_gap: Duration,
}

impl TcpReport {
    /// Whether every byte arrived as sent.
    pub fn is_intact(&self) -> bool {
        self.failure.is_none() && self.corrupted_at.is_none() && self.received == self.sent
    }

    /// Bits per second.
    pub fn rate(&self) -> f64 {
        if self.duration.is_zero() {
            0.0
        } else {
            self.received as f64 * 8.0 / self.duration.as_secs_f64()
        }
    }
}

/// A running stream.
#[derive(Debug)]
pub struct TcpFlow {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    source: TcpStream,
    sender: JoinHandle<Sent>,
    receiver: JoinHandle<TcpReport>,
}

#[derive(Debug)]
struct Sent {
    bytes: u64,
    retransmits: u32,
    failure: Option<String>,
}

/// Sends all bytes of the plan and waits for the verdict.
///
/// # Errors
/// If the connection cannot be made. What happens to it later is in the report.
pub fn run(from: &dyn Host, to: &dyn Host, plan: TcpPlan) -> Result<TcpReport> {
    Ok(TcpFlow::start(from, to, plan)?.finish())
}

impl TcpFlow {
    /// Connects to a free port of `to` and starts to send.
    ///
    /// # Errors
    /// If the connection cannot be made.
    pub fn start(from: &dyn Host, to: &dyn Host, plan: TcpPlan) -> Result<Self> {
        let listener = to
            .netns()
            .run(|| TcpListener::bind((any(to.ip()), 0)))?
            .context("listen in", to.netns().name())?;
        let port = listener.local_addr().context("query", "socket")?.port();
        let target = SocketAddr::from((to.ip(), port));
        let source = from
            .netns()
            .run(|| TcpStream::connect_timeout(&target, CONNECT_LIMIT))?
            .context("connect to", target)?;
        // The handshake is over, so the connection is in the queue.
        let (sink, _) = listener.accept().context("accept in", to.netns().name())?;
        source
            .set_write_timeout(Some(STALL_LIMIT))
            .context("set up", "socket")?;
        sink.set_read_timeout(Some(STALL_LIMIT))
            .context("set up", "socket")?;

        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let sender = {
            let stop = stop.clone();
            let source = source.try_clone().context("duplicate", "socket")?;
            let other_end = sink.try_clone().context("duplicate", "socket")?;
            thread::spawn(move || {
                let sent = send(source, plan, &stop);
                if sent.failure.is_some() {
                    // The receiver would wait for a peer that has gone.
                    other_end.shutdown(Shutdown::Both).ok();
                }
                sent
            })
        };
        let receiver = {
            let received = received.clone();
            thread::spawn(move || receive(sink, &received))
        };
        Ok(Self {
            stop,
            received,
            source,
            sender,
            receiver,
        })
    }

    /// Bytes that have arrived so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Segments that the sender has sent again so far.
    pub fn retransmits(&self) -> u32 {
        total_retransmits(&self.source).unwrap_or(0)
    }

    /// Whether the stream has ended, by plan or by failure: [`TcpFlow::finish`] will not wait.
    pub fn is_over(&self) -> bool {
        self.sender.is_finished() && self.receiver.is_finished()
    }

    /// Ends the stream now and returns the verdict.
    pub fn stop(self) -> TcpReport {
        self.stop.store(true, Ordering::Relaxed);
        self.finish()
    }

    /// Waits until the plan is fulfilled or the stream is dead, and returns the verdict.
    pub fn finish(self) -> TcpReport {
        let sent = self
            .sender
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let report = self
            .receiver
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        TcpReport {
            sent: sent.bytes,
            retransmits: sent.retransmits,
            failure: sent.failure.or(report.failure),
            ..report
        }
    }
}

fn send(mut stream: TcpStream, plan: TcpPlan, stop: &AtomicBool) -> Sent {
    let content = content();
    let start = Instant::now();
    let mut bytes = 0;
    let mut failure = None;
    while bytes < plan.bytes && !stop.load(Ordering::Relaxed) {
        let allowed = plan.rate.map_or(u64::MAX, |rate| {
            (start.elapsed().as_secs_f64() * rate as f64) as u64
        });
        if bytes >= allowed {
            thread::sleep(TICK);
            continue;
        }
        let wanted = (plan.bytes - bytes).min(CHUNK as u64) as usize;
        match stream.write(&content[phase(bytes)..][..wanted]) {
            Ok(written) => bytes += written as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                failure = Some(format!("sending after {bytes} bytes: {error}"));
                break;
            }
        }
    }
    let retransmits = total_retransmits(&stream).unwrap_or(0);
    stream.shutdown(Shutdown::Write).ok();
    Sent {
        bytes,
        retransmits,
        failure,
    }
}

fn receive(mut stream: TcpStream, received: &AtomicU64) -> TcpReport {
    let content = content();
    let mut buffer = vec![0; CHUNK];
    let mut report = TcpReport::default();
    let start = Instant::now();
    let mut last = start;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return report,
            Ok(length) => {
                let now = Instant::now();
                report.longest_gap = report.longest_gap.max(now - last);
                report.duration = now - start;
                last = now;
                let expected = &content[phase(report.received)..][..length];
                if buffer[..length] != *expected {
                    let wrong = buffer
                        .iter()
                        .zip(expected)
                        .position(|(got, expected)| got != expected);
                    report.corrupted_at = wrong.map(|position| report.received + position as u64);
                    return report;
                }
                report.received += length as u64;
                received.store(report.received, Ordering::Relaxed);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                report.failure = Some(format!(
                    "receiving after {} bytes: {error}",
                    report.received
                ));
                return report;
            }
        }
    }
}

/// A period and a chunk's worth of content, so that a chunk can begin anywhere in the first.
fn content() -> Vec<u8> {
    // xorshift: bytes that no header looks like and no compression shortens.
    let mut state = 0x2545_f491_u32;
    let mut period = Vec::with_capacity(PERIOD);
    for _ in 0..PERIOD {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        period.push(state.to_le_bytes()[1]);
    }
    period
        .iter()
        .copied()
        .cycle()
        .take(PERIOD + CHUNK)
        .collect()
}

fn phase(position: u64) -> usize {
    (position % PERIOD as u64) as usize
}

/// Segments retransmitted on this connection (`tcpi_total_retrans`, Linux 2.6.2).
///
/// # Errors
/// Those of `getsockopt`.
pub fn total_retransmits(stream: &TcpStream) -> io::Result<u32> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length =
        libc::socklen_t::try_from(size_of::<libc::tcp_info>()).expect("a small structure");
    // SAFETY: the descriptor is open for the call, and the buffer is as long as `length` says.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a structure of integers, zeroed before the kernel wrote its first `length` bytes.
    Ok(unsafe { info.assume_init() }.tcpi_total_retrans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_the_same_at_both_ends_of_the_period() {
        let content = content();
        assert_eq!(content[..CHUNK], content[PERIOD..]);
        assert_eq!(phase(PERIOD as u64 + 3), 3);
        let repeats = content
            .windows(4)
            .filter(|window| **window == content[..4])
            .count();
        assert!(repeats <= 3, "{repeats} places look like the beginning");
    }
}

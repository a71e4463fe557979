//! ICMP echo to many hosts at once: the ping matrix, without a process per pair.
//!
//! Uses the kernel's ping sockets (Linux 3.0), which fill in identifier and checksum and hand over only the answers to
//! what the socket sent.

use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

use crate::{
    error::{IoContext, Result},
    netns::Netns,
};

/// ICMP message types (RFC 792).
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// Type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;
/// Bytes behind the header, as `ping` sends by default.
const PAYLOAD: usize = 56;
/// How long the next request waits for the answer to the one before, lest that answer wait in the socket meanwhile.
const PATIENCE: Duration = Duration::from_millis(5);

/// Sends echo requests from one host.
#[derive(Debug)]
pub struct Pinger {
    socket: UdpSocket,
    sequence: u16,
}

impl Pinger {
    /// Opens the socket; allows ping sockets to all groups of the namespace.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn new(netns: &Netns) -> Result<Self> {
        netns.sysctl(&[("net/ipv4/ping_group_range", "0 2147483647")])?;
        let open = || {
            socket_with(
                AddressFamily::INET,
                SocketType::DGRAM,
                SocketFlags::CLOEXEC,
                Some(ipproto::ICMP),
            )
        };
        let socket = netns
            .run(open)?
            .context("open ping socket in", netns.name())?;
        Ok(Self {
            socket: UdpSocket::from(socket),
            sequence: 0,
        })
    }

    /// Sends one request to each target, one after the other, and returns the round-trip times in the same order; none
    /// where no answer came within `limit` after the last request.
    ///
    /// # Errors
    /// If the socket fails. A target without a route is no error but has no time.
    pub fn round(
        &mut self,
        targets: &[Ipv4Addr],
        limit: Duration,
    ) -> io::Result<Vec<Option<Duration>>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = [0; HEADER + PAYLOAD];
        request[0] = ECHO_REQUEST;
        request[6..HEADER].copy_from_slice(&self.sequence.to_be_bytes());
        let mut round = Round {
            waiting: HashMap::new(),
            times: vec![None; targets.len()],
        };
        for (index, target) in targets.iter().enumerate() {
            // Between namespaces the answer is there before the call returns.
            let start = Instant::now();
            if self.socket.send_to(&request, (*target, 0)).is_ok() {
                round.waiting.insert(*target, (index, start));
                self.receive(&request[..HEADER], &mut round, PATIENCE, |round| {
                    round.times[index].is_some()
                })?;
            }
        }
        self.receive(&request[..HEADER], &mut round, limit, |round| {
            round.waiting.is_empty()
        })?;
        Ok(round.times)
    }

    /// Takes answers until `done`, or for `limit`.
    fn receive(
        &self,
        request: &[u8],
        round: &mut Round,
        limit: Duration,
        done: impl Fn(&Round) -> bool,
    ) -> io::Result<()> {
        let end = Instant::now() + limit;
        let mut buffer = [0; HEADER + PAYLOAD];
        while !done(round) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.recv_from(&mut buffer) {
                Ok((length, source)) => {
                    let now = Instant::now();
                    let is_answer = length >= HEADER
                        && buffer[0] == ECHO_REPLY
                        && buffer[6..HEADER] == request[6..];
                    if let (true, IpAddr::V4(source)) = (is_answer, source.ip())
                        && let Some((index, start)) = round.waiting.remove(&source)
                    {
                        round.times[index] = Some(now - start);
                    }
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => return Ok(()),
                    // An ICMP error in answer to an earlier request.
                    ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {}
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }
}

/// Requests that wait for their answers, by target: index and time. And the answers' times, by index.
struct Round {
    waiting: HashMap<Ipv4Addr, (usize, Instant)>,
    times: Vec<Option<Duration>>,
}

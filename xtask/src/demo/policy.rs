//! A policy that can be switched on and off: a rule in FORWARD of the server's node that drops what one pod sends to
//! another, and a flow of datagrams between the two that shows when it begins and ends to act.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lab::{Node, Pod, Result, error::IoContext, process, traffic::rtt::EchoServer};
use serde::Serialize;

use crate::demo::{
    ends::Ends,
    flows::{self, FlowView},
};

/// Revalidation and grace at the agent's defaults: how long the kernel's word may be old.
pub(super) const BOUND: Duration = Duration::from_millis(2500);
/// Pause between two datagrams, and so how exact the times are.
const PAUSE: Duration = Duration::from_millis(5);
/// A flow without an answer for so long has ended.
const SILENCE: Duration = Duration::from_millis(300);
/// How often the receiver looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes of a datagram: a number, and when it was sent.
const SIZE: usize = 16;

/// Whether the policy is on, and what it has done to the flow.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct PolicyView {
    pub(super) from: String,
    pub(super) to: String,
    /// The node that has the rule.
    pub(super) node: String,
    pub(super) on: bool,
    /// Milliseconds since it was last switched, if it ever was.
    pub(super) switched_ms: Option<u64>,
    /// Whether the flow's datagrams are answered at the moment.
    pub(super) answered: bool,
    /// Round-trip time of the last answer, in milliseconds.
    pub(super) round_trip_ms: Option<f64>,
    /// Datagrams that were lost while the policy was off.
    pub(super) lost: u64,
    /// Milliseconds from switching on to the last datagram that got through; none while they do, and before the first
    /// time.
    pub(super) ended_ms: Option<u64>,
    /// Milliseconds from switching off to the first datagram that got through again.
    pub(super) back_ms: Option<u64>,
    /// What the server's node remembers of the flow, as a state.
    pub(super) state: Option<String>,
    /// Why it could not be switched.
    pub(super) failure: Option<String>,
}

/// The policy and its flow.
pub(super) struct Policy {
    node: Arc<Node>,
    client: Pod,
    server: Pod,
    port: u16,
    flow: Arc<Mutex<Flow>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    _echo: EchoServer,
}

/// What is known of the flow.
#[derive(Default)]
struct Flow {
    on: bool,
    switched: Option<Instant>,
    /// When the last datagram was sent that was answered.
    last_answered: Option<Instant>,
    round_trip: Option<Duration>,
    /// The number that the next answer should have.
    next: u64,
    lost: u64,
    /// A gap in the numbers is the policy's work.
    excused: bool,
    ended: Option<Duration>,
    back: Option<Duration>,
    failure: Option<String>,
}

impl Policy {
    /// Starts the flow; the policy is off.
    pub(super) fn start(ends: &Ends) -> Result<Self> {
        let (client, server) = ends.last();
        let echo = EchoServer::start(server.netns())?;
        let target = SocketAddr::from((server.address(), echo.port()));
        let socket = client
            .netns()
            .run(|| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.connect(target)?;
                socket.set_read_timeout(Some(LOOK))?;
                Ok::<_, std::io::Error>(socket)
            })?
            .context("connect to", target)?;
        let port = socket.local_addr().context("query", "socket")?.port();
        let receiver = socket.try_clone().context("duplicate", "socket")?;
        let begin = Instant::now();
        let flow = Arc::new(Mutex::new(Flow::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped, stopped_too) = (flow.clone(), stop.clone(), stop.clone());
        let threads = vec![
            thread::spawn(move || send(&socket, begin, &stopped)),
            thread::spawn(move || receive(&receiver, begin, &shared, &stopped_too)),
        ];
        Ok(Self {
            node: ends.server_node.clone(),
            client,
            server,
            port,
            flow,
            stop,
            threads,
            _echo: echo,
        })
    }

    /// Whether the policy is on.
    pub(super) fn is_on(&self) -> bool {
        lock(&self.flow).on
    }

    /// Switches the policy; `asked` is when somebody wanted that.
    pub(super) fn switch(&self, on: bool, asked: Instant) {
        {
            let mut flow = lock(&self.flow);
            flow.settle();
            // Before the command has ended, since the rule comes and goes while it runs.
            (flow.on, flow.switched, flow.failure) = (on, Some(asked), None);
            if on {
                (flow.excused, flow.ended, flow.back) = (true, None, None);
            }
        }
        if let Err(error) = self.rule(if on { "-I" } else { "-D" }) {
            let mut flow = lock(&self.flow);
            flow.on = !on;
            flow.failure = error.to_string().lines().next().map(str::to_owned);
        }
    }

    fn rule(&self, action: &str) -> Result<()> {
        let (from, to) = (
            self.client.address().to_string(),
            self.server.address().to_string(),
        );
        let rule = [
            "-w", action, "FORWARD", "-s", &from, "-d", &to, "-j", "DROP",
        ];
        process::run(Some(self.node.netns()), "iptables", &rule).map(drop)
    }

    /// What has become of it; `flows` are what the server's node remembers.
    pub(super) fn view(&self, flows: &[FlowView]) -> PolicyView {
        let mut flow = lock(&self.flow);
        flow.settle();
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        PolicyView {
            from: self.client.name().to_owned(),
            to: self.server.name().to_owned(),
            node: self.node.name().to_owned(),
            on: flow.on,
            switched_ms: flow
                .switched
                .map(|switched| milliseconds(switched.elapsed())),
            answered: !flow.is_silent(),
            round_trip_ms: flow.round_trip.map(|time| time.as_secs_f64() * 1e3),
            lost: flow.lost,
            ended_ms: flow.ended.map(milliseconds),
            back_ms: flow.back.map(milliseconds),
            state: self.state(flows),
            failure: flow.failure.clone(),
        }
    }

    fn state(&self, flows: &[FlowView]) -> Option<String> {
        let client = self.client.address().to_string();
        let mut flows = flows.iter().filter(|flow| flow.protocol == "udp");
        let found = flows.find(|flow| flow.remote == client && flow.remote_port == self.port);
        found.map(|flow| flow.state.clone())
    }

    /// Whether the server's node carries the flow by BPF now.
    pub(super) fn is_fast(&self) -> bool {
        let flows = flows::of(&self.node).map(|listing| listing.flows);
        flows.is_ok_and(|flows| self.state(&flows).as_deref() == Some("fast"))
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
        // The cluster may stay.
        if self.is_on() {
            self.rule("-D").ok();
        }
    }
}

fn send(socket: &UdpSocket, begin: Instant, stop: &AtomicBool) {
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let sent = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut datagram = [0; SIZE];
        datagram[..8].copy_from_slice(&number.to_be_bytes());
        datagram[8..].copy_from_slice(&sent.to_be_bytes());
        // One that the kernel refuses is lost like any other.
        socket.send(&datagram).ok();
        number += 1;
        thread::sleep(PAUSE);
    }
}

fn receive(socket: &UdpSocket, begin: Instant, flow: &Mutex<Flow>, stop: &AtomicBool) {
    let mut datagram = [0; SIZE];
    while !stop.load(Ordering::Relaxed) {
        if !matches!(socket.recv(&mut datagram), Ok(SIZE)) {
            continue;
        }
        let [number, sent] = [0, 8].map(|at| {
            let bytes = datagram[at..at + 8].try_into().expect("eight bytes");
            u64::from_be_bytes(bytes)
        });
        lock(flow).answer(number, begin + Duration::from_nanos(sent));
    }
}

impl Flow {
    fn is_silent(&self) -> bool {
        self.last_answered
            .is_none_or(|answered| answered.elapsed() > SILENCE)
    }

    /// Notes the end of the flow, if there was one.
    fn settle(&mut self) {
        if self.on && self.is_silent() && self.ended.is_none() {
            let end = self.last_answered.zip(self.switched);
            self.ended = end.map(|(answered, on)| answered.saturating_duration_since(on));
        }
    }

    /// Takes account of an answer to the datagram of this number, which was sent at this time.
    fn answer(&mut self, number: u64, sent: Instant) {
        let now = Instant::now();
        if !self.excused {
            // One that comes late was counted before.
            self.lost = (self.lost + number.saturating_sub(self.next))
                .saturating_sub(u64::from(number < self.next));
        }
        self.next = self.next.max(number + 1);
        self.last_answered = self.last_answered.max(Some(sent));
        self.round_trip = Some(now.saturating_duration_since(sent));
        if self.on {
            // Not the end after all.
            self.ended = None;
            return;
        }
        let since_off = self
            .switched
            .and_then(|off| sent.checked_duration_since(off));
        if let Some(time) = since_off.filter(|_| self.excused) {
            self.excused = false;
            self.back = Some(time);
        }
    }
}

fn lock(flow: &Mutex<Flow>) -> MutexGuard<'_, Flow> {
    flow.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_policy_drops_is_not_lost() {
        let mut flow = Flow::default();
        let now = Instant::now();
        flow.answer(0, now);
        flow.answer(3, now);
        assert_eq!(flow.lost, 2);
        flow.answer(2, now);
        assert_eq!(flow.lost, 1, "it was only late");
        (flow.on, flow.excused, flow.switched) = (true, true, Some(now));
        flow.answer(4, now);
        (flow.on, flow.switched) = (false, Some(now));
        flow.answer(900, now + Duration::from_millis(7));
        assert_eq!((flow.lost, flow.back), (1, Some(Duration::from_millis(7))));
        flow.answer(902, now);
        assert_eq!(flow.lost, 2, "the policy is no excuse any more");
    }
}

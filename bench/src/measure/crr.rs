//! Short exchanges: a connection for one request, and a datagram for one question. Nothing of them is worth
//! remembering.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use lab::{
    error::IoContext,
    traffic::{Host, rtt::RoundTrips},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType, recv, send,
    sockopt::{Timeout, set_socket_timeout},
};

use super::{Context, Effort, Figure, Measure, Unit};
use crate::{
    path::Reading,
    sockets::{self, Cpus, LIMIT},
    testbed::{End, Result},
    variants::Carrier,
};

/// Exchanges of a run, and of a quick one.
const EXCHANGES: usize = 4_000;
const QUICK_EXCHANGES: usize = 1_000;
/// Exchanges that go before.
const WARM_UP: usize = 50;
/// Bytes of a question and of its answer, as those for a name are about.
const QUESTION: usize = 48;
const ANSWER: usize = 128;
/// What the agents call an entry that was made for a flow.
const CREATED: &str = "created";

/// See the module.
pub struct Crr;

impl Measure for Crr {
    fn name(&self) -> &'static str {
        "crr"
    }

    fn title(&self, effort: &Effort) -> String {
        format!(
            "Connect, 1 byte each way, close; and UDP question and answer ({QUESTION} and {ANSWER} bytes) by a new \
             socket; {} of each, both ends on one CPU",
            exchanges(effort)
        )
    }

    fn carriers(&self) -> &'static [Carrier] {
        &[
            Carrier::Kernel,
            Carrier::KernelAgain,
            Carrier::Flow,
            Carrier::Native,
        ]
    }

    fn run(&mut self, context: &mut Context<'_, '_>, carrier: Carrier) -> Result<Vec<Figure>> {
        let count = exchanges(&context.effort);
        let cpu = context.means.cpu;
        let bed = context.beds.get(carrier)?;
        // A new port for each run: a port that a client gets again after two seconds would make a stream of questions.
        connections(bed.ends(), WARM_UP, cpu)?;
        let connections = connections(bed.ends(), count, cpu)?;
        questions(bed.ends(), WARM_UP, cpu)?;
        let before = (carrier == Carrier::Flow)
            .then(|| Reading::take(bed.cluster()))
            .transpose()?;
        let questions = questions(bed.ends(), count, cpu)?;
        let mut figures = percentiles("TCP connection", connections);
        figures.extend(percentiles("UDP question", questions));
        if let Some(before) = before {
            let counted = Reading::take(bed.cluster())?.since(&before);
            let created = counted.iter().map(|counters| {
                let created = counters.attest.get(CREATED);
                created.copied().unwrap_or(0)
            });
            figures.push(Figure::new(
                "UDP question, flow entries made",
                Unit::Count,
                created.sum::<u64>() as f64,
            ));
        }
        Ok(figures)
    }
}

fn exchanges(effort: &Effort) -> usize {
    if effort.quick {
        QUICK_EXCHANGES
    } else {
        EXCHANGES
    }
}

fn percentiles(name: &str, times: Vec<Duration>) -> Vec<Figure> {
    let times = RoundTrips(times);
    let figure = |percent: f64| {
        let value = times.percentile(percent).as_secs_f64() * 1e6;
        (format!("{name}, p{percent}"), Unit::Microseconds, value)
    };
    let (median, late) = (figure(50.0), figure(99.0));
    // One after the other.
    let rate = times.0.len() as f64 / times.0.iter().sum::<Duration>().as_secs_f64();
    vec![
        Figure::new(median.0, median.1, median.2),
        Figure::detail(late.0, late.1, late.2),
        Figure::detail(format!("{name}, rate"), Unit::PerSecond, rate),
    ]
}

/// Opens a socket at the second end; `open` gets its address and yields its port.
fn open<T: Send>(
    end: &End,
    open: impl FnOnce(SocketAddr) -> io::Result<(T, u16)> + Send,
) -> Result<(T, SocketAddr)> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let (socket, port) = end
        .netns()
        .run(move || open(any))?
        .context("open port in", end.netns().name())?;
    Ok((socket, (end.address(), port).into()))
}

fn connections(ends: &[End; 2], count: usize, cpu: usize) -> Result<Vec<Duration>> {
    let (listener, to) = open(&ends[1], |any| {
        let listener = TcpListener::bind(any)?;
        // Holds for accepting too.
        set_socket_timeout(&listener, Timeout::Recv, Some(LIMIT))?;
        let port = listener.local_addr()?.port();
        Ok((listener, port))
    })?;
    let serve = || -> io::Result<()> {
        for _ in 0..count {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(LIMIT))?;
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            stream.write_all(&byte)?;
            // The client is to close first, as clients do.
            let _ = stream.read(&mut byte)?;
        }
        Ok(())
    };
    let exchange = || -> rustix::io::Result<()> {
        let stream = client(SocketType::STREAM, to)?;
        send(&stream, &[0], SendFlags::NOSIGNAL)?;
        recv(&stream, &mut [0; 1], RecvFlags::empty()).map(drop)
    };
    both(ends, cpu, count, exchange, serve)
}

fn questions(ends: &[End; 2], count: usize, cpu: usize) -> Result<Vec<Duration>> {
    let (server, to) = open(&ends[1], |any| {
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(LIMIT))?;
        let port = socket.local_addr()?.port();
        Ok((socket, port))
    })?;
    let serve = || -> io::Result<()> {
        for _ in 0..count {
            let (_, from) = server.recv_from(&mut [0; QUESTION])?;
            server.send_to(&[0; ANSWER], from)?;
        }
        Ok(())
    };
    let exchange = || -> rustix::io::Result<()> {
        let socket = client(SocketType::DGRAM, to)?;
        send(&socket, &[0; QUESTION], SendFlags::NOSIGNAL)?;
        recv(&socket, &mut [0; ANSWER], RecvFlags::empty()).map(drop)
    };
    both(ends, cpu, count, exchange, serve)
}

/// A connected socket, by as few system calls as limits in time take.
fn client(kind: SocketType, to: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let socket = rustix::net::socket(AddressFamily::INET, kind, None)?;
    for way in [Timeout::Send, Timeout::Recv] {
        set_socket_timeout(&socket, way, Some(LIMIT))?;
    }
    rustix::net::connect(&socket, &to)?;
    Ok(socket)
}

/// Serves and exchanges, and times the exchanges.
fn both(
    ends: &[End; 2],
    cpu: usize,
    count: usize,
    exchange: impl Fn() -> rustix::io::Result<()> + Sync,
    serve: impl FnOnce() -> io::Result<()> + Send,
) -> Result<Vec<Duration>> {
    let cpus = Cpus {
        client: cpu,
        server: cpu,
    };
    let ask = || {
        let times = (0..count).map(|_| {
            let start = Instant::now();
            exchange()?;
            Ok(start.elapsed())
        });
        times
            .collect::<rustix::io::Result<_>>()
            .context("exchange with", ends[1].address())
    };
    sockets::at_both_ends(ends, cpus, ask, || serve().context("serve", "exchanges"))
}

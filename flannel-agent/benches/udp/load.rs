//! What is sent through the tunnel, and what it costs.

use std::{
    fmt, fs,
    net::{Ipv4Addr, UdpSocket},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lab::process::{self, Helper};
use serde_json::Value;

use crate::tunnel::{MTU, Tunnel, address};

/// Seconds that a stream lasts.
const SECONDS: &str = "2";
/// Round trips of a run.
const TRIPS: u32 = 10_000;
/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Bytes of IP and UDP headers, and of IP and TCP headers with timestamps.
const UDP_HEADERS: usize = 28;
const TCP_HEADERS: usize = 52;

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// TCP, one connection.
    Stream,
    /// TCP, one connection each way.
    BothWays,
    /// Datagrams flat out, that fill a packet.
    Large,
    /// Datagrams flat out, of 64 bytes.
    Small,
    /// A question and its answer.
    Trips,
}

/// What a run has yielded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Thousands in a second: packets that arrived, or round trips.
    pub(crate) rate: f64,
    /// CPU time of both proxies for each, in microseconds; of both ends too for round trips.
    pub(crate) cpu: f64,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stream => "TCP stream",
            Self::BothWays => "TCP streams both ways",
            Self::Large => "datagrams of 1444 bytes, flat out",
            Self::Small => "datagrams of 64 bytes, flat out",
            Self::Trips => "round trips of 64 bytes, one after the other",
        })
    }
}

impl Load {
    pub(crate) const ALL: [Self; 5] = [
        Self::Stream,
        Self::BothWays,
        Self::Large,
        Self::Small,
        Self::Trips,
    ];

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Trips => "thousand trips/s",
            _ => "thousand packets/s",
        }
    }

    pub(crate) fn run(self, tunnel: &Tunnel) -> Result<Sample> {
        let pids = tunnel.processes();
        let before = cpu(&pids)?;
        let start = Instant::now();
        let (count, time) = match self {
            Self::Stream => streamed(&iperf(tunnel, &[])?)?,
            Self::BothWays => streamed(&iperf(tunnel, &["--bidir"])?)?,
            Self::Large => datagrams(tunnel, MTU - UDP_HEADERS)?,
            Self::Small => datagrams(tunnel, 64)?,
            Self::Trips => {
                trips(tunnel)?;
                (f64::from(TRIPS), start.elapsed().as_secs_f64())
            }
        };
        let spent = cpu(&pids)? - before;
        Ok(Sample {
            rate: count / time / 1e3,
            cpu: spent.as_secs_f64() * 1e6 / count,
        })
    }
}

fn datagrams(tunnel: &Tunnel, size: usize) -> Result<(f64, f64)> {
    let report = iperf(tunnel, &["-u", "-b", "0", "-l", &size.to_string()])?;
    let sum = &report["end"]["sum"];
    let number = |name: &str| {
        sum[name]
            .as_f64()
            .with_context(|| format!("no {name} in {sum}"))
    };
    Ok((
        number("packets")? - number("lost_packets")?,
        number("seconds")?,
    ))
}

/// Packets that carried what was received, and the seconds.
fn streamed(report: &Value) -> Result<(f64, f64)> {
    let mut bytes = 0.0;
    let mut seconds = 0.0;
    for name in ["sum_received", "sum_received_bidir_reverse"] {
        let sum = &report["end"][name];
        bytes += sum["bytes"].as_f64().unwrap_or(0.0);
        seconds = sum["seconds"].as_f64().unwrap_or(seconds);
    }
    ensure!(bytes > 0.0 && seconds > 0.0, "nothing received: {report}");
    Ok((bytes / (MTU - TCP_HEADERS) as f64, seconds))
}

fn iperf(tunnel: &Tunnel, arguments: &[&str]) -> Result<Value> {
    let [client, server] = &tunnel.nodes;
    let mut command = Command::new("iperf3");
    command
        .args(["--server", "--one-off"])
        .stdout(std::process::Stdio::null());
    let _server = Helper::spawn(server, command)?;
    let to = address(1).to_string();
    let usual = ["--json", "--client", &to, "-t", SECONDS];
    let arguments = [&usual[..], arguments].concat();
    let start = Instant::now();
    loop {
        let output = process::run(Some(client), "iperf3", &arguments)?;
        let report: Value = serde_json::from_str(&output).context("report of iperf3")?;
        // It ends well whatever happens. At first the server may not listen yet.
        match report["error"].as_str() {
            None => return Ok(report),
            Some(error) if start.elapsed() > LIMIT => bail!("iperf3: {error}"),
            Some(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn trips(tunnel: &Tunnel) -> Result<()> {
    let open = |number: usize| -> Result<UdpSocket> {
        let netns = &tunnel.nodes[number];
        let socket = netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5000)))??;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.connect((address(1 - number), 5000))?;
        Ok(socket)
    };
    let (near, far) = (open(0)?, open(1)?);
    let echo = thread::spawn(move || -> std::io::Result<()> {
        let mut buffer = [0; 64];
        for _ in 0..TRIPS {
            let length = far.recv(&mut buffer)?;
            far.send(&buffer[..length])?;
        }
        Ok(())
    });
    let mut buffer = [0; 64];
    for _ in 0..TRIPS {
        near.send(&buffer)?;
        near.recv(&mut buffer).context("answer")?;
    }
    echo.join().expect("no panic").context("question")
}

/// CPU time of processes, by `/proc/<pid>/schedstat` of their threads.
fn cpu(pids: &[u32]) -> Result<Duration> {
    let mut nanoseconds = 0;
    for pid in pids {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let path = thread?.path().join("schedstat");
            let text = fs::read_to_string(&path).unwrap_or_default();
            let ran = text
                .split_whitespace()
                .next()
                .and_then(|word| word.parse::<u64>().ok());
            nanoseconds += ran.unwrap_or(0);
        }
    }
    Ok(Duration::from_nanos(nanoseconds))
}

//! `ping` and `iperf3`, run in a namespace, with their reports parsed.

use std::{
    io::{BufRead, BufReader},
    net::IpAddr,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::{
    error::{Error, Result},
    netns::Netns,
    process::{self, Helper},
    traffic::Host,
};

/// What to ask of `ping`.
#[derive(Clone, Copy, Debug)]
pub struct PingPlan {
    /// How many requests.
    pub count: u32,
    /// Time between two requests.
    pub interval: Duration,
    /// Bytes behind the ICMP header; an IPv4 packet is 28 bytes longer, an IPv6 packet 48.
    pub size: usize,
    /// Whether to forbid fragmentation on the way (`-M do`).
    pub dont_fragment: bool,
    /// How long to wait for the last answer.
    pub wait: Duration,
}

impl Default for PingPlan {
    fn default() -> Self {
        Self {
            count: 1,
            interval: Duration::from_millis(200),
            size: 56,
            dont_fragment: false,
            wait: Duration::from_secs(2),
        }
    }
}

/// What `ping` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u32,
    /// Answers received.
    pub received: u32,
    /// Answers beyond the first to a request.
    pub duplicates: u32,
    /// Round-trip times in milliseconds: smallest, mean, largest.
    pub rtt_ms: Option<[f64; 3]>,
    /// Lines that tell of errors, such as `Frag needed and DF set (mtu = 1450)`.
    pub errors: Vec<String>,
}

/// Pings an address from a namespace. No answer at all is a report like any other.
///
/// # Errors
/// If `ping` cannot be run.
pub fn ping(from: &Netns, to: impl Into<IpAddr>, plan: PingPlan) -> Result<PingReport> {
    let mut command = Command::new("ping");
    command
        .args(["-n", "-c", &plan.count.to_string()])
        .args(["-i", &plan.interval.as_secs_f64().to_string()])
        .args(["-s", &plan.size.to_string()])
        .args(["-W", &plan.wait.as_secs_f64().to_string()]);
    if plan.dont_fragment {
        command.args(["-M", "do"]);
    }
    command.arg(to.into().to_string());
    /// `ping` ends with this status when answers are missing.
    const UNANSWERED: i32 = 1;
    match process::run_command(Some(from), &mut command, "") {
        Ok(output) => parse_ping(&output),
        Err(Error::Command { status, output, .. }) if status.code() == Some(UNANSWERED) => {
            parse_ping(&output)
        }
        Err(error) => Err(error),
    }
}

fn parse_ping(output: &str) -> Result<PingReport> {
    let mut report = PingReport::default();
    let mut has_summary = false;
    for line in output.lines() {
        if line.contains("packets transmitted") {
            has_summary = true;
            for part in line.split(", ") {
                let number = || {
                    part.trim_start_matches('+')
                        .split(' ')
                        .next()
                        .and_then(|word| word.parse().ok())
                };
                match part {
                    _ if part.ends_with("packets transmitted") => {
                        report.sent = number().unwrap_or(0)
                    }
                    _ if part.ends_with("received") => report.received = number().unwrap_or(0),
                    _ if part.ends_with("duplicates") => report.duplicates = number().unwrap_or(0),
                    _ => {}
                }
            }
        } else if let Some(values) = line.strip_prefix("rtt min/avg/max/mdev = ") {
            let mut values = values.split('/').map_while(|value| value.parse().ok());
            report.rtt_ms = values
                .next()
                .zip(values.next())
                .zip(values.next())
                .map(|((min, mean), max)| [min, mean, max]);
        } else if line.starts_with("From ") || line.starts_with("ping: ") {
            report.errors.push(line.to_owned());
        }
    }
    if has_summary {
        return Ok(report);
    }
    Err(Error::Parse {
        what: "output of ping".to_owned(),
        reason: "no line `… packets transmitted …`".to_owned(),
        text: output.to_owned(),
    })
}

/// What to ask of `iperf3`.
#[derive(Clone, Copy, Debug)]
pub struct IperfPlan {
    /// Measured time in whole seconds.
    pub seconds: u32,
    /// UDP with this payload in bytes, instead of TCP.
    pub udp_size: Option<u32>,
    /// Bits per second per stream at most; none for no limit.
    pub rate: Option<u64>,
    /// Parallel streams.
    pub streams: u32,
    /// Whether the server sends.
    pub reverse: bool,
}

impl Default for IperfPlan {
    /// One TCP stream for a second, as fast as it goes.
    fn default() -> Self {
        Self {
            seconds: 1,
            udp_size: None,
            rate: None,
            streams: 1,
            reverse: false,
        }
    }
}

/// What `iperf3` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct IperfReport {
    /// Bits per second at the receiver (TCP), or at the sender less what was lost (UDP).
    pub bits_per_second: f64,
    /// TCP segments sent again.
    pub retransmits: u64,
    /// UDP packets sent and lost.
    pub packets: u64,
    /// See `packets`.
    pub lost_packets: u64,
}

/// Runs an `iperf3` server in `to` and a client in `from`.
///
/// # Errors
/// If either fails, with its message.
pub fn iperf3(from: &dyn Host, to: &dyn Host, plan: IperfPlan) -> Result<IperfReport> {
    /// Beyond the measured time: connecting, and the exchange of results.
    const MARGIN: Duration = Duration::from_secs(20);
    let mut server = Command::new("iperf3");
    server
        .args(["-s", "--one-off", "--forceflush"])
        .stdout(Stdio::piped());
    let mut server = Helper::spawn(to.netns(), server)?;
    // It says so once it listens; after that the pipe may fill or close.
    let lines = BufReader::new(server.stdout().expect("a pipe was asked for")).lines();
    if !lines
        .map_while(Result::ok)
        .any(|line| line.contains("listening"))
    {
        return Err(Error::Unsupported(
            "the iperf3 server does not listen: is iperf3 installed?".to_owned(),
        ));
    }
    let mut client = Command::new("iperf3");
    client.args([
        "-J",
        "-c",
        &to.ip().to_string(),
        "-t",
        &plan.seconds.to_string(),
        "-P",
        &plan.streams.to_string(),
    ]);
    if let Some(size) = plan.udp_size {
        client.args(["-u", "-l", &size.to_string()]);
    }
    // Without -b, UDP would be sent at 1 Mbit/s; 0 is unlimited.
    client.args(["-b", &plan.rate.unwrap_or(0).to_string()]);
    if plan.reverse {
        client.arg("-R");
    }
    let limit = Duration::from_secs(plan.seconds.into()) + MARGIN;
    parse_iperf(&process::run_limited(
        Some(from.netns()),
        &mut client,
        "",
        limit,
    )?)
}

fn parse_iperf(output: &str) -> Result<IperfReport> {
    let bad = |reason: String| Error::Parse {
        what: "report of iperf3".to_owned(),
        reason,
        text: output.to_owned(),
    };
    let report: Value = serde_json::from_str(output).map_err(|error| bad(error.to_string()))?;
    if let Some(error) = report["error"].as_str() {
        return Err(bad(error.to_owned()));
    }
    let end = &report["end"];
    let number = |part: &str, name: &str| end[part][name].as_f64();
    let count = |part: &str, name: &str| end[part][name].as_u64().unwrap_or(0);
    if let Some(bits_per_second) = number("sum", "bits_per_second") {
        let (packets, lost_packets) = (count("sum", "packets"), count("sum", "lost_packets"));
        let arrived = 1.0 - lost_packets as f64 / (packets as f64).max(1.0);
        return Ok(IperfReport {
            bits_per_second: bits_per_second * arrived,
            retransmits: 0,
            packets,
            lost_packets,
        });
    }
    let bits_per_second =
        number("sum_received", "bits_per_second").ok_or_else(|| bad("no sum".to_owned()))?;
    Ok(IperfReport {
        bits_per_second,
        retransmits: count("sum_sent", "retransmits"),
        ..IperfReport::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ping_with_answers_and_errors() {
        let output = "PING 10.5.2.2 (10.5.2.2) 1472(1500) bytes of data.\n\
            From 10.5.1.1 icmp_seq=1 Frag needed and DF set (mtu = 1450)\n\
            64 bytes from 10.5.2.2: icmp_seq=2 ttl=62 time=0.145 ms\n\n\
            --- 10.5.2.2 ping statistics ---\n\
            3 packets transmitted, 2 received, +1 duplicates, +1 errors, 33.3333% packet loss, time 103ms\n\
            rtt min/avg/max/mdev = 0.145/0.534/0.923/0.389 ms\n";
        let report = parse_ping(output).unwrap();
        assert_eq!((report.sent, report.received, report.duplicates), (3, 2, 1));
        assert_eq!(report.rtt_ms, Some([0.145, 0.534, 0.923]));
        assert!(report.errors[0].contains("mtu = 1450"));
        assert!(parse_ping("ping: connect: Network is unreachable").is_err());
    }

    #[test]
    fn iperf_reports() {
        let tcp = r#"{"end":{"sum_sent":{"bits_per_second":9.1e9,"retransmits":3},"sum_received":{"bits_per_second":9e9}}}"#;
        let report = parse_iperf(tcp).unwrap();
        assert_eq!((report.bits_per_second, report.retransmits), (9e9, 3));
        let udp = r#"{"end":{"sum":{"bits_per_second":1e6,"packets":100,"lost_packets":25}}}"#;
        let report = parse_iperf(udp).unwrap();
        assert_eq!(
            (report.bits_per_second, report.packets, report.lost_packets),
            (750_000.0, 100, 25)
        );
        let error = parse_iperf(r#"{"error":"unable to connect"}"#).unwrap_err();
        assert!(error.to_string().contains("unable to connect"));
    }
}

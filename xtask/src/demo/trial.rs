//! Once, and with a verdict: does the service answer, and does the policy end what it is to end?
//!
//! Both are the kernel's work, and `--fast-path=subnet` leads packets past it: there a failure is what the mode is
//! documented to do, and the report says so instead of calling it wrong.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use lab::{
    Cluster, Result,
    traffic::rtt::{self, EchoServer, Transport},
    wait,
};
use serde::Serialize;

use crate::demo::{
    ends::Ends,
    flows,
    policy::{BOUND, Policy, PolicyView},
    service::{self, Client, Servers},
};

/// Connections to the service, and requests on each.
const CONNECTIONS: u32 = 10;
const REQUESTS: u32 = 20;
/// How long a state may take to come about on a busy machine.
const PATIENCE: Duration = Duration::from_secs(8);
/// How late the end of a flow may be noticed.
const SLACK: Duration = Duration::from_millis(300);
/// How long a new connection may take.
const CONNECT: Duration = Duration::from_secs(1);

/// What became of a trial.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Verdict {
    /// Whether it was as it should be, or cannot be in this mode.
    pub(super) good: bool,
    /// Whether it works in the mode that the nodes are in.
    pub(super) expected_to_work: bool,
    /// What was not as it should be.
    pub(super) failure: Option<String>,
}

impl Verdict {
    fn of(expected_to_work: bool, failure: Option<String>) -> Self {
        Self {
            good: failure.is_none() || !expected_to_work,
            expected_to_work,
            failure,
        }
    }

    /// In words, for the end of a line.
    pub(super) fn text(&self) -> String {
        match (&self.failure, self.expected_to_work) {
            (None, true) => "as it should be".to_owned(),
            (None, false) => "works, though not expected to in this mode".to_owned(),
            (Some(failure), true) => format!("WRONG: {failure}"),
            (Some(failure), false) => format!("not expected to work in this mode: {failure}"),
        }
    }
}

/// The service's trial.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct ServiceTrial {
    /// The service's address.
    pub(super) address: String,
    pub(super) from: String,
    /// Answers of each pod.
    pub(super) answers: BTreeMap<String, u64>,
    /// Median round-trip time, in milliseconds.
    pub(super) round_trip_ms: Option<f64>,
    /// Nodes whose BPF programs carried it.
    pub(super) fast_at: Vec<String>,
    #[serde(flatten)]
    pub(super) verdict: Verdict,
}

/// The policy's trial.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct PolicyTrial {
    pub(super) from: String,
    pub(super) to: String,
    /// Whether BPF carried the flow before.
    pub(super) was_fast: bool,
    /// Milliseconds from the rule to the last datagram that got through.
    pub(super) ended_ms: Option<u64>,
    /// The most that these may be.
    pub(super) bound_ms: u64,
    /// Milliseconds from the rule's removal to the first that got through again.
    pub(super) back_ms: Option<u64>,
    #[serde(flatten)]
    pub(super) verdict: Verdict,
}

/// How the two nodes carry packets.
#[derive(Clone, Copy)]
struct Paths {
    /// BPF carries what the topology allows, at one of them.
    blind: bool,
    /// BPF carries permitted flows, at both of them.
    flow: bool,
}

impl Paths {
    fn of(ends: &Ends) -> Self {
        let paths = [&ends.client_node, &ends.server_node].map(|node| {
            let status = node.agent().status().unwrap_or_default();
            (status.fast_path.active, status.fast_path.mode)
        });
        let is = |mode: &str| paths.clone().map(|(active, of)| active && of == mode);
        Self {
            blind: is("subnet").contains(&true),
            flow: is("flow") == [true; 2],
        }
    }
}

/// Tries the service from the first node.
pub(super) fn service(cluster: &Cluster, ends: &Ends) -> Result<ServiceTrial> {
    let paths = Paths::of(ends);
    let _servers = Servers::start(cluster, ends)?;
    let (from, _) = ends.first();
    let mut trial = ServiceTrial {
        address: service::ADDRESS.to_string(),
        from: from.name().to_owned(),
        ..ServiceTrial::default()
    };
    let mut times = Vec::new();
    let mut asked = || -> std::io::Result<()> {
        for _ in 0..CONNECTIONS {
            let mut client = Client::connect(from.netns())?;
            for _ in 0..REQUESTS {
                let (by, time) = client.ask()?;
                *trial.answers.entry(by).or_default() += 1;
                times.push(time);
            }
        }
        Ok(())
    };
    let mut failure = asked().err().map(|error| error.to_string());
    times.sort();
    let median = times.get(times.len() / 2);
    trial.round_trip_ms = median.map(|time| time.as_secs_f64() * 1e3);
    if failure.is_none() && paths.flow {
        let connection = Client::connect(from.netns());
        let states = connection.map(|mut client| {
            settled(ends, || {
                client.ask()?;
                Ok(client.port())
            })
        });
        match states {
            Ok([at_client, at_server]) => {
                let names = [&ends.client_node, &ends.server_node].map(|node| node.name());
                let fast = [&at_client, &at_server].map(|state| state.as_deref() == Some("fast"));
                let fast_at = names.iter().zip(fast).filter(|(_, fast)| *fast);
                trial.fast_at = fast_at.map(|(name, _)| (*name).to_owned()).collect();
                if fast != [false, true] {
                    failure = Some(format!(
                        "fast at the server's node alone was expected, but it is {at_client:?} at {} and {at_server:?} at {}",
                        names[0], names[1]
                    ));
                }
            }
            Err(error) => failure = Some(error.to_string()),
        }
    }
    trial.verdict = Verdict::of(!paths.blind, failure);
    Ok(trial)
}

/// What both nodes remember of a connection, when the server's calls it fast or never does.
fn settled(ends: &Ends, mut ask: impl FnMut() -> std::io::Result<u16>) -> [Option<String>; 2] {
    let (client, _) = ends.first();
    let begin = Instant::now();
    loop {
        let port = ask().unwrap_or_default();
        let [at_client, at_server] = [&ends.client_node, &ends.server_node]
            .map(|node| flows::of(node).unwrap_or_default().flows);
        let states = service::states(&client, port, [&at_client, &at_server]);
        if states[1].as_deref() == Some("fast") || begin.elapsed() > PATIENCE {
            return states;
        }
    }
}

/// Switches the policy on and off below a flow that runs.
pub(super) fn policy(ends: &Ends) -> Result<PolicyTrial> {
    let paths = Paths::of(ends);
    let policy = Policy::start(ends)?;
    let (client, server) = ends.last();
    let echo = EchoServer::start(server.netns())?;
    let address = SocketAddr::from((server.address(), echo.port()));
    let connect = || rtt::round_trips(&client, address, Transport::Tcp, 1, 1, CONNECT);
    let look = || policy.view(&[]);
    let bound = if paths.flow { BOUND } else { Duration::ZERO };
    let mut trial = PolicyTrial {
        from: client.name().to_owned(),
        to: server.name().to_owned(),
        bound_ms: millis(bound + SLACK),
        ..PolicyTrial::default()
    };
    let mut tried = || -> Result<Option<String>> {
        let reached = |what: &str, limit: Duration, is: &dyn Fn(&PolicyView) -> bool| {
            wait::until(what, limit, || {
                let view = look();
                Ok(if is(&view) {
                    Ok(())
                } else {
                    Err(format!("{view:?}"))
                })
            })
        };
        if reached("a flow", PATIENCE, &|view| view.answered).is_err() {
            return Ok(Some("no datagram is answered without the policy".into()));
        }
        if paths.flow {
            // Conntrack calls a flow of datagrams assured after two seconds.
            let fast = wait::until("a fast flow", PATIENCE, || {
                Ok(if policy.is_fast() {
                    Ok(())
                } else {
                    Err("slow".to_owned())
                })
            });
            trial.was_fast = fast.is_ok();
        }
        connect()?;
        let asked = Instant::now();
        policy.switch(true, asked);
        // The rule acts at the latest when the command that makes it has ended.
        trial.bound_ms += millis(asked.elapsed());
        if let Some(failure) = look().failure {
            return Ok(Some(failure));
        }
        let passed_by = connect().is_ok();
        let ended = reached("the end", bound + PATIENCE, &|view| view.ended_ms.is_some());
        let view = look();
        trial.ended_ms = view.ended_ms;
        policy.switch(false, Instant::now());
        if ended.is_err() {
            return Ok(Some("the flow went on".into()));
        }
        if passed_by {
            return Ok(Some("a new connection got past it".into()));
        }
        if view.ended_ms > Some(trial.bound_ms) {
            return Ok(Some("the flow ended too late".into()));
        }
        if reached("the flow", PATIENCE, &|view| view.back_ms.is_some()).is_err() {
            return Ok(Some("the flow does not go on without it".into()));
        }
        trial.back_ms = look().back_ms;
        if connect().is_err() {
            return Ok(Some("no new connection without it".into()));
        }
        if paths.flow && !trial.was_fast {
            return Ok(Some("the flow was never fast".into()));
        }
        Ok(None)
    };
    let failure =
        tried().unwrap_or_else(|error| error.to_string().lines().next().map(str::to_owned));
    trial.verdict = Verdict::of(!paths.blind, failure);
    Ok(trial)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_no_failure_but_is_told() {
        let wrong = Some("no answer".to_owned());
        assert!(Verdict::of(true, None).good);
        assert!(!Verdict::of(true, wrong.clone()).good);
        let broken = Verdict::of(false, wrong);
        assert!(broken.good);
        assert_eq!(
            broken.text(),
            "not expected to work in this mode: no answer"
        );
    }
}

//! Flows to a pod and to the service in front of it from one port: the permitted fast path never takes the one for the
//! other.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::traffic::{rtt::Transport, whoami::Questioner};

use crate::legs::{CLUSTER_IP, DIRECT};
use crate::service_pair::{ASSURED, Pair, with_pair};
use crate::support::{Outcome, Setting, shell};

/// How long a connection and its answers may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Questions of each turn of a connection.
const QUESTIONS: usize = 100;
/// By then the agent has heard of all that the pods' arrival has changed.
const SETTLED: Duration = Duration::from_millis(500);

/// One port, first straight to the pod, then to the service in front of it, and the other way round, after conntrack has
/// forgotten: answers come from whom the question went to.
pub(crate) fn one_port_after_conntrack_forgot(setting: Setting) -> Outcome {
    with_pair(setting.pair(), |pair| {
        let before = pair.count()?;
        take_turns(pair, [false, true, false, true], || {
            pair.forget("udp")?;
            for node in pair.nodes() {
                let left = shell(node, "conntrack -L -p udp 2>/dev/null")?;
                let left = left.lines().filter(|line| line.contains("ASSURED")).count();
                ensure!(left == 0, "{}: {left} flows are not forgotten", node.name());
            }
            Ok(())
        })?;
        pair.assert_legs(setting.path, &before, DIRECT)
    })
}

/// The same while conntrack remembers the other: to tell the two apart it translates the port of the second.
pub(crate) fn one_port_for_pod_and_service(setting: Setting) -> Outcome {
    with_pair(setting.pair(), |pair| {
        take_turns(pair, [true, false, true, false], || Ok(()))
    })
}

/// Asks the service or the pod itself from one port, each for so long that its flow is assured.
fn take_turns(pair: &Pair<'_>, to_service: [bool; 4], between: impl Fn() -> Outcome) -> Outcome {
    pair.install_service()?;
    let mut socket = pair.open(pair.direct(), Transport::Udp, 0, LIMIT)?;
    for (round, to_service) in to_service.into_iter().enumerate() {
        let target = target(pair, to_service);
        socket.turn_to(target);
        let start = Instant::now();
        let mut wrong = Vec::new();
        while start.elapsed() < ASSURED {
            if let Err(error) = socket.ask() {
                wrong.push(error.to_string());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        ensure!(
            wrong.is_empty(),
            "round {round}, to {target}: {} wrong: {:?}",
            wrong.len(),
            wrong.first()
        );
        between()?;
    }
    Ok(())
}

fn target(pair: &Pair<'_>, to_service: bool) -> SocketAddrV4 {
    if to_service {
        pair.service()
    } else {
        pair.direct()
    }
}

/// Two connections from one port at a time, to the pod and to the service in front of it, in either order.
pub(crate) fn one_port_for_two_connections(setting: Setting) -> Outcome {
    with_pair(setting.pair(), |pair| {
        pair.install_service()?;
        settle(pair)?;
        for service_first in [false, true] {
            let before = pair.count()?;
            let to = target(pair, service_first);
            let mut first = pair.open(to, Transport::Tcp, 0, LIMIT)?;
            ask([&mut first], QUESTIONS)?;
            let legs = if service_first { CLUSTER_IP } else { DIRECT };
            pair.assert_legs(setting.path, &before, legs)
                .with_context(|| format!("to {to}"))?;
            let to = target(pair, !service_first);
            let mut second = pair.open(to, Transport::Tcp, first.port()?, LIMIT)?;
            ask([&mut first, &mut second], QUESTIONS)
                .with_context(|| format!("both, the second to {to}"))?;
            second.close()?;
            ask([&mut first], QUESTIONS).context("first after second")?;
            first.close()?;
        }
        Ok(())
    })
}

/// A connection from the port of one that has ended, to the other of pod and service, whether conntrack remembers the
/// first or not, and whether that was closed or reset.
pub(crate) fn one_port_for_one_connection_after_another(setting: Setting) -> Outcome {
    with_pair(setting.pair(), |pair| {
        pair.install_service()?;
        settle(pair)?;
        for case in 0_u8..8 {
            let [service_first, closed, forgotten] = [1, 2, 4].map(|bit| case & bit != 0);
            let what =
                format!("service first: {service_first}, closed: {closed}, forgotten: {forgotten}");
            let to = target(pair, service_first);
            let mut first = pair.open(to, Transport::Tcp, 0, LIMIT)?;
            ask([&mut first], QUESTIONS).with_context(|| what.clone())?;
            let port = first.port()?;
            if closed {
                first.close()?;
            } else {
                first.reset()?;
            }
            if forgotten {
                pair.forget("tcp")?;
            }
            let before = pair.count()?;
            let to = target(pair, !service_first);
            let mut second = pair.open(to, Transport::Tcp, port, LIMIT)?;
            ask([&mut second], QUESTIONS).with_context(|| what.clone())?;
            // What conntrack remembers may take the tuple, and then the second's port is translated.
            if forgotten {
                let legs = if service_first { DIRECT } else { CLUSTER_IP };
                pair.assert_legs(setting.path, &before, legs)
                    .with_context(|| what.clone())?;
            }
            second.close()?;
        }
        Ok(())
    })
}

/// Asks so often, by each flow in turn. What answers only after TCP has asked again and again does not work.
fn ask<const N: usize>(mut flows: [&mut Questioner; N], count: usize) -> Outcome {
    let start = Instant::now();
    for number in 1..=count {
        for (n, flow) in flows.iter_mut().enumerate() {
            let answer = flow.ask().with_context(|| format!("flow {n}"))?;
            ensure!(answer.server == "first", "{answer:?}");
        }
        let time = start.elapsed();
        ensure!(time < LIMIT, "{number} answers in {time:?}");
    }
    Ok(())
}

/// Waits until the agent has heard of the pods: every change of a pod makes its flows slow for a moment.
fn settle(pair: &Pair<'_>) -> Outcome {
    let mut flow = pair.open(pair.direct(), Transport::Tcp, 0, LIMIT)?;
    let start = Instant::now();
    while start.elapsed() < SETTLED {
        ask([&mut flow], 1)?;
    }
    Ok(flow.close()?)
}

//! `flannel-agent flows`: what it says of flows that are fast, idle, ending, or not there, with the agent and without it.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use aya::maps::{HashMap, Map, MapData};
use flannel_agent::fastpath::plain::Plain;
use flannel_common::{
    flow::{Flow, FlowKey, LegTimes},
    wire::{Be16, ipv4},
};
use lab::{Node, Pod, traffic::rtt::EchoServer};
use serde_json::Value;

use crate::pair::first_pod;
use crate::support::{Outcome, PROMPT, Setting, eventually, with_cluster};

/// How long an idle flow may be told to be fast: revalidation and grace at their defaults, and some time to ask.
const UNTIL_STALE: Duration = Duration::from_secs(10);
/// Flows beside the real ones, nearly as many as the map holds.
const MANY: u32 = 100_000;
/// How long listing them may take, by a program that is not optimized on a machine that is busy.
const QUICKLY: Duration = Duration::from_secs(5);

/// Each state is told as it comes, and filters, limits and errors do what they say.
pub(crate) fn flows_are_told_with_their_reasons(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let [from, to] = cluster.nodes() else {
            unreachable!("two nodes were asked for")
        };
        let (client, server) = (first_pod(from)?, first_pod(to)?);
        let echo = EchoServer::start(server.netns())?;
        let address = SocketAddr::new(server.address().into(), echo.port());
        let mut connection = client.netns().run(|| TcpStream::connect(address))??;

        let flow_of = |node: &Node, own: &Pod, other: &Pod| -> anyhow::Result<Value> {
            let (own, other) = (own.address().to_string(), other.address().to_string());
            let listing = list(node, &["--pod", &own, "--remote", &other])?;
            let flows = listing["flows"].as_array().context("flows")?;
            ensure!(flows.len() <= 1, "one connection, but {listing}");
            Ok(flows.first().cloned().unwrap_or_default())
        };
        let mut becomes = |state: &str, limit: Duration, talk: bool| -> Outcome {
            for (node, own, other) in [(from, &client, &server), (to, &server, &client)] {
                let what = format!("a flow that is {state} at {}", node.name());
                eventually(&what, limit, || {
                    if talk {
                        connection.write_all(b"x")?;
                        connection.read_exact(&mut [0])?;
                    }
                    let flow = flow_of(node, own, other)?;
                    Ok((flow["state"] == state)
                        .then_some(())
                        .ok_or(flow.to_string()))
                })?;
            }
            Ok(())
        };
        becomes("fast", PROMPT, true)?;
        becomes("stale", UNTIL_STALE, false)?;
        becomes("fast", PROMPT, true)?;
        let flow = flow_of(from, &client, &server)?;
        ensure!(
            flow["remote_port"] == echo.port() && flow["protocol"] == "tcp",
            "another flow: {flow}"
        );

        filters_and_limits(from, &client)?;

        // The maps outlive the agent.
        from.agent().stop()?;
        drop(connection);
        eventually("a flow that ends", PROMPT, || {
            let flow = flow_of(from, &client, &server)?;
            Ok((flow["state"] == "closing")
                .then_some(())
                .ok_or(flow.to_string()))
        })?;
        let error = command(from, &["--pin-dir=/sys/fs/bpf/nowhere"]).map_err(|e| e.to_string());
        ensure!(
            error.as_ref().is_err_and(|error| error.contains(
                "error: no maps are pinned below /sys/fs/bpf/nowhere, and no agent answers"
            )),
            "without pins and agent: {error:?}"
        );
        from.agent().start()?;
        from.agent().wait_ready()?;
        Ok(())
    })
}

/// What is not there is explained, and a full map is listed in no time.
fn filters_and_limits(node: &Node, pod: &Pod) -> Outcome {
    let stranger = list(node, &["--pod=10.77.0.1"])?;
    ensure!(
        stranger["matching"] == 0
            && stranger["notes"]
                .to_string()
                .contains("10.77.0.1 is no pod of this node"),
        "a pod that is not there: {stranger}"
    );
    let stranger = list(node, &["--remote=10.77.0.1"])?;
    ensure!(
        stranger["notes"].to_string().contains("no lease holds it"),
        "a node that is not there: {stranger}"
    );

    let pin = node
        .agent()
        .pin_directory()
        .join(format!("v{}/maps/FLOWS", flannel_common::maps::ABI));
    let map = Map::LruHashMap(MapData::from_pin(pin)?);
    let mut map: HashMap<MapData, Plain<FlowKey>, Plain<Flow>> = map.try_into()?;
    let old = LegTimes {
        attested: 1,
        ..LegTimes::default()
    };
    for number in 0..MANY {
        let key = FlowKey {
            pod: pod.address().into(),
            remote: Ipv4Addr::from_bits(number).into(),
            pod_port: Be16::new(1),
            protocol: ipv4::UDP.into(),
            ..FlowKey::default()
        };
        let flow = Flow {
            legs: [old; 2],
            ..Flow::default()
        };
        map.insert(Plain(key), Plain(flow), 0)?;
    }
    let begin = Instant::now();
    let text = command(node, &["--limit=3"])?;
    let took = begin.elapsed();
    let rows = text
        .lines()
        .filter(|line| line.starts_with("tcp ") || line.starts_with("udp "));
    let more = text.lines().find_map(|line| {
        line.strip_prefix("and ")?
            .split(' ')
            .next()?
            .parse::<u32>()
            .ok()
    });
    ensure!(
        rows.count() == 3 && more.is_some_and(|more| more >= MANY - 3) && took < QUICKLY,
        "{MANY} flows in {took:?}:\n{text}"
    );
    let slow = list(node, &["--slow", "--limit=1"])?;
    ensure!(
        slow["flows"][0]["state"] != "fast" && slow["remembered"].as_u64() >= Some(u64::from(MANY)),
        "only flows that are not fast: {slow}"
    );
    let keys: Vec<_> = map.keys().filter_map(Result::ok).collect();
    for key in keys.iter().filter(|key| key.0.pod_port == Be16::new(1)) {
        map.remove(key)?;
    }
    Ok(())
}

fn list(node: &Node, arguments: &[&str]) -> anyhow::Result<Value> {
    let text = command(node, &[arguments, &["--json"]].concat())?;
    serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
}

/// What `flannel-agent flows` prints on a node.
fn command(node: &Node, arguments: &[&str]) -> anyhow::Result<String> {
    let agent = node.agent();
    let pins = format!("--pin-dir={}", agent.pin_directory().display());
    let socket = format!("--status-socket={}", agent.socket().display());
    let given = arguments
        .iter()
        .any(|argument| argument.starts_with("--pin-dir"));
    let mut all = vec!["flows", &socket];
    all.extend((!given).then_some(pins.as_str()));
    all.extend(arguments);
    Ok(agent.command_output(&all)?)
}

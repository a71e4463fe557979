//! Pods on two nodes whose leases the server keeps.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use lab::{
    Agent, Pod,
    kube::apiserver::Programs,
    traffic::{
        tcp::{self, TcpPlan},
        tools::{self, PingPlan},
    },
};

use crate::world::{
    Families, NAMESPACE, Outcome, World, is_success, served, udp_arrives, with_world,
};

/// Bytes of a stream: hundreds of packets, whatever aggregates they are in.
const STREAM: u64 = 20_000_000;
/// The largest aggregate, in bytes.
const AGGREGATE: u64 = 64 << 10;

/// Traffic is fast; the objects say what stock flanneld's say, byte for byte; and agents ask for no more than they need,
/// all of which our manifest allows.
pub(crate) fn reach_each_other(programs: &Programs) -> Outcome {
    with_world(programs, 2, Families::One, |world| {
        world.start_all()?;
        let pods = [world.add_pod(1)?, world.add_pod(2)?];
        udp_arrives(&pods[0], &pods[1])?;
        udp_arrives(&pods[1], &pods[0])?;
        stream_is_fast(world, &pods)?;
        for number in [1, 2] {
            says_what_upstream_says(world, number)?;
        }

        let requests = world.server.requests()?;
        for request in &requests {
            let account = format!("system:serviceaccount:{NAMESPACE}:flannel");
            ensure!(
                is_success(request) && request.user == account,
                "{request:?}"
            );
        }
        let verbs: BTreeSet<_> = requests.iter().map(|request| &*request.verb).collect();
        let wanted = BTreeSet::from(["get", "list", "patch", "watch"]);
        ensure!(
            verbs == wanted,
            "the manifest allows {wanted:?}: {requests:?}"
        );
        let counts = ["list", "watch", "patch"].map(|verb| served(&requests, verb));
        // Annotations and condition are two patches.
        ensure!(
            counts == [2, 2, 4],
            "{counts:?} of two agents: {requests:?}"
        );

        // What is right is not written again.
        world
            .agents()
            .iter()
            .try_for_each(|agent| agent.restart().map(drop))?;
        world.wait_converged()?;
        udp_arrives(&pods[0], &pods[1])?;
        let later = world.requests_since(requests.len())?;
        let counts = ["list", "watch", "patch"].map(|verb| served(&later, verb));
        ensure!(counts == [2, 2, 0], "{counts:?} of two restarts: {later:?}");
        Ok(())
    })
}

fn stream_is_fast(world: &World, pods: &[Pod; 2]) -> Outcome {
    let counters = |agent: &Agent| agent.status().map(|status| status.fast_path.counters);
    let before = [counters(world.agent(1))?, counters(world.agent(2))?];
    let plan = TcpPlan {
        bytes: STREAM,
        rate: None,
    };
    let report = tcp::run(&pods[0], &pods[1], plan)?;
    ensure!(report.is_intact(), "{report:?}");
    let sent = counters(world.agent(1))?.since(&before[0]);
    let received = counters(world.agent(2))?.since(&before[1]);
    let least = STREAM / AGGREGATE / 2;
    ensure!(
        sent.fast_egress >= least && received.fast_ingress >= least,
        "most of the stream is fast: {sent:?} {received:?}"
    );
    Ok(())
}

/// As flanneld v0.28 leaves a Node of the vxlan backend: these annotations, in these bytes, and this condition.
fn says_what_upstream_says(world: &World, number: u8) -> Outcome {
    let mac = world.mac(number, "flannel.1")?;
    let data = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
    let address = format!("192.168.100.{number}");
    let wanted = [
        ("backend-data", &*data),
        ("backend-type", "vxlan"),
        ("kube-subnet-manager", "true"),
        ("public-ip", &*address),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let annotations = world.annotations(number)?;
    ensure!(annotations == wanted, "{annotations:?} is not {wanted:?}");

    let node = world.server.node(world.node(number).name())?;
    let conditions = node["status"]["conditions"]
        .as_array()
        .context("no conditions")?;
    let [condition] = &conditions[..] else {
        anyhow::bail!("one condition is ours, and no other is there: {conditions:?}");
    };
    let said = ["type", "status", "reason", "message"]
        .map(|field| condition[field].as_str().unwrap_or_default());
    let wanted = [
        "NetworkUnavailable",
        "False",
        "FlannelIsUp",
        "Flannel is running on this node",
    ];
    ensure!(said == wanted, "{condition}");
    for field in ["lastHeartbeatTime", "lastTransitionTime"] {
        ensure!(condition[field].is_string(), "{field}: {condition}");
    }
    Ok(())
}

/// The second podCIDR is the IPv6 lease, with annotations of its own.
pub(crate) fn dual_stack(programs: &Programs) -> Outcome {
    with_world(programs, 2, Families::Both, |world| {
        for number in [1, 2] {
            let (subnet, subnet6) = (World::subnet(number), format!("fd00:10:244:{number}::/64"));
            world
                .server
                .create_node(world.node(number).name(), &[&subnet, &subnet6])?;
        }
        world.agents().iter().try_for_each(Agent::start)?;
        for agent in world.agents() {
            // A node is a peer in each family.
            agent.wait_status("both families", |status| {
                status.ready && status.peers.len() == 2
            })?;
        }
        let pods = [world.add_pod(1)?, world.add_pod(2)?];
        udp_arrives(&pods[0], &pods[1])?;
        let target = pods[1].address6().context("a pod without IPv6 address")?;
        let pinged = tools::ping(pods[0].netns(), target, PingPlan::default())?;
        ensure!(
            pinged.received == pinged.sent && pinged.sent > 0,
            "{pinged:?}"
        );
        for number in [1, 2] {
            let annotations = world.annotations(number)?;
            let value = |name: &str| {
                let mut found = annotations.iter().filter(|(known, _)| known == name);
                found.next().map(|(_, value)| value.clone())
            };
            let address = world
                .node(number)
                .address6()
                .context("a node without IPv6 address")?;
            ensure!(
                value("public-ipv6") == Some(address.to_string()),
                "{annotations:?}"
            );
            let mac = world.mac(number, "flannel-v6.1")?;
            let data = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
            ensure!(value("backend-v6-data") == Some(data), "{annotations:?}");
            ensure!(annotations.len() == 6, "{annotations:?}");
        }
        Ok(())
    })
}

//! The server is away for a while.

use std::{thread, time::Duration};

use anyhow::ensure;
use lab::{
    kube::apiserver::Programs,
    traffic::udp::{UdpFlow, UdpPlan},
};

use crate::world::{Families, Outcome, served, with_world};

/// How long the server is away.
const AWAY: Duration = Duration::from_secs(12);
/// Packets of the flow that crosses that time, at this rate.
const PACKETS: u64 = 100_000;
const RATE: u32 = 4000;

/// Nothing is withdrawn and no packet lost; after the return each agent lists once, and writes nothing.
pub(crate) fn pods_do_not_notice(programs: &Programs) -> Outcome {
    with_world(programs, 2, Families::One, |world| {
        world.start_all()?;
        let pods = [world.add_pod(1)?, world.add_pod(2)?];
        let routes = world.shell(
            1,
            "ip route; bridge fdb show dev flannel.1; ip neigh show dev flannel.1",
        )?;
        let plan = UdpPlan {
            packets: PACKETS,
            rate: RATE,
            size: 64,
        };
        let flow = UdpFlow::start(&pods[0], &pods[1], plan)?;
        let before = world.server.requests()?.len();
        world.server.kill()?;
        for agent in world.agents() {
            agent.wait_status("a problem", |status| {
                status
                    .problems
                    .iter()
                    .any(|text| text.contains("Kubernetes API at https://"))
            })?;
        }
        thread::sleep(AWAY);
        // A newer version of something else, as in any cluster: the server's memory of changes begins after it, so that
        // watches cannot go on where they were.
        world.etcd().put("/registry/flannel-test", "newer")?;
        for agent in world.agents() {
            let status = agent.status()?;
            ensure!(
                status.ready && status.peers.len() == 1 && status.problems.len() == 1,
                "{status:?}"
            );
        }

        world.server.start()?;
        world.wait_converged()?;
        // What is asked for twice is asked for soon after.
        thread::sleep(AWAY / 4);
        let requests = world.requests_since(before)?;
        let counts = ["list", "patch"].map(|verb| served(&requests, verb));
        ensure!(counts == [2, 0], "{counts:?} of two agents: {requests:?}");
        let report = flow.finish()?;
        ensure!(report.received == PACKETS, "{report:?}");
        let now = world.shell(
            1,
            "ip route; bridge fdb show dev flannel.1; ip neigh show dev flannel.1",
        )?;
        ensure!(now == routes, "{now}\nwas\n{routes}");
        // Changes arrive as before.
        world.server.kubectl(&["delete", "node", "n2"])?;
        world
            .agent(1)
            .wait_status("no peer", |status| status.peers.is_empty())?;
        Ok(())
    })
}

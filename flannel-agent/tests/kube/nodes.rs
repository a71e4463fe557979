//! Node objects that come, go and are changed by others.

use anyhow::ensure;
use lab::kube::apiserver::Programs;

use crate::world::{Families, Outcome, PREFIX, World, eventually, udp_arrives, with_world};

/// A deleted Node's subnet is withdrawn, and back with a new Node of that name, whose object is written anew.
pub(crate) fn deleted(programs: &Programs) -> Outcome {
    with_world(programs, 3, Families::One, |world| {
        world.start_all()?;
        let pods = [world.add_pod(1)?, world.add_pod(2)?];
        let subnet = World::subnet(2);
        let route = format!("ip route show {subnet}");
        ensure!(
            world.shell(1, &route)?.contains("flannel.1"),
            "a route to n2"
        );

        world.server.kubectl(&["delete", "node", "n2"])?;
        for number in [1, 3] {
            world
                .agent(number)
                .wait_status("one peer", |status| status.peers.len() == 1)?;
            eventually("no route to n2", || {
                let route = world.shell(number, &route)?;
                Ok(if route.is_empty() { Ok(()) } else { Err(route) })
            })?;
        }
        let status = world.agent(2).wait_status("a problem of n2", |status| {
            status
                .problems
                .iter()
                .any(|text| text.contains("there is no Node n2"))
        })?;
        ensure!(status.peers.len() == 2, "n2 keeps what it has: {status:?}");

        world.create_node(2)?;
        world.wait_converged()?;
        udp_arrives(&pods[0], &pods[1])?;
        eventually("the condition of the new Node", || {
            let node = world.server.node("n2")?;
            let said = node["status"]["conditions"].to_string();
            Ok(if said.contains("FlannelIsUp") {
                Ok(())
            } else {
                Err(said)
            })
        })
    })
}

/// A Node without podCIDR is one clear problem, and no end; with one, the node is up.
pub(crate) fn without_pod_cidr(programs: &Programs) -> Outcome {
    with_world(programs, 2, Families::One, |world| {
        world.create_node(1)?;
        world.server.create_node("n2", &[])?;
        world.agents().iter().try_for_each(lab::Agent::start)?;
        world.agent(1).wait_ready()?;
        let complaint = "node n2 has no IPv4 podCIDR: start kube-controller-manager with --allocate-node-cidrs=true";
        eventually("a complaint", || {
            let log = world.agent(2).log();
            Ok(if log.contains(complaint) {
                Ok(())
            } else {
                Err(log)
            })
        })?;
        ensure!(world.annotations(2)?.is_empty(), "nothing is published");
        let spec = serde_json::json!({"spec": {"podCIDR": World::subnet(2), "podCIDRs": [World::subnet(2)]}});
        world
            .server
            .kubectl(&["patch", "node", "n2", "-p", &spec.to_string()])?;
        world.agent(2).wait_ready()?;
        world.wait_converged()?;
        let log = world.agent(2).log();
        let complaints = log.matches(complaint).count();
        ensure!(complaints == 1, "said {complaints} times: {log}");
        let pods = [world.add_pod(1)?, world.add_pod(2)?];
        udp_arrives(&pods[0], &pods[1])
    })
}

/// What others take away or overwrite is written again, and no other annotation is touched.
pub(crate) fn restored(programs: &Programs) -> Outcome {
    with_world(programs, 2, Families::One, |world| {
        world.start_all()?;
        let before = world.annotations(1)?;
        let name = |name: &str| format!("{PREFIX}{name}");
        world.server.kubectl(&[
            "annotate",
            "--overwrite",
            "node",
            "n1",
            "others=stay",
            &format!("{}-", name("public-ip")),
            &format!("{}=host-gw", name("backend-type")),
        ])?;
        eventually("the annotations as they were", || {
            let now = world.annotations(1)?;
            Ok(if now == before {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            })
        })?;
        let node = world.server.node("n1")?;
        ensure!(
            node["metadata"]["annotations"]["others"] == "stay",
            "{node}"
        );
        world.wait_converged()
    })
}

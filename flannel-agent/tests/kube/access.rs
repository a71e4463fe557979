//! Less permission than our manifest gives.

use anyhow::ensure;
use lab::kube::apiserver::Programs;
use serde_json::json;

use crate::world::{Families, Outcome, PREFIX, World, eventually, with_world};

/// A verb that is taken away while the agent runs, and one that is not there when it starts: each is one problem that
/// names it, and the agent goes on by itself once it is given.
pub(crate) fn verbs(programs: &Programs) -> Outcome {
    with_world(programs, 2, Families::One, |world| {
        world.start_all()?;
        let before = world.annotations(1)?;
        give(world, &["get", "list", "watch"], &[])?;
        world
            .server
            .kubectl(&["annotate", "node", "n1", &format!("{PREFIX}public-ip-")])?;
        is_one_problem(world, 1, "resources [nodes/status], verbs [patch]")?;
        give(world, &["get", "list", "watch"], &["patch"])?;
        eventually("the annotation", || {
            let now = world.annotations(1)?;
            Ok(if now == before {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            })
        })?;
        world.wait_converged()?;

        give(world, &["get", "watch"], &["patch"])?;
        world.agent(2).stop()?;
        world.agent(2).start()?;
        is_one_problem(world, 2, "resources [nodes], verbs [get, list, watch]")?;
        let status = world.agent(2).status()?;
        let route = world.shell(2, &format!("ip route show {}", World::subnet(1)))?;
        ensure!(
            !status.ready && route.contains("flannel.1"),
            "who knows no peers withdraws none: {route}, {status:?}"
        );
        give(world, &["get", "list", "watch"], &["patch"])?;
        world.wait_converged()
    })
}

/// Makes these the only verbs that agents may use.
fn give(world: &World, nodes: &[&str], status: &[&str]) -> Outcome {
    let mut rules = vec![json!({"apiGroups": [""], "resources": ["nodes"], "verbs": nodes})];
    if !status.is_empty() {
        rules.push(json!({"apiGroups": [""], "resources": ["nodes/status"], "verbs": status}));
    }
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "flannel"}, "rules": rules
    });
    world.server.apply(&role.to_string())?;
    // The server itself learns of it by a watch.
    let account = "--as=system:serviceaccount:kube-flannel:flannel";
    let allowed = |verb: &str, subresource: &str| {
        let part = format!("--subresource={subresource}");
        let arguments = ["auth", "can-i", verb, "nodes", &part, account];
        // Its exit status says the same.
        let answer = world.server.kubectl(&arguments);
        answer.is_ok_and(|answer| answer.trim() == "yes")
    };
    eventually("the role to be in force", || {
        let list = allowed("list", "") == nodes.contains(&"list");
        let patch = allowed("patch", "status") == status.contains(&"patch");
        Ok(if list && patch {
            Ok(())
        } else {
            Err("not yet".to_owned())
        })
    })
}

/// Waits for a problem that says what to allow; it is the only one, and is logged once.
fn is_one_problem(world: &World, number: u8, remedy: &str) -> Outcome {
    let from = world.agent(number).log().len();
    let says = |text: &str| text.contains("status 403") && text.contains(remedy);
    let status = world.agent(number).wait_status("a problem", |status| {
        status.problems.iter().any(|text| says(text))
    })?;
    ensure!(status.problems.len() == 1, "{:?}", status.problems);
    let log = world.agent(number).log();
    let lines = log
        .get(from..)
        .unwrap_or(&log)
        .lines()
        .filter(|line| says(line))
        .count();
    ensure!(lines <= 1, "said {lines} times: {log}");
    Ok(())
}

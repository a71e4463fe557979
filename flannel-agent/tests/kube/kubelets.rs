//! Real pods: kubelets run our DaemonSet from our image, with the privileges that our manifest gives and no more.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::{
    kube::{
        apiserver::Programs,
        kubelet::{Kubelet, POD_IMAGE, Runtime},
    },
    wait,
};
use serde_json::{Value, json};

use crate::render::Lacks;
use crate::world::{Families, NAMESPACE, Outcome, World, with_world};

/// How long the nodes' pods may take to run, all told.
const LIMIT: Duration = Duration::from_secs(180);
/// Echo requests that go on while all agents are replaced, and their interval in seconds.
const PINGS: &str = "2000";
const INTERVAL: &str = "0.01";
/// Bytes of a stream between pods, and the packets that most of it is, whatever aggregates they are in.
const STREAM: u64 = 20_000_000;
const PACKETS: u64 = STREAM / (64 << 10) / 2;

/// Whether there is a container runtime, and our image.
pub(crate) fn runtime() -> Result<(), Lacks> {
    match Runtime::from_environment() {
        Some(_) => Ok(()),
        None => Err(Lacks(
            "no containerd or no image: `cargo xtask test --kube` brings them".into(),
        )),
    }
}

/// Nodes are up by what the manifest alone does; pods reach pods, fast; and no packet is lost while agents are replaced.
pub(crate) fn daemon_set(programs: &Programs) -> Outcome {
    with_world(programs, 2, Families::One, |world| {
        let runtime = Runtime::from_environment().context("no container runtime")?;
        world.server.start_controllers()?;
        let start = |number| {
            let node = world.node(number);
            Kubelet::start(world.lab(), &world.server, programs, &runtime, node)
        };
        let kubelets = [start(1)?, start(2)?];
        let outcome = pods(world);
        outcome.map_err(|error| {
            let events = kubectl(world, &["get", "pods,events", "-A"]).unwrap_or_default();
            let logs = kubelets.each_ref().map(Kubelet::logs).concat();
            error.context(format!("{events}\n{logs}"))
        })
    })
}

fn pods(world: &World) -> Outcome {
    wait::until("the DaemonSet on both nodes", LIMIT, || {
        let set = kubectl(world, &["get", "ds", "kube-flannel-ds", "-o", "json"]);
        let ready = set.ok().and_then(|text| {
            let set: Value = serde_json::from_str(&text).ok()?;
            set["status"]["numberReady"].as_u64()
        });
        Ok(if ready == Some(2) {
            Ok(())
        } else {
            Err(format!("{ready:?} ready"))
        })
    })?;
    for number in [1, 2] {
        let names: Vec<_> = world
            .annotations(number)?
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let wanted = [
            "backend-data",
            "backend-type",
            "kube-subnet-manager",
            "public-ip",
        ];
        ensure!(names == wanted, "{names:?}");
        world.server.apply(&pod(number).to_string())?;
    }
    let mut address = String::new();
    wait::until("the pods", LIMIT, || {
        let found = |name: &str| {
            let text = kubectl(world, &["get", "pod", name, "-o", "json"]).ok()?;
            let pod: Value = serde_json::from_str(&text).ok()?;
            (pod["status"]["phase"] == "Running").then_some(())?;
            pod["status"]["podIP"].as_str().map(str::to_owned)
        };
        Ok(match (found("p1"), found("p2")) {
            (Some(_), Some(second)) => {
                address = second;
                Ok(())
            }
            state => Err(format!("{state:?}")),
        })
    })?;

    let in_first = |arguments: &[&str]| {
        let command = [&["exec", "p1", "--", "/bin/busybox"], arguments].concat();
        kubectl(world, &command)
    };
    let answer = in_first(&[
        "wget",
        "-q",
        "-O",
        "-",
        &format!("http://{address}/index.html"),
    ])?;
    ensure!(answer == "hello from n2\n", "{answer:?}");
    in_first(&[
        "wget",
        "-q",
        "-O",
        "/dev/null",
        &format!("http://{address}/stream"),
    ])?;
    let status = agent_status(world)?;
    let fast = &status["fast_path"];
    let packets = fast["counters"]["fast_ingress"]
        .as_u64()
        .unwrap_or_default();
    ensure!(fast["active"] == true && packets >= PACKETS, "{fast}");

    std::thread::scope(|scope| {
        let pings =
            scope.spawn(|| in_first(&["ping", "-q", "-c", PINGS, "-i", INTERVAL, &address]));
        kubectl(world, &["rollout", "restart", "ds", "kube-flannel-ds"])?;
        let pings = pings.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        ensure!(pings.contains(" 0% packet loss"), "{pings}");
        Ok(())
    })
}

/// What the agent of the first node says, asked in its container.
fn agent_status(world: &World) -> anyhow::Result<Value> {
    let pods = kubectl(world, &["get", "pods", "-l", "app=flannel", "-o", "json"])?;
    let pods: Value = serde_json::from_str(&pods)?;
    let mut pods = pods["items"].as_array().into_iter().flatten();
    let first = pods.find(|pod| pod["spec"]["nodeName"] == "n1");
    let name = first.and_then(|pod| pod["metadata"]["name"].as_str());
    let name = name.context("no agent on n1")?;
    let arguments = [
        "exec",
        name,
        "--",
        "/opt/bin/flannel-agent",
        "status",
        "--json",
    ];
    Ok(serde_json::from_str(&kubectl(world, &arguments)?)?)
}

/// A pod that serves a file, and a long one.
fn pod(number: u8) -> Value {
    let serve = format!(
        "busybox head -c {STREAM} /dev/zero >/www/stream; exec busybox httpd -f -p 80 -h /www"
    );
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("p{number}"), "namespace": NAMESPACE},
        "spec": {
            "nodeName": format!("n{number}"),
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "pod", "image": POD_IMAGE, "imagePullPolicy": "Never",
                "command": ["/bin/busybox", "sh", "-c", serve],
                "env": [{"name": "PATH", "value": "/bin"}]
            }]
        }
    })
}

fn kubectl(world: &World, arguments: &[&str]) -> anyhow::Result<String> {
    let mut all = vec!["-n", NAMESPACE];
    all.extend(arguments);
    Ok(world.server.kubectl(&all)?)
}

//! The CNI plugin, called as a container runtime calls it, over the real `bridge`, `host-local` and `portmap`: pods that
//! come and go on a node without an agent, whose `subnet.env` the test writes, and on nodes with agents.

mod delegates;
mod gone;
mod runtime;

use std::{collections::BTreeSet, fs, path::Path, thread};

use anyhow::ensure;
pub(crate) use delegates::{errors, exchanged, passed_on};
pub(crate) use gone::{collected, interfaces, killed, same_container, without_state};
use lab::{cni::plugin_directory, process};
use runtime::{Container, address, after, files, pings, with_runtime};
use serde_json::{Value, json};

use crate::support::{Outcome, Setting, link, shell, udp_arrives, wait_pods_served, with_cluster};

/// The plugin under test.
const PLUGIN: &str = env!("CARGO_BIN_EXE_flannel");
/// How many containers come at once.
const CROWD: usize = 20;

const ENV: &str = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
const DUAL_ENV: &str = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:7::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";

/// ADD gives an address of the subnet that reaches the gateway, and DEL leaves nothing.
pub(crate) fn come_and_go(_: Setting) -> Outcome {
    with_runtime(ENV, |runtime| {
        for version in ["0.3.1", "0.4.0", "1.0.0"] {
            let conf = runtime.conf(version);
            let container = runtime.container()?;
            let answer = runtime.call("ADD", &container, "eth0", &conf)?;
            let told = format!("{:?}", answer.stderr);
            let result = answer.ok()?;
            ensure!(result["cniVersion"] == version, "{result}");
            let address = address(&result, 0)?;
            ensure!(address.starts_with("10.5.7."), "{result}");
            pings(&container, "10.5.7.1")?;
            let state = fs::read_to_string(runtime.states().join(&container.id))?;
            ensure!(told.contains(&format!("{state:?}")[1..20]), "{told}");
            let state: Value = serde_json::from_str(&state)?;
            ensure!(state["mtu"] == 1450 && state["ipMasq"] == false, "{state}");
            let shown = process::run(Some(&container.netns), "ip", &["link", "show", "eth0"])?;
            ensure!(shown.contains("mtu 1450"), "{shown}");

            runtime.del(&container, &after(&conf, &result))?;
            runtime.nothing_is_left()?;
            runtime.del(&container, &after(&conf, &result))?;
        }
        Ok(())
    })
}

/// Containers that come and go all at once get an address each, and leave nothing.
pub(crate) fn crowds(_: Setting) -> Outcome {
    with_runtime(ENV, |runtime| {
        let conf = runtime.conf("1.0.0");
        let containers = (0..CROWD)
            .map(|_| runtime.container())
            .collect::<anyhow::Result<Vec<_>>>()?;
        let each = |work: &(dyn Fn(&Container) -> anyhow::Result<String> + Sync)| {
            thread::scope(|scope| {
                let threads: Vec<_> = containers
                    .iter()
                    .map(|container| scope.spawn(move || work(container)))
                    .collect();
                let results = threads.into_iter().map(|thread| thread.join().unwrap());
                results.collect::<anyhow::Result<BTreeSet<_>>>()
            })
        };
        let addresses = each(&|container| {
            let result = runtime.add(container, &conf)?;
            pings(container, "10.5.7.1")?;
            address(&result, 0)
        })?;
        ensure!(addresses.len() == CROWD, "{addresses:?}");
        each(&|container| runtime.del(container, &conf).map(|()| String::new()))?;
        runtime.nothing_is_left()
    })
}

/// A dual-stack subnet gives an address and routes of each family.
pub(crate) fn dual_stack(_: Setting) -> Outcome {
    with_runtime(DUAL_ENV, |runtime| {
        let conf = runtime.conf("1.0.0");
        let container = runtime.container()?;
        let result = runtime.add(&container, &conf)?;
        let addresses = (address(&result, 0)?, address(&result, 1)?);
        ensure!(
            addresses.0.starts_with("10.5.7.") && addresses.1.starts_with("fd00:5:0:7::"),
            "{result}"
        );
        pings(&container, "10.5.7.1")?;
        pings(&container, "fd00:5:0:7::1")?;
        let routes = process::run(Some(&container.netns), "ip", &["-6", "route"])?;
        ensure!(routes.contains("fd00:5::/48 via fd00:5:0:7::1"), "{routes}");
        runtime.del(&container, &after(&conf, &result))?;
        runtime.nothing_is_left()
    })
}

/// `portmap` takes over our result, and its own goes through our CHECK and DEL.
pub(crate) fn chained(_: Setting) -> Outcome {
    with_runtime(ENV, |runtime| {
        let conf = runtime.conf("1.0.0");
        let container = runtime.container()?;
        let result = runtime.add(&container, &conf)?;
        let mapped = json!({
            "cniVersion": "1.0.0", "name": conf["name"], "type": "portmap", "capabilities": { "portMappings": true },
            "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] },
            "prevResult": result,
        });
        let portmap = |operation: &str| {
            let program = plugin_directory()?.join("portmap");
            let mut command = runtime.command_of(&program, operation, Some((&container, "eth0")));
            runtime.run(&mut command, &mapped)?.ok()
        };
        let last = portmap("ADD")?;
        ensure!(last["ips"] == result["ips"], "{last}");
        let target = format!("{}:80", address(&result, 0)?);
        let rules = shell(runtime.node, "iptables-save -t nat")?;
        ensure!(
            rules.contains(&format!("--to-destination {target}")),
            "{rules}"
        );
        runtime
            .call("CHECK", &container, "eth0", &after(&conf, &last))?
            .ok()?;
        portmap("DEL")?;
        let rules = shell(runtime.node, "iptables-save -t nat")?;
        ensure!(!rules.contains(&target), "{rules}");
        runtime.del(&container, &after(&conf, &last))?;
        runtime.nothing_is_left()
    })
}

/// CHECK tells a container that is as ADD left it from one that is not.
pub(crate) fn checked(_: Setting) -> Outcome {
    with_runtime(ENV, |runtime| {
        let conf = runtime.conf("1.0.0");
        let container = runtime.container()?;
        let result = runtime.add(&container, &conf)?;
        let check = |conf: &Value| runtime.call("CHECK", &container, "eth0", conf);
        check(&after(&conf, &result))?.ok()?;
        // Neither a lost state file nor an agent that is away is the container's fault.
        let state = runtime.states().join(&container.id);
        let text = fs::read(&state)?;
        fs::remove_file(&state)?;
        check(&after(&conf, &result))?.ok()?;
        fs::rename(runtime.env(), runtime.directory.join("away"))?;
        ensure!(check(&after(&conf, &result))?.code()? == 11);
        fs::write(&state, text)?;
        check(&after(&conf, &result))?.ok()?;

        process::run(
            Some(&container.netns),
            "ip",
            &["address", "flush", "dev", "eth0"],
        )?;
        let answer = check(&after(&conf, &result))?;
        answer.code()?;
        let message = answer.output["msg"].as_str().unwrap_or_default();
        let address = address(&result, 0)?;
        ensure!(message.contains(&address), "{answer:?} names {address}");

        let old = check(&after(&runtime.conf("0.3.1"), &result))?;
        ensure!(old.code()? == 1, "{old:?}");
        runtime.del(&container, &after(&conf, &result))?;
        runtime.nothing_is_left()
    })
}

/// Pods that the plugin attaches by an agent's `subnet.env` are pods like any.
pub(crate) fn with_agents(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let (node, other) = (cluster.node(1), cluster.node(2));
        let pod = node.add_pod_by(Path::new(PLUGIN))?;
        let subnet = node.subnet_env()?.subnet;
        ensure!(
            pod.attachment().gateway.to_string() == subnet.host(1).to_string(),
            "{:?}",
            pod.attachment()
        );
        wait_pods_served(node)?;
        let peer = &other.pods()[0];
        udp_arrives(&pod, peer, 500, setting.pod_mtu() - 28)?;
        udp_arrives(peer, &pod, 500, 64)?;
        let device = pod.attachment().host_device.clone();
        let states = node.directory().join("flannel");
        ensure!(!files(&states)?.is_empty(), "no state file");
        node.delete_pod(pod)?;
        ensure!(files(&states)?.is_empty(), "{:?} is left", files(&states)?);
        ensure!(link(node, &device)?.is_none(), "{device} is left");
        Ok(())
    })
}

//! What an agent leaves behind: all that traffic needs when it ends, nothing after `cleanup`.

use anyhow::{Context, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use lab::Node;

use crate::meter::Meter;
use crate::support::{Outcome, Path, Setting, shell, udp_arrives, wait_pods_served, with_cluster};

/// Packets of one check.
const PACKETS: u64 = 1000;

pub(crate) fn end_and_cleanup(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let (from, to) = (cluster.node(1), cluster.node(2));
        let (source, target) = (&from.pods()[0], &to.pods()[0]);
        let meter = Meter::start(from, to)?;
        let before = state(from)?;
        for node in [from, to] {
            node.agent().stop().context("SIGTERM")?;
        }
        let after = state(from)?;
        ensure!(before == after, "before SIGTERM {before}\nafter {after}");
        udp_arrives(source, target, PACKETS, 64).context("without agents")?;
        if setting.path == Path::Fast {
            for node in [from, to] {
                let hooks = programs(node)?;
                ensure!(
                    !hooks.is_empty(),
                    "no program is attached on {}",
                    node.name()
                );
            }
        }
        for node in [from, to] {
            node.agent().start()?;
            node.agent().wait_ready()?;
            wait_pods_served(node)?;
        }
        meter
            .expect(setting.path, PACKETS)
            .context("packets that passed without agents")?;

        let refused = cleanup(from).err().map(|error| format!("{error:#}"));
        ensure!(
            refused
                .as_ref()
                .is_some_and(|text| text.contains("stop it first")),
            "beside a running agent, cleanup must refuse: {refused:?}"
        );
        from.agent().stop()?;
        let said = cleanup(from)?;
        nothing_left(from).with_context(|| format!("cleanup said: {said}"))?;
        let again = cleanup(from)?;
        ensure!(again.contains("nothing to remove"), "{again}");

        from.agent().start()?;
        from.agent().wait_ready()?;
        wait_pods_served(from)?;
        udp_arrives(source, target, PACKETS, 64).context("after a start from nothing")?;
        Ok(())
    })
}

/// A fast path that is turned off is gone, and packets take the kernel's path.
pub(crate) fn turned_off(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let (from, to) = (cluster.node(1), cluster.node(2));
        for node in [from, to] {
            ensure!(!programs(node)?.is_empty(), "programs are attached before");
            node.agent()
                .configure(|config| config.fast_path = "off".to_owned());
            let status = node.agent().restart()?;
            ensure!(
                !status.fast_path.active && status.fast_path.mode == "off",
                "{status:?}"
            );
            let left = programs(node)?;
            ensure!(left.is_empty(), "programs on {}: {left}", node.name());
            let pins = pins(node);
            ensure!(pins.is_empty(), "pins of {}: {pins:?}", node.name());
        }
        let meter = Meter::start(from, to)?;
        udp_arrives(&from.pods()[0], &to.pods()[0], PACKETS, 64)?;
        meter.expect(Path::Kernel, PACKETS)
    })
}

/// Runs `cleanup` on a node whose agent is stopped; returns what it prints.
pub(crate) fn cleanup(node: &Node) -> anyhow::Result<String> {
    let agent = node.agent();
    let options = [
        "cleanup".to_owned(),
        format!("--subnet-file={}", agent.subnet_file().display()),
        format!("--status-socket={}", agent.socket().display()),
        format!("--pin-dir={}", agent.pin_directory().display()),
    ];
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    Ok(agent.command_output(&options)?)
}

/// The kernel's state that traffic needs.
fn state(node: &Node) -> anyhow::Result<String> {
    shell(
        node,
        "ip -details link show; ip address show; ip route show; bridge fdb show dev flannel.1 2>/dev/null; \
         ip neighbour show nud permanent; iptables-save | grep -- '^-A'",
    )
    .map(|text| without_lifetimes(&text))
}

/// Bridges print timers, which run.
fn without_lifetimes(text: &str) -> String {
    text.lines()
        .filter(|line| !line.contains("timer"))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn nothing_left(node: &Node) -> Outcome {
    let everything = shell(
        node,
        "ip link show; ip route show; ip rule show; ip neighbour show nud permanent; iptables-save; nft list ruleset",
    )?;
    let own = node.number();
    let others = |line: &&str| {
        let route = line.starts_with("10.5.") && !line.contains("cni0");
        route || line.to_lowercase().contains("flannel")
    };
    let left: Vec<_> = everything.lines().filter(others).collect();
    ensure!(left.is_empty(), "left on n{own}: {left:#?}");
    let programs = programs(node)?;
    ensure!(programs.is_empty(), "left on n{own}: {programs}");
    let pins = pins(node);
    ensure!(pins.is_empty(), "left on n{own}: {pins:?}");
    for file in [node.agent().subnet_file(), node.agent().socket()] {
        ensure!(!file.exists(), "{} is left", file.display());
    }
    Ok(())
}

/// BPF programs at the node's interfaces, one per line, by either way of attaching.
pub(crate) fn programs(node: &Node) -> anyhow::Result<String> {
    let links = shell(
        node,
        "ls /proc/sys/net/ipv4/conf; tc filter show dev eth0 ingress",
    )?;
    let mut found = String::new();
    for device in links.lines() {
        let query = || SchedClassifier::query_tcx(device, TcAttachType::Ingress);
        // Names that are no devices, and kernels without TCX.
        let Ok((_, programs)) = node.netns().run(query)? else {
            continue;
        };
        for program in programs {
            found += &format!("{device} {}\n", program.name_as_str().unwrap_or_default());
        }
    }
    let filters = links.lines().filter(|line| line.contains("direct-action"));
    found.extend(filters.map(|filter| format!("eth0 {filter}\n")));
    Ok(found)
}

/// Names below the node's pin directory.
pub(crate) fn pins(node: &Node) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(node.agent().pin_directory());
    entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

//! The privileges that `deploy/kube-flannel.yml` gives the agent: that they are enough, and what each is needed for.
//!
//! The agent runs in a root of its own that has what the manifest mounts and nothing else that can be written, with the
//! manifest's capabilities and no others. A container runtime's seccomp profile is not in it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use lab::{
    AgentConfig, Node, NodeConfig,
    status::Status,
    traffic::tcp::{self, TcpPlan},
};

use crate::flow::{mostly_fast, pod};
use crate::pair::counters;
use crate::support::{
    AGENT, Outcome, Setting, shell, udp_arrives, with_cluster, with_unready_cluster,
};

/// The manifest.
const MANIFEST: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/deploy/kustomize/base/kube-flannel.yml"
);
/// The component for kernels before [`ACCOUNTED_AS_MEMORY`].
const MEMLOCK: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/deploy/kustomize/components/memlock/kustomization.yaml"
);
/// The kernel from which on the memory control group accounts for BPF maps, instead of `RLIMIT_MEMLOCK`.
const ACCOUNTED_AS_MEMORY: (u32, u32) = (5, 11);
/// The running kernel's version.
const KERNEL: &str = "/proc/sys/kernel/osrelease";
/// How long the agent may take to end.
const ENDS: Duration = Duration::from_secs(10);
/// Packets of one check.
const PACKETS: u64 = 1000;
/// Bytes of a stream: its acknowledgements, too, are many more than the packets that open and close it.
const BYTES: u64 = 60_000_000;

/// What is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Nothing,
    Capability(&'static str),
    /// The mount of the host's `/proc/sys/net`.
    Sysctls,
    /// The mount of the BPF file system.
    BpfFs,
}

/// A program that runs the agent as the manifest does, less one privilege.
fn confined(setting: Setting, without: Without) -> anyhow::Result<AgentConfig> {
    let mut capabilities = manifest_capabilities()?;
    if let Without::Capability(missing) = without {
        let before = capabilities.len();
        capabilities.retain(|capability| capability != missing);
        ensure!(
            capabilities.len() < before,
            "the manifest does not give {missing}"
        );
    }
    let bounding: String = capabilities
        .iter()
        .map(|capability| format!(",+{}", capability.to_lowercase()))
        .collect();
    let mount_unless = |left_out: Without, script: &'static str| {
        if without == left_out { "" } else { script }
    };
    // Tests that run at a time may want the same.
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name =
        format!("{setting}-{without:?}-{number}").replace(|c: char| !c.is_alphanumeric(), "-");
    let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("confined-{name}"));
    let root = program.with_extension("root");
    fs::create_dir_all(&root)?;
    let script = format!(
        r#"#!/bin/sh
exec unshare --mount --propagation private sh -e -c '
R={root}
mount -t tmpfs root $R
mkdir -p $R/proc $R/sys $R/dev $R/opt/bin $R/host/proc/sys/net $R/run/flannel-lab
touch $R/opt/bin/flannel-agent $R/run/xtables.lock /run/xtables.lock
for d in usr etc; do mkdir $R/$d; mount --bind /$d $R/$d; mount -o remount,bind,ro $R/$d; done
for d in bin sbin lib lib64; do ln -s usr/$d $R/$d; done
mount --rbind /dev $R/dev
mount --rbind /proc $R/proc
mount --bind $R/proc/sys $R/proc/sys
mount -o remount,bind,ro $R/proc/sys
mount --bind /sys $R/sys
mount -o remount,bind,ro $R/sys
{bpffs}
{sysctls}
mount --rbind /run/flannel-lab $R/run/flannel-lab
mount --bind /run/xtables.lock $R/run/xtables.lock
mount --bind {AGENT} $R/opt/bin/flannel-agent
mount -o remount,bind,ro $R
exec chroot $R setpriv --no-new-privs --inh-caps=-all --bounding-set=-all{bounding} /opt/bin/flannel-agent "$@"
' sh "$@"
"#,
        root = root.display(),
        bpffs = mount_unless(
            Without::BpfFs,
            "mkdir -p $R/host/sys/fs/bpf; mount --bind /sys/fs/bpf $R/host/sys/fs/bpf"
        ),
        sysctls = mount_unless(
            Without::Sysctls,
            "mount --bind /proc/sys/net $R/host/proc/sys/net"
        ),
    );
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(AgentConfig {
        program,
        ..setting.agent()
    })
}

/// The capabilities of the manifest's agent; on a kernel that counts BPF maps as locked memory, of the one that is for it.
fn manifest_capabilities() -> anyhow::Result<Vec<String>> {
    let old = fs::read_to_string(KERNEL)?;
    let mut numbers = old
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        bail!("{KERNEL} is {old}");
    };
    if (major, minor) < ACCOUNTED_AS_MEMORY {
        let component = fs::read_to_string(MEMLOCK)?;
        let (_, added) = component.split_once("add: [").context("no list")?;
        let (added, _) = added.split_once(']').context("no end of the list")?;
        return Ok(added.split(", ").map(str::to_owned).collect());
    }
    let manifest = fs::read_to_string(MANIFEST)?;
    let (_, added) = manifest
        .split_once(" add:\n")
        .context("the manifest adds no capabilities")?;
    let lines = added
        .lines()
        .map_while(|line| line.trim().strip_prefix("- "));
    Ok(lines
        .map(|line| line.split(' ').next().unwrap_or_default().to_owned())
        .collect())
}

/// With them, both directions are fast, for datagrams and streams, and nothing is said to be wrong.
pub(crate) fn are_enough(setting: Setting) -> Outcome {
    let agent = confined(setting, Without::Nothing)?;
    let nodes = vec![NodeConfig::agent(&agent), setting.node()];
    with_cluster(setting.cluster(nodes), |cluster| {
        let (confined, other) = (cluster.node(1), cluster.node(2));
        let status = confined.agent().status()?;
        ensure!(
            status.problems.is_empty() && status.ready,
            "{:?}",
            status.problems
        );
        has_only_these(confined, &manifest_capabilities()?)?;
        for (from, to) in [(confined, other), (other, confined)] {
            udp_arrives(&pod(from)?, &pod(to)?, PACKETS, 64)?;
            let before = counters(confined)?;
            let plan = TcpPlan {
                bytes: BYTES,
                rate: None,
            };
            let report = tcp::run(&pod(from)?, &pod(to)?, plan)?;
            ensure!(report.is_intact(), "{report:?}");
            mostly_fast("the confined node", &counters(confined)?.since(&before))?;
        }
        Ok(())
    })
}

/// Asserts that the agent's process, and so whatever it starts, can have these capabilities and no others.
fn has_only_these(node: &Node, capabilities: &[String]) -> Outcome {
    /// Numbers of `linux/capability.h`.
    const NUMBERS: [(&str, u32); 6] = [
        ("NET_BROADCAST", 11),
        ("NET_ADMIN", 12),
        ("NET_RAW", 13),
        ("SYS_RESOURCE", 24),
        ("PERFMON", 38),
        ("BPF", 39),
    ];
    let mut expected = 0_u64;
    for capability in capabilities {
        let number = NUMBERS.iter().find(|(name, _)| name == capability);
        let (_, number) = number.with_context(|| format!("the number of {capability}"))?;
        expected |= 1 << number;
    }
    let status = fs::read_to_string(format!("/proc/{}/status", node.agent().pid()?))?;
    for set in ["CapBnd", "CapPrm", "CapEff"] {
        let line = status.lines().find_map(|line| line.strip_prefix(set));
        let value = line.and_then(|line| line.strip_prefix(":")).context(set)?;
        let value = u64::from_str_radix(value.trim(), 16)?;
        ensure!(value == expected, "{set} is {value:x}, not {expected:x}");
    }
    Ok(())
}

/// What the agent says when something is missing. The kernel carries all packets then, or those that it says.
const NEEDED: &[(Without, &str)] = &[
    (Without::Capability("BPF"), "give the agent CAP_BPF"),
    (Without::Capability("PERFMON"), "CAP_PERFMON"),
    (Without::BpfFs, "no BPF file system at /sys/fs/bpf"),
    (
        Without::Sysctls,
        "TCP is not fast: net.netfilter.nf_conntrack_tcp_be_liberal",
    ),
];

/// Without one of them, the agent says so, and packets go by the kernel.
pub(crate) fn say_what_is_missing(setting: Setting) -> Outcome {
    for (without, expected) in NEEDED {
        let agent = confined(setting, *without)?;
        let nodes = vec![NodeConfig::agent(&agent), setting.node()];
        let checked = with_unready_cluster(setting.cluster(nodes), |cluster| {
            let (confined, other) = (cluster.node(1), cluster.node(2));
            let status = confined.agent().wait_status(expected, |status| {
                said(status).iter().any(|text| text.contains(expected))
            })?;
            ensure!(
                status.fast_path.active == (*without == Without::Sysctls),
                "{:?}",
                status.fast_path
            );
            let report = tcp::run(
                &pod(confined)?,
                &pod(other)?,
                TcpPlan {
                    bytes: BYTES,
                    rate: None,
                },
            )?;
            ensure!(report.is_intact(), "{report:?}");
            let counted = counters(confined)?;
            ensure!(
                counted.fast_egress + counted.fast_ingress == 0,
                "a stream is fast: {counted:?}"
            );
            Ok(())
        });
        checked.with_context(|| format!("{without:?}"))?;
    }
    Ok(())
}

fn said(status: &Status) -> Vec<&str> {
    let reason = status.fast_path.reason.as_deref();
    let problems = status.problems.iter().map(String::as_str);
    problems.chain(reason).collect()
}

/// Nothing works without CAP_NET_ADMIN: the agent ends and names it.
pub(crate) fn net_admin_is_named(setting: Setting) -> Outcome {
    let without = confined(setting, Without::Capability("NET_ADMIN"))?;
    with_unready_cluster(setting.cluster(vec![setting.node()]), |cluster| {
        let agent = cluster.node(1).agent();
        agent.stop()?;
        agent.configure(|config| *config = without);
        agent.start()?;
        let status = agent.wait_end(ENDS)?;
        let log = agent.log();
        ensure!(
            status == Some(1) && log.contains("CAP_NET_ADMIN"),
            "status {status:?}:\n{log}"
        );
        Ok(())
    })
}

/// Without CAP_NET_BROADCAST pods are found all the same, only later.
pub(crate) fn net_broadcast_can_be_missing(setting: Setting) -> Outcome {
    let agent = confined(setting, Without::Capability("NET_BROADCAST"))?;
    with_cluster(
        setting.cluster(vec![NodeConfig::agent(&agent)]),
        |cluster| {
            let status = cluster.node(1).agent().status()?;
            ensure!(status.problems.is_empty(), "{:?}", status.problems);
            Ok(())
        },
    )
}

/// iptables-legacy needs CAP_NET_RAW, and no other way to write rules does: without it, rules are not where a node with
/// that variant has all others.
pub(crate) fn net_raw_is_for_iptables_legacy(setting: Setting) -> Outcome {
    /// By which the agent chooses the variant, as kubelet does.
    const HINT: &str = "iptables-legacy -w -t mangle -N KUBE-IPTABLES-HINT";
    with_unready_cluster(setting.cluster(vec![setting.node()]), |cluster| {
        let node = cluster.node(1);
        let agent = node.agent();
        shell(node, HINT)?;
        for (without, legacy) in [
            (Without::Capability("NET_RAW"), false),
            (Without::Nothing, true),
        ] {
            let config = confined(setting, without)?;
            agent.stop()?;
            agent.configure(|old| *old = config);
            agent.start()?;
            agent.wait_status("rules", |status| {
                let mut rules = status
                    .objects
                    .iter()
                    .filter(|object| object.kind == "rules");
                rules.next().is_some_and(|object| object.state == "ok")
            })?;
            let rules = shell(node, "iptables-legacy-save")?;
            ensure!(
                rules.contains("-A FLANNEL-FWD") == legacy,
                "{without:?}: iptables-legacy-save shows\n{rules}"
            );
        }
        Ok(())
    })
}

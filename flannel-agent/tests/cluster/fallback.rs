//! Without BPF the same cluster works on the kernel's path, and says why.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use anyhow::ensure;
use lab::{AgentConfig, NodeConfig};

use crate::meter::Meter;
use crate::support::{AGENT, Outcome, Path, Setting, udp_arrives, with_unready_cluster};

/// Packets of one check.
const PACKETS: u64 = 1000;

/// The agent may not use BPF.
pub(crate) fn bpf_denied(setting: Setting) -> Outcome {
    let program = denied_agent(setting)?;
    let agent = AgentConfig {
        program,
        ..setting.agent()
    };
    kernel_path_with_reason(setting, &agent)
}

/// The pin directory is not on a BPF file system.
pub(crate) fn no_pins(setting: Setting) -> Outcome {
    let mut agent = setting.agent();
    let directory =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("no-bpffs-{}", name(setting)));
    fs::create_dir_all(&directory)?;
    agent
        .arguments
        .push(format!("--pin-dir={}", directory.display()));
    kernel_path_with_reason(setting, &agent)?;
    let left = fs::read_dir(&directory)?.count();
    fs::remove_dir_all(&directory)?;
    ensure!(left == 0, "{left} files in {}", directory.display());
    Ok(())
}

fn kernel_path_with_reason(setting: Setting, agent: &AgentConfig) -> Outcome {
    let nodes = vec![NodeConfig::agent(agent), setting.node()];
    with_unready_cluster(setting.cluster(nodes), |cluster| {
        let (first, second) = (cluster.node(1), cluster.node(2));
        let status = first.agent().status()?.fast_path;
        let reason = status.reason.clone().unwrap_or_default();
        ensure!(
            status.mode == Path::Fast.mode()
                && !status.active
                && status.hooks.is_empty()
                && !reason.is_empty()
                && status
                    .remedy
                    .as_ref()
                    .is_some_and(|remedy| !remedy.is_empty()),
            "{status:?}"
        );
        for (from, to) in [(first, second), (second, first)] {
            udp_arrives(&from.pods()[0], &to.pods()[0], PACKETS, 64)?;
        }
        let log = first.agent().log();
        let warnings = log
            .lines()
            .filter(|line| line.contains("WARN") && line.contains("fast path"))
            .count();
        ensure!(
            warnings == 1,
            "{warnings} warnings about the fast path:\n{log}"
        );
        let meter = Meter::start(first, first)?;
        udp_arrives(&first.pods()[0], &second.pods()[0], PACKETS, 64)?;
        meter.expect(Path::Kernel, PACKETS)
    })
}

/// A program that runs the agent without the capabilities for BPF.
fn denied_agent(setting: Setting) -> anyhow::Result<PathBuf> {
    const DENIED: &str = "-bpf,-sys_admin,-perfmon";
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("denied-{}", name(setting)));
    let script = format!(
        "#!/bin/sh\nexec setpriv --bounding-set {DENIED} --inh-caps {DENIED} {AGENT} \"$@\"\n"
    );
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

fn name(setting: Setting) -> String {
    setting.to_string().replace("::", "-")
}

//! Checks of what the build makes: which agents have the BPF object, and that the fallback toolchain does its work.

use std::{env, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use super::{
    Options,
    runner::Runners,
    tally::Tally,
    verdict::{self, Check, Verdict},
};
use crate::{
    build::{self, Objects},
    command,
    setup::{self, Origin, distro::is_root},
    workspace::Workspace,
};

/// What `flannel-agent --version` says about the object, without and with it.
const NO_OBJECT: &str = "BPF object not embedded";
const OBJECT: &str = "BPF object embedded";

/// Mounts an empty folder over the first argument and runs the rest.
const HIDE: &str = r#"mount -t tmpfs tmpfs "$0" && exec "$@""#;

/// What the checks look at.
struct Subject<'a> {
    workspace: &'a Workspace,
    runners: &'a Runners<'a>,
}

/// Runs the checks.
pub fn run(workspace: &Workspace, runners: &Runners<'_>, options: &Options) -> Result<Tally> {
    let checks: [Check<Subject<'_>>; 3] = [
        ("xtask_builds_an_agent_with_the_object", with_object),
        (
            "cargo_builds_an_agent_that_says_it_has_no_object",
            without_object,
        ),
        (
            "without_rust_src_the_fallback_toolchain_builds_the_object",
            fallback,
        ),
    ];
    verdict::run(&Subject { workspace, runners }, &checks, options)
}

fn with_object(subject: &Subject<'_>) -> Result<Verdict> {
    expect_version(&subject.runners.agent()?, OBJECT)
}

fn without_object(subject: &Subject<'_>) -> Result<Verdict> {
    expect_version(&build::plain_agent(subject.workspace)?, NO_OBJECT)
}

fn expect_version(agent: &Path, expected: &str) -> Result<Verdict> {
    let version = command::stdout(Command::new(agent).arg("--version"))?;
    ensure!(
        version.contains(expected),
        "{} --version does not say {expected:?}: {version}",
        agent.display()
    );
    Ok(Verdict::Passed)
}

/// Hides rust-src in a mount namespace, where rustup still takes it for installed, and lets set-up and build find
/// another way. Then the kernel judges the object: the BPF suite runs on it.
fn fallback(subject: &Subject<'_>) -> Result<Verdict> {
    if let Err(error) = setup::ensure_fallback() {
        command::check_interrupt()?;
        return Ok(Verdict::Skipped(format!("{error:#}")));
    }
    let namespace = || {
        let mut unshare = Command::new("unshare");
        if !is_root() {
            unshare.arg("--map-root-user");
        }
        unshare.arg("--mount");
        unshare
    };
    if let Err(error) = command::quiet(namespace().arg("true")) {
        return Ok(Verdict::Skipped(format!("cannot hide rust-src: {error:#}")));
    }
    let mut command = namespace();
    if let Some(sources) = setup::host_sources()? {
        command.args(["sh", "-c", HIDE]).arg(sources);
    }
    command
        .arg(env::current_exe().context("cannot find xtask's own program")?)
        .args(["build", "--objects"]);
    let objects = Objects::parse(&command::stdout(&mut command)?);
    let object = objects.hooks()?;
    ensure!(
        object.starts_with(build::objects_folder(subject.workspace, Origin::Debian)),
        "the fallback toolchain has not built {}",
        object.display()
    );
    let tally = subject.runners.run_bpf(object)?;
    ensure!(
        tally.failed.is_empty() && tally.passed > 0,
        "of the BPF suite, {} passed and {} failed with its object",
        tally.passed,
        tally.failed.len()
    );
    Ok(Verdict::Passed)
}

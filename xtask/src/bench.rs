//! `cargo xtask bench`: set-up and build, then the benchmark with what was built.

use std::{
    ffi::OsString,
    io::IsTerminal,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    build::{self, AGENT_VARIABLE, OBJECT_VARIABLE, Objects},
    command,
    setup::{self, Scope, distro::as_root},
    workspace::Workspace,
};

/// The benchmark's crate and program.
const BENCH: &str = "bench";

/// Names its packet generator.
const GENERATOR_VARIABLE: &str = "FLANNEL_GENERATOR_OBJECT";

/// A benchmark that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(2 * 60 * 60);

/// Options of `cargo xtask bench`.
#[derive(Debug, Args)]
pub struct Options {
    /// Arguments of the benchmark, such as --quick or --json=FILE; `-- --help` shows them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Runs the benchmark; its exit status says whether every row has its number.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let tools = setup::ensure(workspace, Scope::Lab)?;
    let objects = build::objects(workspace, &tools)?;
    let mut benchmark = command(workspace, &objects)?;
    benchmark.args(&options.arguments);
    let status = command::lines(&mut benchmark, LIMIT, |line| println!("{line}"))?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The benchmark, built with these objects, without arguments yet.
pub fn command(workspace: &Workspace, objects: &Objects) -> Result<Command> {
    let agent = build::agent(workspace, objects)?;
    let program = program(workspace, objects)?;
    // sudo clears the environment.
    let mut benchmark = as_root("env")?;
    for (name, path) in [
        (AGENT_VARIABLE, &*agent),
        (GENERATOR_VARIABLE, objects.generator()?),
    ] {
        benchmark.arg(format!("{name}={}", path.display()));
    }
    // Nor does it see a terminal: what it says comes through here.
    let declined = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if std::io::stdout().is_terminal() && !declined {
        benchmark.arg("CLICOLOR_FORCE=1");
    }
    benchmark.arg(program);
    Ok(benchmark)
}

/// Builds the benchmark, optimised, with the programs that it measures. They are part of the agent that it links.
fn program(workspace: &Workspace, objects: &Objects) -> Result<PathBuf> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--release", "--package", BENCH, "--bin", BENCH]);
    cargo.env(OBJECT_VARIABLE, objects.hooks()?);
    let made = build::programs(&mut cargo)?;
    made.into_iter()
        .find(|program| program.name == BENCH)
        .map(|program| program.path)
        .with_context(|| format!("the build has made no program {BENCH}"))
}

//! `cargo xtask`: everything that is done with this workspace, from a fresh clone on.
//!
//! This crate is compiled before anything is installed: it depends on nothing that needs a C library, protoc or the
//! BPF toolchain.

mod bench;
mod build;
mod command;
mod demo;
mod setup;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{command::Interrupted, workspace::Workspace};

/// Exit status of a command that a signal ended, less the signal's number.
const SIGNAL_EXIT: i32 = 128;

/// Set-up, build and tests of the workspace.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what is missing and show what there is.
    Setup(setup::Options),
    /// Build the BPF object and the agent with the object in it.
    Build(build::Options),
    /// Run a cluster on this machine and watch it.
    Run(demo::Options),
    /// Run the tests: all of them, or the named suites.
    Test(test::Options),
    /// Measure what forwarding costs, by the kernel and by the fast path.
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            match error.downcast_ref::<Interrupted>() {
                Some(interrupted) => ExitCode::from(
                    u8::try_from(SIGNAL_EXIT + interrupted.signal).unwrap_or(u8::MAX),
                ),
                None => ExitCode::FAILURE,
            }
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    command::pass_signals_on()?;
    let workspace = Workspace::find()?;
    match &cli.task {
        Task::Setup(options) => setup::run(&workspace, options)?,
        Task::Build(options) => build::run(&workspace, options)?,
        Task::Run(options) => return run_demo(&workspace, options),
        Task::Test(options) => return test::run(&workspace, options),
        Task::Bench(options) => return bench::run(&workspace, options),
    }
    Ok(ExitCode::SUCCESS)
}

/// `cargo xtask run`: set-up and build, then the demo with the agent that was built.
fn run_demo(workspace: &Workspace, options: &demo::Options) -> anyhow::Result<ExitCode> {
    if options.clean {
        return demo::clean();
    }
    let tools = setup::ensure(workspace, setup::Scope::Lab)?;
    let objects = build::objects(workspace, &tools)?;
    demo::run(options, &build::agent(workspace, &objects)?)
}

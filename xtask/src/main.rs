//! `cargo xtask`: everything that is done with this workspace, from a fresh clone on.
//!
//! This crate is compiled before anything is installed: it depends on nothing that needs a C library, protoc or the
//! BPF toolchain.

mod bench;
mod build;
mod command;
mod debian;
mod demo;
mod fuzz;
mod image;
mod setup;
mod test;
mod vm;
mod workspace;

use std::{env, os::unix::process::CommandExt, path::Path, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::{
    build::AGENT_VARIABLE,
    command::Interrupted,
    setup::{
        Scope,
        distro::{as_root, is_root},
    },
    workspace::Workspace,
};

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
    /// Make the container image, as an archive for `ctr image import` or `docker load`.
    Image(image::Options),
    /// Run a cluster of the agent on this machine and show what it does.
    Run(demo::Options),
    /// Run the tests: all of them, or the named suites.
    Test(test::Options),
    /// Boot other kernels in virtual machines and run the tests of what differs between them.
    Vm(vm::Options),
    /// Search for inputs from outside that the agent does not bear: leases, configs, files, netlink.
    Fuzz(fuzz::Options),
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
    match &cli.task {
        Task::Setup(options) => setup::run(&Workspace::find()?, options)?,
        Task::Build(options) => build::run(&Workspace::find()?, options)?,
        Task::Image(options) => image::run(&Workspace::find()?, options)?,
        Task::Run(options) if options.clean => return demo::clean(),
        Task::Run(options) => return run_demo(options),
        Task::Test(options) => return test::run(&Workspace::find()?, options),
        Task::Fuzz(options) => return fuzz::run(&Workspace::find()?, options),
        Task::Vm(options) => return vm::run(&Workspace::find()?, options),
        Task::Bench(options) => return bench::run(&Workspace::find()?, options),
    }
    Ok(ExitCode::SUCCESS)
}

/// Sets up and builds as whoever runs this, so that root owns nothing in the target folder; then goes on as root. An
/// agent that the environment names is taken as it is.
fn run_demo(options: &demo::Options) -> anyhow::Result<ExitCode> {
    if let Some(agent) = env::var_os(AGENT_VARIABLE) {
        return demo::run(options, Path::new(&agent));
    }
    let workspace = Workspace::find()?;
    let tools = setup::ensure(&workspace, Scope::Lab)?;
    let objects = build::objects(&workspace, &tools)?;
    let agent = build::agent(&workspace, &objects)?;
    if is_root() {
        return demo::run(options, &agent);
    }
    eprintln!("network namespaces and BPF need root: going on through sudo");
    let error = as_root("env")?
        .arg(format!("{AGENT_VARIABLE}={}", agent.display()))
        .arg(env::current_exe().context("cannot find xtask's own program")?)
        .args(env::args_os().skip(1))
        .exec();
    Err(error).context("cannot start sudo")
}

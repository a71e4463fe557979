//! The command line: which command, which exit code.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done; `run`: ended by SIGTERM or SIGINT, and for no other reason; `status`: the agent is ready; `fast-path`: it is as wanted; `check-config`: the agent would take it |
//! | 1 | failed: one line on standard error says what, why and what to do; `status`: not ready, or no agent |
//! | 2 | the command line is wrong |
//!
//! `run` waits, and does not end, while etcd, the network config or a free subnet is missing. Upstream also exits 0 for
//! a wrong command line and for a lost lease, so that `Restart=on-failure` leaves the node without flannel.

pub mod args;
pub mod check_config;
pub mod cleanup;
pub mod copy;
pub mod fast_path;
pub mod flows;
pub mod go_flags;
pub mod install_cni;
pub mod probe;
pub mod run;
pub mod status;
pub mod store;
pub mod values;

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory as _, FromArgMatches as _};

use args::{Cli, Command};

/// Runs the command that `argv` names; never returns before it is done.
pub fn main(argv: Vec<OsString>) -> ExitCode {
    if let Some((program, arguments)) = argv.split_first()
        && copy::is_called(program)
    {
        return exit(copy::run(arguments));
    }
    let invocation = go_flags::prepare(argv, &std::env::vars_os().collect());
    let cli = Cli::command()
        .try_get_matches_from(invocation.argv)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let command = match cli {
        Ok(cli) => cli.command,
        Err(error) => error.exit(),
    };
    let result = match command {
        Command::Run(options) if options.switches.version => {
            // Where flanneld prints it.
            eprintln!("flannel-agent {}", args::version());
            return ExitCode::SUCCESS;
        }
        Command::Run(options) => run::run(*options, &invocation.warnings),
        Command::Status(options) => return status::run(&options),
        Command::FastPath(options) => return fast_path::run(&options),
        Command::Flows(options) => return flows::run(&options),
        Command::CheckConfig(options) => return check_config::run(&options),
        Command::Probe(options) => probe::run(&options),
        Command::Cleanup(options) => cleanup::run(&options),
        Command::InstallCni(options) => install_cni::run(&options),
    };
    exit(result)
}

fn exit(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

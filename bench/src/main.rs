//! The benchmark: what forwarding a packet costs by the kernel's path and by the fast path, measured side by side.
//!
//! A row without its number makes the exit status 1.

mod bounds;
mod generator;
mod measure;
mod meter;
mod packets;
mod path;
mod remote;
mod report;
mod rounds;
mod run;
mod sockets;
mod stats;
mod testbed;
mod variants;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The benchmark: kernel path, fast path and bare nodes side by side. Needs root.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    // Optional to clap, whose required arguments a subcommand would be asked for too.
    #[command(flatten)]
    run: Option<run::Options>,
}

/// What else it can do.
#[derive(Debug, Subcommand)]
enum Command {
    /// Answers `bench client` on another node, in a pod or on the host; no root needed
    Server(remote::server::Options),
    /// Measures the way to a `bench server` on another node, by the kernel and by the fast path; no root needed
    Client(remote::client::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match (cli.command, cli.run) {
        (Some(Command::Server(options)), _) => remote::server::run(&options),
        (Some(Command::Client(options)), _) => remote::client::run(&options),
        (None, Some(options)) => run::run(&options),
        (None, None) => unreachable!("clap asks for what is required"),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! The benchmark: what forwarding a packet costs by the kernel's path and by the fast path, measured side by side.
//!
//! A row without its number makes the exit status 1, a bound that was to be asserted and is missed 3.

mod bounds;
mod compare;
mod generator;
mod machine;
mod measure;
mod meter;
mod output;
mod packets;
mod path;
mod progress;
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
    #[command(flatten)]
    run: run::Options,
    #[command(flatten)]
    outputs: output::Outputs,
}

/// What else it can do.
#[derive(Debug, Subcommand)]
enum Command {
    /// Put two reports side by side: what has changed, the largest change first. Needs no root.
    Compare(compare::Options),
    /// Make a report's text, CSV and page again from its JSON file. Needs no root.
    Show(output::ShowOptions),
    /// Answer `bench client` on another node, in a pod or on the host. Needs no root.
    Server(remote::server::Options),
    /// Measure the way to a `bench server` on another node, by the kernel and by the fast path. Needs no root.
    Client(remote::client::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(command) => command.run().map(|is_well| {
            if is_well {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }),
        None => run::run(&cli.run, &cli.outputs).map(ExitCode::from),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

impl Command {
    fn run(&self) -> anyhow::Result<bool> {
        match self {
            Self::Compare(options) => compare::run(options),
            Self::Show(options) => output::show(options),
            Self::Server(options) => remote::server::run(options),
            Self::Client(options) => remote::client::run(options),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_a_command_needs_no_agent() {
        Cli::command().debug_assert();
        let parsed = Cli::try_parse_from(["bench", "show", "a.json", "--html=a.html"]);
        assert!(matches!(parsed.unwrap().command, Some(Command::Show(_))));
        let run = ["bench", "--agent=a", "--generator-object=b", "--json=c"];
        assert!(Cli::try_parse_from(run).unwrap().command.is_none());
        // Where one variable of the environment is set and the other is not.
        let half = Cli::try_parse_from(["bench", "--agent=a"]).unwrap_err();
        assert!(half.to_string().contains("--generator-object"), "{half}");
        assert!(Cli::try_parse_from(["bench", "--json=c", "show", "a.json"]).is_err());
        let limit = ["bench", "compare", "a", "b", "--fail-above=-1"];
        let said = Cli::try_parse_from(limit).unwrap_err().to_string();
        assert!(
            said.contains("--fail-above") && said.contains("not negative"),
            "{said}"
        );
    }
}

//! Throw-away.
use clap::Parser;
use std::{path::Path, process::ExitCode};
#[path = "../src/demo/mod.rs"]
mod demo;
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: demo::Options,
    #[arg(
        long,
        env = "AGENT",
        default_value = "/work/wt-agent/target/debug/flannel-agent"
    )]
    agent: String,
}
fn main() -> ExitCode {
    real().unwrap_or_else(|e| {
        eprintln!("error: {e:#}");
        ExitCode::FAILURE
    })
}
fn real() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    if cli.options.clean {
        return demo::clean();
    }
    demo::run(&cli.options, Path::new(&cli.agent))
}

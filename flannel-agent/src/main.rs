//! The agent's executable; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    flannel_agent::cmd::main(std::env::args_os().collect())
}

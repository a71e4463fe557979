//! The CNI plugin `flannel`: reads `subnet.env`, and lets another plugin (`bridge`, unless told otherwise) do the work
//! with what it says there.
//!
//! It runs once for each pod that comes and goes. So nothing here may need BPF, etcd or an async runtime, and nothing
//! may ask the agent: the files are the interface, as they are upstream (flannel-io/cni-plugin, `flannel.go`).
//!
//! ```text
//!   environment ─► request ─┐
//!   stdin ───────► netconf ─┼─► delegate ─► state file ─► invoke ─► result on stdout
//!   subnet.env ──► env ─────┘   (its config)
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`request`] | what the runtime asks for, from the environment |
//! | [`version`] | versions of the CNI specification, and the commands that came with them |
//! | [`netconf`] | the network config on standard input |
//! | [`mod@env`] | `subnet.env` |
//! | [`delegate`] | the config for the plugin that does the work |
//! | [`go_json`] | JSON to the byte as Go writes it |
//! | [`invoke`] | runs that plugin |
//! | [`state`], [`lock`] | what is remembered of each attachment, and one command at a time for a container |
//! | [`commands`] | ADD, DEL, CHECK, STATUS |
//! | [`gc`] | GC |
//! | [`error`] | what can go wrong, and the numbers that the specification has for it |

pub mod commands;
pub mod delegate;
pub mod env;
pub mod error;
pub mod gc;
pub mod go_json;
pub mod invoke;
pub mod lock;
pub mod netconf;
pub mod request;
pub mod state;
pub mod version;

#[cfg(test)]
mod tests;

use std::{
    io::{self, Read as _, Write as _},
    process::ExitCode,
};

use self::{
    error::Error,
    invoke::Plugins,
    netconf::NetConf,
    request::{Command, Request},
};

/// The plugin: environment and standard input to standard output and exit status.
pub fn main() -> ExitCode {
    let variable = |name: &str| std::env::var_os(name).unwrap_or_default();
    if variable("CNI_COMMAND").is_empty() {
        eprintln!("{}", about());
        return ExitCode::SUCCESS;
    }
    let (answer, code) = match run(variable) {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(error) => (error.to_json().into_bytes(), ExitCode::FAILURE),
    };
    match io::stdout().write_all(&answer) {
        Ok(()) => code,
        Err(error) => {
            eprintln!("cannot write the answer to standard output: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What it says to somebody who runs it by hand.
fn about() -> String {
    format!(
        "CNI plugin flannel, version {} (flannel-agent). A container runtime runs it: the command is in CNI_COMMAND, the \
         network config on standard input.\nCNI protocol versions supported: {}",
        env!("CARGO_PKG_VERSION"),
        version::SUPPORTED.join(", ")
    )
}

fn run(variable: impl Fn(&str) -> std::ffi::OsString) -> Result<Vec<u8>, Error> {
    let request = Request::from_variables(variable)?;
    if request.command == Command::Version {
        return Ok(version::answer());
    }
    let mut input = Vec::new();
    io::stdin().read_to_end(&mut input).map_err(Error::Input)?;
    let conf = NetConf::parse(&input)?;
    version::check(&conf.version, &request.command)?;
    let plugins = Plugins::new(request.path);
    match &request.command {
        Command::Add(attachment) => return commands::add(&conf, attachment, &plugins),
        Command::Del(attachment) => commands::del(&conf, attachment, &plugins)?,
        Command::Check(attachment) => commands::check(&conf, attachment, &plugins)?,
        Command::Gc => gc::gc(&conf, &plugins)?,
        Command::Status => commands::status(&conf, &plugins)?,
        Command::Version => return Ok(version::answer()),
    }
    Ok(Vec::new())
}

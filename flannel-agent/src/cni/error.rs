//! What can go wrong, with the numbers that the CNI specification 1.1 (section 5, "Error") has for it.

use std::{io, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{env, version};

/// Error codes of the specification, and the one that the reference library uses for everything else.
pub mod code {
    /// The config asks for a version of the specification that the plugin does not have.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// An environment variable is missing or wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO_FAILURE: u32 = 5;
    /// Something is no JSON of the expected shape.
    pub const DECODING_FAILURE: u32 = 6;
    /// The network config breaks a rule.
    pub const INVALID_NETWORK_CONFIG: u32 = 7;
    /// A passing condition: the runtime should try again later.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: no ADD can be served.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: no ADD can be served, and containers that are attached may be cut off.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// The reference library's code for errors that have none (`types.ErrInternal`).
    pub const INTERNAL: u32 = 999;
}

/// An error as plugins report it on standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The version of the specification that this object follows.
    #[serde(
        rename = "cniVersion",
        default,
        skip_serializing_if = "String::is_empty"
    )]
    pub version: String,
    /// See [`code`].
    #[serde(default)]
    pub code: u32,
    /// What went wrong, in short.
    #[serde(default)]
    pub msg: String,
    /// More about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Environment variables that the command needs are not set.
    #[error("required env variables [{0}] missing")]
    MissingVariables(String),
    /// An environment variable has a value that breaks a rule.
    #[error("{rule}")]
    Variable {
        /// Name and value.
        assignment: String,
        /// The rule, in the reference library's words.
        rule: &'static str,
    },
    /// `CNI_COMMAND` is none of the specification's.
    #[error("unknown CNI_COMMAND: {0}")]
    UnknownCommand(String),
    /// Standard input cannot be read.
    #[error("error reading from stdin: {0}")]
    Input(io::Error),
    /// The network config is no JSON, or a field has the wrong type.
    #[error("failed to load flannel netconf file: failed to load netconf: {0}")]
    NotJson(String),
    /// The network config breaks a rule.
    #[error("{problem}")]
    Config {
        /// What is wrong.
        problem: String,
        /// Which value it has, or what to do.
        details: String,
    },
    /// The config's version of the specification does not do.
    #[error(transparent)]
    Version(#[from] version::Error),
    /// ADD without a usable `subnet.env`. The text is upstream's, by which operators find it.
    #[error(
        "failed to load flannel 'subnet.env' file: {0}. Check the flannel pod log for this node."
    )]
    SubnetEnv(env::Error),
    /// STATUS without a usable `subnet.env`.
    #[error("flannel is not ready on this node: {problem}")]
    NotReady {
        /// What is wrong with the file.
        problem: env::Error,
        /// Whether containers are attached, which may be cut off then.
        attached: bool,
    },
    /// A state file, its directory or a lock cannot be read or written.
    #[error("{operation} {}: {source}", path.display())]
    State {
        /// What was tried.
        operation: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another command for the same container goes on for too long.
    #[error("another command for container {container} has been at work for more than {seconds} s")]
    Busy {
        /// The container.
        container: String,
        /// How long this one has waited.
        seconds: u64,
    },
    /// The delegate could not be run.
    #[error("failed to delegate {operation}: {problem}")]
    Delegate {
        /// The command in lower case, as upstream writes it.
        operation: String,
        /// Why.
        problem: String,
    },
    /// What the delegate itself reported.
    #[error("{}", .0.msg)]
    Reported(Report),
    /// Some of what GC had to remove is still there.
    #[error("{} stale attachments could not be removed", .0.len())]
    Garbage(Vec<String>),
}

/// What to do about a `subnet.env` that is not there or not usable.
const SUBNET_ENV_REMEDY: &str = "flannel-agent (or flanneld) writes this file once it has a subnet: see whether it runs \
    on this node, whether `flannel-agent status` shows a lease, and whether its --subnet-file is the subnetFile of this \
    network config";

impl Error {
    /// The number that the specification has for it.
    pub fn code(&self) -> u32 {
        match self {
            Self::MissingVariables(_) | Self::Variable { .. } | Self::UnknownCommand(_) => {
                code::INVALID_ENVIRONMENT
            }
            Self::Input(_) | Self::State { .. } => code::IO_FAILURE,
            Self::NotJson(_) => code::DECODING_FAILURE,
            Self::Config { .. } => code::INVALID_NETWORK_CONFIG,
            Self::Version(_) => code::INCOMPATIBLE_VERSION,
            Self::SubnetEnv(_) | Self::Busy { .. } => code::TRY_AGAIN_LATER,
            Self::NotReady { attached: true, .. } => code::LIMITED_CONNECTIVITY,
            Self::NotReady {
                attached: false, ..
            } => code::NOT_AVAILABLE,
            Self::Delegate { operation, .. } if operation == "status" => code::NOT_AVAILABLE,
            Self::Delegate { .. } | Self::Garbage(_) => code::INTERNAL,
            Self::Reported(report) => report.code,
        }
    }

    /// What is known beyond the message; empty if nothing is.
    fn details(&self) -> String {
        match self {
            Self::Variable { assignment, .. } => assignment.clone(),
            Self::Config { details, .. } => details.clone(),
            Self::Version(error) => error.details(),
            Self::SubnetEnv(_) | Self::NotReady { .. } => SUBNET_ENV_REMEDY.to_owned(),
            Self::Reported(report) => report.details.clone(),
            Self::Garbage(failures) => failures.join("; "),
            _ => String::new(),
        }
    }

    /// The object for standard output.
    pub fn report(&self) -> Report {
        Report {
            version: version::CURRENT.to_owned(),
            code: self.code(),
            msg: self.to_string(),
            details: self.details(),
        }
    }

    /// [`Error::report`] as text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(&self.report()).expect("strings and numbers are JSON")
    }
}

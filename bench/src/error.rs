//! The lab's one error type. Errors name what was attempted and on what, so that a failed test says where to look.

use std::{io, process::ExitStatus, time::Duration};

/// What can go wrong while a lab is built, used or torn down.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call or file operation failed.
    #[error("{operation} {object}: {cause}")]
    Io {
        /// What was attempted, such as `read` or `mount`.
        operation: &'static str,
        /// The path, namespace or address that it was attempted on.
        object: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// A helper program ended with failure.
    #[error("{command}: {status}\n{output}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed, error output first.
        output: String,
    },
    /// A condition did not come true in time.
    #[error("waited {:.1} s for {what}: {last}", waited.as_secs_f64())]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
        /// The state seen last.
        last: String,
    },
    /// A long-running program ended although it should still run.
    #[error("{name} ended early: {status}\nits last output:\n{output}")]
    Ended {
        /// The program's role, such as `agent n1`.
        name: String,
        /// How it ended.
        status: String,
        /// The end of its log.
        output: String,
    },
    /// Some text was not what its format promises.
    #[error("{what} cannot be understood: {reason}: {text:?}")]
    Parse {
        /// What the text is.
        what: String,
        /// What is wrong with it.
        reason: String,
        /// The text.
        text: String,
    },
    /// A request that this lab cannot fulfil.
    #[error("{0}")]
    Unsupported(String),
}

/// The result of lab operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Attaches the operation and its object to an [`io::Error`] or [`rustix::io::Errno`].
pub trait IoContext<T> {
    /// Turns the error into [`Error::Io`]; `object` is only rendered in the error case.
    fn context(self, operation: &'static str, object: impl std::fmt::Display) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn context(self, operation: &'static str, object: impl std::fmt::Display) -> Result<T> {
        self.map_err(|error| Error::Io {
            operation,
            object: object.to_string(),
            cause: error.into(),
        })
    }
}

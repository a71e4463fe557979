//! Versions of the CNI specification: which there are, and which command came with which.

use super::{invoke::DECLARES_VERSIONS, request::Command};

/// All versions, oldest first: nothing in the plugin depends on one, the delegate's answer is passed on as it is.
pub const SUPPORTED: [&str; 7] = [
    "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", CURRENT,
];

/// The newest.
pub const CURRENT: &str = "1.1.0";
/// What a config without `cniVersion` is written for.
const OLDEST: &str = "0.1.0";
/// Brought CHECK.
const WITH_CHECK: &str = "0.4.0";
/// Brought GC and STATUS.
pub const WITH_GC_AND_STATUS: &str = "1.1.0";

/// Why a config's version does not do. The texts are the reference library's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is none of [`SUPPORTED`].
    #[error("incompatible CNI versions")]
    Unsupported(String),
    /// The command came later.
    #[error("config version does not allow {command}")]
    TooOld {
        /// The command.
        command: &'static str,
        /// The config's version.
        version: String,
        /// The version that brought it.
        since: &'static str,
    },
}

impl Error {
    /// What an operator needs to know beyond the message.
    pub fn details(&self) -> String {
        match self {
            Self::Unsupported(version) => {
                format!("config is {version:?}, plugin supports {SUPPORTED:?}")
            }
            Self::TooOld { version, since, .. } => {
                format!("cniVersion is {version:?}, and must be {since:?} or later")
            }
        }
    }
}

/// Position among [`SUPPORTED`], so that later versions compare greater; none of an unknown one.
fn rank(version: &str) -> Option<usize> {
    let version = if version.is_empty() { OLDEST } else { version };
    SUPPORTED.iter().position(|known| *known == version)
}

/// Whether a config of this version may be used for this command.
///
/// # Errors
/// If not, see [`Error`].
pub fn check(version: &str, command: &Command) -> Result<(), Error> {
    let rank_of_config = rank(version).ok_or_else(|| Error::Unsupported(version.to_owned()))?;
    let since = match command {
        Command::Check(_) => WITH_CHECK,
        Command::Gc | Command::Status => WITH_GC_AND_STATUS,
        Command::Add(_) | Command::Del(_) | Command::Version => OLDEST,
    };
    if rank(since).is_some_and(|rank| rank_of_config >= rank) {
        return Ok(());
    }
    Err(Error::TooOld {
        command: command.name(),
        version: version.to_owned(),
        since,
    })
}

/// The answer to VERSION.
pub fn answer() -> Vec<u8> {
    let answer = serde_json::json!({ "cniVersion": CURRENT, DECLARES_VERSIONS: SUPPORTED });
    format!("{answer}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::request::Attachment;

    #[test]
    fn commands_need_the_version_that_brought_them() {
        let attachment = Attachment {
            container: "c".into(),
            interface: "eth0".into(),
        };
        let allowed = |version, command: Command| check(version, &command).is_ok();
        for version in SUPPORTED.iter().chain(&[""]) {
            assert!(
                allowed(version, Command::Add(attachment.clone())),
                "{version}"
            );
            assert!(
                allowed(version, Command::Del(attachment.clone())),
                "{version}"
            );
        }
        assert!(!allowed("0.3.1", Command::Check(attachment.clone())));
        assert!(allowed("0.4.0", Command::Check(attachment)));
        assert!(!allowed("1.0.0", Command::Gc));
        assert!(!allowed("", Command::Status));
        assert!(allowed("1.1.0", Command::Gc) && allowed("1.1.0", Command::Status));
        let error = check("2.0.0", &Command::Gc).unwrap_err();
        assert_eq!(error, Error::Unsupported("2.0.0".into()));
        assert!(error.details().contains("1.1.0"));
    }

    #[test]
    fn the_answer_names_all_versions() {
        assert_eq!(
            String::from_utf8(answer()).unwrap(),
            r#"{"cniVersion":"1.1.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#
                .to_owned()
                + "\n"
        );
    }
}

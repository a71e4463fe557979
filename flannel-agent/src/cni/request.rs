//! What the runtime asks for: the environment variables of the CNI specification 1.1, section 2, checked in the order and
//! with the words of the reference library (`pkg/skel`, `pkg/utils`).

use std::ffi::OsString;

use super::error::Error;

/// Longest name of an interface in bytes, `IFNAMSIZ` without the final zero.
const MAX_INTERFACE_NAME: usize = 15;

/// One interface of one container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment {
    /// `CNI_CONTAINERID`: letters, digits, `_`, `.` and `-`, so it is a file name.
    pub container: String,
    /// `CNI_IFNAME`: without `/` and `:`.
    pub interface: String,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach.
    Add(Attachment),
    /// Detach.
    Del(Attachment),
    /// Tell whether an attachment is as ADD left it.
    Check(Attachment),
    /// Remove what belongs to no attachment.
    Gc,
    /// Tell whether ADD can be served.
    Status,
    /// Tell which versions of the specification are understood.
    Version,
}

impl Command {
    /// `CNI_COMMAND`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Add(_) => "ADD",
            Self::Del(_) => "DEL",
            Self::Check(_) => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

/// A call of the plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is to be done.
    pub command: Command,
    /// `CNI_PATH`: directories with plugins, separated by colons.
    pub path: OsString,
}

impl Request {
    /// Reads the request from environment variables; `variable` returns nothing for one that is not set.
    ///
    /// # Errors
    /// For a variable that the command needs and that is missing or wrong, or an unknown command.
    pub fn from_variables(variable: impl Fn(&str) -> OsString) -> Result<Self, Error> {
        let name = variable("CNI_COMMAND");
        let name = name.to_string_lossy();
        let (attached, in_namespace) = match &*name {
            "ADD" | "CHECK" => (true, true),
            "DEL" => (true, false),
            _ => (false, false),
        };
        let needed = [
            ("CNI_CONTAINERID", attached),
            ("CNI_NETNS", in_namespace),
            ("CNI_IFNAME", attached),
            ("CNI_PATH", attached || matches!(&*name, "GC" | "STATUS")),
        ];
        let mut missing = Vec::new();
        for (variable_name, _) in needed.into_iter().filter(|(_, needed)| *needed) {
            let value = variable(variable_name);
            if value.is_empty() {
                missing.push(variable_name);
                continue;
            }
            let value = value.to_string_lossy();
            let rule = match variable_name {
                "CNI_CONTAINERID" if !is_plain_name(&value) => {
                    Some("invalid characters in containerID")
                }
                "CNI_IFNAME" => broken_interface_rule(&value),
                _ => None,
            };
            if let Some(rule) = rule {
                let assignment = format!("{variable_name}={value}");
                return Err(Error::Variable { assignment, rule });
            }
        }
        if !missing.is_empty() {
            return Err(Error::MissingVariables(missing.join(",")));
        }
        let text = |name| variable(name).to_string_lossy().into_owned();
        let attachment = || Attachment {
            container: text("CNI_CONTAINERID"),
            interface: text("CNI_IFNAME"),
        };
        let command = match &*name {
            "ADD" => Command::Add(attachment()),
            "DEL" => Command::Del(attachment()),
            "CHECK" => Command::Check(attachment()),
            "GC" => Command::Gc,
            "STATUS" => Command::Status,
            "VERSION" => Command::Version,
            other => return Err(Error::UnknownCommand(other.to_owned())),
        };
        let path = variable("CNI_PATH");
        Ok(Self { command, path })
    }
}

/// Whether a text may be a container's identifier or a network's name: letters, digits, `_`, `.` and `-`, first a letter
/// or a digit.
pub fn is_plain_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// The rule that the name of an interface breaks, if it does (`dev_valid_name` in the kernel's `net/core/dev.c`).
fn broken_interface_rule(name: &str) -> Option<&'static str> {
    if name.len() > MAX_INTERFACE_NAME {
        Some("interface name is too long")
    } else if matches!(name, "." | "..") {
        Some("interface name is . or ..")
    } else if name.contains(|c: char| matches!(c, '/' | ':') || c.is_whitespace()) {
        Some("interface name contains / or : or whitespace characters")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(variables: &[(&str, &str)]) -> Result<Request, String> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            OsString::from(found.map_or("", |(_, value)| value))
        };
        Request::from_variables(variable).map_err(|error| {
            assert_eq!(error.code(), super::super::error::code::INVALID_ENVIRONMENT);
            error.to_string()
        })
    }

    const ADD: [(&str, &str); 5] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "some-container_1.x"),
        ("CNI_NETNS", "/run/netns/a"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];

    fn with(name: &str, value: &'static str) -> Result<Request, String> {
        request(&ADD.map(|(known, old)| (known, if known == name { value } else { old })))
    }

    #[test]
    fn complete_requests_are_understood() {
        let attachment = Attachment {
            container: "some-container_1.x".into(),
            interface: "eth0".into(),
        };
        let command = |name| with("CNI_COMMAND", name).map(|request| request.command);
        assert_eq!(command("ADD"), Ok(Command::Add(attachment.clone())));
        assert_eq!(command("DEL"), Ok(Command::Del(attachment.clone())));
        assert_eq!(command("CHECK"), Ok(Command::Check(attachment)));
        assert_eq!(command("GC"), Ok(Command::Gc));
        assert_eq!(command("STATUS"), Ok(Command::Status));
        assert_eq!(command("UPDATE"), Err("unknown CNI_COMMAND: UPDATE".into()));
        assert_eq!(
            request(&[("CNI_COMMAND", "VERSION")]).unwrap().command,
            Command::Version
        );
    }

    #[test]
    fn what_is_missing_is_listed_for_each_command() {
        let missing = |command| request(&[("CNI_COMMAND", command)]).unwrap_err();
        let list = |names| format!("required env variables [{names}] missing");
        let all = list("CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH");
        assert_eq!(missing("ADD"), all);
        assert_eq!(missing("CHECK"), all);
        assert_eq!(missing("DEL"), list("CNI_CONTAINERID,CNI_IFNAME,CNI_PATH"));
        assert_eq!(missing("GC"), list("CNI_PATH"));
        assert_eq!(missing("STATUS"), list("CNI_PATH"));
    }

    #[test]
    fn names_that_would_lead_elsewhere_are_refused() {
        for bad in ["../x", "a/b", ".hidden", "-x", "a:b", "a b"] {
            let error = with("CNI_CONTAINERID", bad).unwrap_err();
            assert_eq!(error, "invalid characters in containerID", "{bad}");
        }
        for bad in ["a-name-of-16-byt", ".", "..", "a/b", "a:b", "a b"] {
            let error = with("CNI_IFNAME", bad).unwrap_err();
            assert!(error.starts_with("interface name"), "{bad}: {error}");
        }
    }
}

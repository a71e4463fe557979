//! Makes flanneld's way of giving options that of clap: Go's spellings, and `FLANNELD_*` variables.
//!
//! Go takes `-name` and `--name` for the same. A variable counts unless the option is on the command line; an empty one
//! is ignored; one that cannot be parsed is ignored with a warning, as upstream does.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::Path,
};

use clap::CommandFactory as _;

use super::args::RunOptions;

/// Name of flanneld's executable: called by that name, the agent acts as it.
const FLANNELD: &str = "flanneld";
/// What is for the agent itself and not for its `run` command.
const TOP_LEVEL: [&str; 6] = ["-h", "--help", "-help", "-V", "--version", "-version"];
/// Prefix of the variables.
const VARIABLE_PREFIX: &str = "FLANNELD_";

/// A command line that clap understands.
#[derive(Debug, PartialEq, Eq)]
pub struct Invocation {
    /// Arguments, the program's name first.
    pub argv: Vec<OsString>,
    /// Lines to log.
    pub warnings: Vec<String>,
}

/// Prepares `argv`, given the environment.
pub fn prepare(argv: Vec<OsString>, environment: &BTreeMap<OsString, OsString>) -> Invocation {
    let mut argv = argv.into_iter();
    let program = argv.next().unwrap_or_else(|| "flannel-agent".into());
    let called_flanneld = Path::new(&program).file_name() == Some(OsStr::new(FLANNELD));
    let mut arguments: Vec<OsString> = argv.collect();
    let first = arguments
        .first()
        .and_then(|first| first.to_str())
        .unwrap_or_default();
    if TOP_LEVEL.contains(&first) {
        let long = if matches!(first, "-h" | "--help" | "-help") {
            "--help"
        } else {
            "--version"
        };
        return Invocation {
            argv: vec![program, long.into()],
            warnings: Vec::new(),
        };
    }
    if called_flanneld || first.starts_with('-') {
        arguments.insert(0, "run".into());
    }
    if arguments.first().is_none_or(|command| command != "run") {
        arguments.insert(0, program);
        return Invocation {
            argv: arguments,
            warnings: Vec::new(),
        };
    }
    let given: Vec<OsString> = arguments.split_off(1).into_iter().map(two_dashes).collect();
    let (from_environment, warnings) = variables(&given, environment);
    Invocation {
        argv: [program, "run".into()]
            .into_iter()
            .chain(from_environment)
            .chain(given)
            .collect(),
        warnings,
    }
}

/// `-name` as `--name`; `-h` stays.
fn two_dashes(argument: OsString) -> OsString {
    match argument.to_str() {
        Some(text)
            if text.starts_with('-')
                && !text.starts_with("--")
                && text.len() > 1
                && text != "-h" =>
        {
            format!("-{text}").into()
        }
        _ => argument,
    }
}

/// Options from variables, for those that are not given on the command line.
fn variables(
    given: &[OsString],
    environment: &BTreeMap<OsString, OsString>,
) -> (Vec<OsString>, Vec<String>) {
    let mut arguments = Vec::new();
    let mut warnings = Vec::new();
    for option in RunOptions::command().get_arguments() {
        let Some(long) = option.get_long().filter(|long| *long != "help") else {
            continue;
        };
        let variable = format!("{VARIABLE_PREFIX}{}", long.to_uppercase().replace('-', "_"));
        let Some(value) = environment
            .get(OsStr::new(&variable))
            .filter(|value| !value.is_empty())
        else {
            continue;
        };
        if given.iter().any(|argument| is_option(argument, long)) {
            continue;
        }
        let mut argument = OsString::from(format!("--{long}="));
        argument.push(value);
        match RunOptions::command().try_get_matches_from([OsStr::new("run"), &argument]) {
            Ok(_) => arguments.push(argument),
            // The value is not repeated: it may be a password.
            Err(_) => warnings.push(format!(
                "{variable}: not a valid value for --{long}; ignored"
            )),
        }
    }
    (arguments, warnings)
}

fn is_option(argument: &OsStr, long: &str) -> bool {
    argument
        .to_str()
        .and_then(|text| text.strip_prefix("--"))
        .is_some_and(|text| text.split('=').next() == Some(long))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(argv: &[&str], environment: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let environment = environment
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        let invocation = prepare(argv.iter().map(OsString::from).collect(), &environment);
        (
            invocation
                .argv
                .iter()
                .map(|a| a.to_str().unwrap().to_owned())
                .collect(),
            invocation.warnings,
        )
    }

    fn argv(argv: &[&str]) -> Vec<String> {
        prepared(argv, &[]).0
    }

    #[test]
    fn flags_alone_mean_run() {
        assert_eq!(argv(&["a", "-iface=eth0"]), ["a", "run", "--iface=eth0"]);
        assert_eq!(
            argv(&["a", "--iface", "eth0", "-v=3"]),
            ["a", "run", "--iface", "eth0", "--v=3"]
        );
        assert_eq!(argv(&["/opt/bin/flanneld"]), ["/opt/bin/flanneld", "run"]);
        assert_eq!(
            argv(&["flanneld", "-ip-masq"]),
            ["flanneld", "run", "--ip-masq"]
        );
        assert_eq!(
            argv(&["a", "run", "-ip-masq=false"]),
            ["a", "run", "--ip-masq=false"]
        );
    }

    #[test]
    fn other_commands_and_top_level_flags_stay() {
        assert_eq!(argv(&["a"]), ["a"]);
        assert_eq!(argv(&["a", "status", "--json"]), ["a", "status", "--json"]);
        assert_eq!(argv(&["a", "-version"]), ["a", "--version"]);
        assert_eq!(argv(&["flanneld", "-h"]), ["flanneld", "--help"]);
    }

    #[test]
    fn variables_fill_in_what_the_command_line_leaves_open() {
        let environment = [
            ("FLANNELD_IFACE", "eth7"),
            ("FLANNELD_IP_MASQ", "1"),
            ("FLANNELD_ETCD_PREFIX", ""),
            ("FLANNELD_UNKNOWN", "x"),
            ("IFACE", "eth8"),
        ];
        assert_eq!(
            prepared(&["flanneld"], &environment).0,
            ["flanneld", "run", "--iface=eth7", "--ip-masq=1"]
        );
        assert_eq!(
            prepared(&["flanneld", "-iface", "eth0"], &environment).0,
            ["flanneld", "run", "--ip-masq=1", "--iface", "eth0"]
        );
    }

    #[test]
    fn a_variable_that_cannot_be_parsed_is_only_warned_about() {
        let (argv, warnings) = prepared(
            &["flanneld"],
            &[
                ("FLANNELD_IP_MASQ", "perhaps"),
                ("FLANNELD_ETCD_PASSWORD", "secret"),
            ],
        );
        assert_eq!(argv, ["flanneld", "run", "--etcd-password=secret"]);
        assert_eq!(
            warnings,
            ["FLANNELD_IP_MASQ: not a valid value for --ip-masq; ignored"]
        );
    }
}

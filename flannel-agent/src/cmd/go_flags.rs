//! Makes flanneld's way of giving options that of clap: Go's spellings, and `FLANNELD_*` variables.
//!
//! Go's `flag` takes `-name` and `--name` for the same. A boolean takes a value only after `=`, so a word behind it
//! ends the options, and flanneld ignores what follows; every other flag takes the next argument, whatever it looks
//! like. A variable counts unless the option is on the command line; an empty one is ignored; one that cannot be parsed
//! is ignored with a warning, as upstream does.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use clap::CommandFactory as _;

use super::args::RunOptions;

/// Name of flanneld's executable: called by that name, the agent acts as it.
const FLANNELD: &str = "flanneld";
/// What is for the agent itself and not for its `run` command, unless it is called as flanneld.
const TOP_LEVEL: [&str; 6] = ["-h", "--help", "-help", "-V", "--version", "-version"];
/// Prefix of the variables.
const VARIABLE_PREFIX: &str = "FLANNELD_";
/// What Go answers with the usage, without being defined.
const HELP: [&str; 2] = ["help", "h"];

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
    if TOP_LEVEL.contains(&first) && !called_flanneld {
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
    let (given, ignored) = as_go_reads(arguments.split_off(1));
    let (from_environment, mut warnings) = variables(&given, environment);
    warnings.extend(ignored);
    Invocation {
        argv: [program, "run".into()]
            .into_iter()
            .chain(from_environment)
            .chain(given)
            .collect(),
        warnings,
    }
}

/// The options as `--name` or `--name=value`, read as Go's `flag.Parse` does, and a warning if arguments are left.
fn as_go_reads(arguments: Vec<OsString>) -> (Vec<OsString>, Option<String>) {
    let command = RunOptions::command();
    let takes_value = |name: &str| {
        let mut options = command.get_arguments();
        let option = options.find(|option| option.get_long() == Some(name));
        option.is_some_and(|option| {
            option
                .get_num_args()
                .is_none_or(|range| range.min_values() > 0)
                && option.get_action().takes_values()
        })
    };
    let mut options = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let bytes = argument.as_bytes();
        let dashes = bytes.iter().take_while(|byte| **byte == b'-').count();
        if dashes == 0 || argument == "-" || argument == "--" {
            return (options, left(&argument, arguments));
        }
        // More dashes are no flag in Go either; clap says so.
        let name = OsStr::from_bytes(&bytes[dashes.min(2)..]);
        let mut option = OsString::from("--");
        option.push(name);
        if name.to_str().is_some_and(|name| HELP.contains(&name)) {
            option = "--help".into();
        } else if name.to_str().is_some_and(takes_value)
            && let Some(value) = arguments.next()
        {
            option.push("=");
            option.push(value);
        }
        options.push(option);
    }
    (options, None)
}

/// What flanneld silently leaves aside. Values are not shown: one may be a password.
fn left(first: &OsStr, rest: impl Iterator<Item = OsString>) -> Option<String> {
    let count = rest.count();
    if first == "--" {
        return (count > 0).then(|| {
            format!("the {count} arguments after -- are ignored, as flanneld ignores them")
        });
    }
    Some(format!(
        "{first:?} is no option: it and the {count} arguments after it are ignored, as flanneld ignores them; \
         a boolean takes its value after =, as in --ip-masq=true"
    ))
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
mod tests;

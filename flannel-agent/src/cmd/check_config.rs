//! `flannel-agent check-config`: what the agent makes of a network config, and all that is wrong with it.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::Path,
    process::ExitCode,
};

use super::args::CheckConfigOptions;
use crate::netconf::{self, Check};

/// Prints the config with all defaults on standard output, and what was found on standard error; fails if the agent would
/// refuse it.
pub fn run(options: &CheckConfigOptions) -> ExitCode {
    let text = match read(&options.file) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("error: {}: {error}", options.file.display());
            return ExitCode::FAILURE;
        }
    };
    let check = netconf::check(&text);
    eprint!("{}", findings(&check));
    let Some(config) = check.config else {
        return ExitCode::FAILURE;
    };
    let shown = serde_json::to_string_pretty(&config).expect("plain values");
    // Who reads only the findings may have closed it.
    match writeln!(io::stdout(), "{shown}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The file, or standard input if it is `-`.
fn read(file: &Path) -> io::Result<Vec<u8>> {
    if file != Path::new("-") {
        return fs::read(file);
    }
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text)?;
    Ok(text)
}

/// One line each, errors first.
fn findings(check: &Check) -> String {
    let errors = check.errors.iter().map(|error| format!("error: {error}\n"));
    let warnings = check.warnings.iter();
    let warnings = warnings.map(|warning| format!("warning: {warning}\n"));
    errors.chain(warnings).collect()
}

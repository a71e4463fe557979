//! `bench compare`: two reports side by side, the largest change first.

mod change;
mod gate;

use std::{fmt::Write, path::PathBuf};

use anyhow::{Result, bail};
use clap::Args;

use crate::{output, report::Report};

use change::Changes;

/// What is compared.
#[derive(Debug, Args)]
pub struct Options {
    /// A report that was written by `--json`, such as that of an earlier build.
    #[arg(value_name = "A.json")]
    before: PathBuf,
    /// The report to compare with it.
    #[arg(value_name = "B.json")]
    after: PathBuf,
    /// Exit with status 1 if the ratio to the kernel of a bounded figure differs by more than so many percent, up or
    /// down, or if B lacks a bounded figure that A has.
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    fail_above: Option<f64>,
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if percent.is_finite() && percent >= 0.0 => Ok(percent),
        _ => Err("give a number that is not negative, such as 5".to_owned()),
    }
}

/// Compares and prints; whether no bounded figure has changed by more than it may.
///
/// # Errors
/// If a file is not a report, or if there is no bounded figure in A where a limit is asked for.
pub fn run(options: &Options) -> Result<bool> {
    let before = output::read(&options.before)?;
    let after = output::read(&options.after)?;
    output::say(&text(&before, &after))?;
    let Some(limit) = options.fail_above else {
        return Ok(true);
    };
    let gated = gate::judge(&before, &after, limit);
    if gated.judged == 0 {
        bail!(
            "--fail-above={limit}: {} has no bounded figure with a ratio to the kernel; measure with services, such as \
             --measure forward",
            options.before.display()
        );
    }
    output::say(&gated.text(limit))?;
    Ok(gated.failed.is_empty())
}

/// All that is to say of two reports.
fn text(before: &Report, after: &Report) -> String {
    let mut text = String::new();
    let differences = differing_facts(before, after);
    if differences.is_empty() {
        text.push_str("same machine, commit, date and effort\n");
    }
    for (name, before, after) in differences {
        let _ = writeln!(text, "differs: {name}: A {before}, B {after}");
    }
    let changes = Changes::between(before, after);
    changes.write(&mut text);
    text
}

/// What is not alike in what the reports say of their machines and efforts.
fn differing_facts(before: &Report, after: &Report) -> Vec<(String, String, String)> {
    let (before, after) = (all_facts(before), all_facts(after));
    let mut names: Vec<&String> = before.iter().map(|(name, _)| name).collect();
    names.extend(after.iter().map(|(name, _)| name));
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(*name));
    let of = |facts: &[(String, String)], wanted: &str| {
        let found = facts.iter().find(|(name, _)| name == wanted);
        found.map_or_else(|| "(not said)".to_owned(), |(_, value)| value.clone())
    };
    names
        .into_iter()
        .map(|name| (name.clone(), of(&before, name), of(&after, name)))
        .filter(|(_, before, after)| before != after)
        .collect()
}

fn all_facts(report: &Report) -> Vec<(String, String)> {
    let mut facts: Vec<_> = report
        .facts()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    let mitigations = report.machine.mitigations.iter();
    facts.extend(mitigations.map(|(name, value)| (format!("mitigation of {name}"), value.clone())));
    facts
}

#[cfg(test)]
mod tests;

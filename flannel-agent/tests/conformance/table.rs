//! The README's tables, made of the catalogue.

use anyhow::{bail, ensure};

use crate::catalogue::{CHECKS, Check, FAULTS, Kind};
use crate::support::{Outcome, Skipped};

/// Both tables, as `--table` prints them.
pub(crate) fn text() -> String {
    let mut text =
        "| check | upstream's origin | flanneld | flannel-agent |\n|---|---|---|---|\n".to_owned();
    text.extend(CHECKS.iter().map(row));
    text += "\n| fault | upstream's issues | flanneld | flannel-agent |\n|---|---|---|---|\n";
    text.extend(FAULTS.iter().map(row));
    text
}

fn row(check: &Check) -> String {
    let letter = match check.kind {
        Kind::Check => "C",
        Kind::Fault => "F",
    };
    let Check {
        number,
        what,
        origin,
        upstream,
        ours,
        ..
    } = check;
    format!("| {letter}{number} {what} | {origin} | {upstream} | {ours} |\n")
}

/// The README has what `--table` prints.
pub(crate) fn readme_has_it() -> Outcome {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"))?;
    for table in text().split("\n\n") {
        let heading = table.lines().next().unwrap_or_default();
        if !readme.contains(heading) {
            bail!(Skipped(format!("the README has no table {heading:?} yet")));
        }
        ensure!(
            readme.contains(table.trim_end()),
            "the README must have this table:\n{table}"
        );
    }
    Ok(())
}

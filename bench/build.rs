//! Tells the benchmark from which commit it was built, so that its reports can say so.

use std::process::Command;

/// Said outside of a git repository.
const UNKNOWN: &str = "unknown";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Its reflog grows with every commit and checkout, also in a work tree beside the repository.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    // What is measured is built from these: a report must not name a commit that they differ from.
    for sources in ["bench", "flannel-agent", "flannel-common", "flannel-ebpf"] {
        println!("cargo::rerun-if-changed=../{sources}/src");
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"]);
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some();
    let commit = commit.map_or_else(
        || UNKNOWN.to_owned(),
        |commit| commit + if changed { " and changes" } else { "" },
    );
    println!("cargo::rustc-env=BENCH_COMMIT={commit}");
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}

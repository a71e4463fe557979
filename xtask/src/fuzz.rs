//! `cargo xtask fuzz`: libFuzzer on everything that reaches the agent from outside.
//!
//! The targets are in `flannel-agent/fuzz`, where ordinary tests run them too. Coverage comes from LLVM's own pass, which
//! every rustc has; the one thing needed beyond is a C++ compiler for libFuzzer.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{
    build::{self, FLAG_SEPARATOR},
    command,
    setup::{self, Scope},
    workspace::Workspace,
};

/// The crate of the targets, and its program.
const PACKAGE: &str = "flannel-fuzz";
const PROGRAM: &str = "fuzz";
/// Names the target to the program.
const TARGET_VARIABLE: &str = "FLANNEL_FUZZ_TARGET";
/// What libFuzzer needs to know of a run: which edges were taken, and what numbers were compared with.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];
/// Longest input, in bytes: no lease and no message that the agent cares for is longer.
const LONGEST: usize = 4096;
/// An input that takes longer, in seconds, is a finding.
const SLOW: u32 = 5;
/// More memory, in MiB, is a finding.
const MEMORY: u32 = 1024;
/// What a run takes beyond its time: start, seeds, minimising a finding.
const MARGIN: Duration = Duration::from_secs(120);

/// Options of `cargo xtask fuzz`.
#[derive(Debug, Args)]
pub struct Options {
    /// The target; all of them, one after the other, if none is named.
    target: Option<String>,
    /// For how long each is run.
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
}

/// What a run has done.
#[derive(Debug, Default, PartialEq, Eq)]
struct Figures {
    executions: u64,
    edges: u64,
    features: u64,
    inputs: u64,
}

/// Builds the fuzzer and runs it; says whether nothing was found.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    setup::ensure(workspace, Scope::Build)?;
    let seeds = workspace.root.join("flannel-agent/fuzz/seeds");
    let targets = targets(&seeds)?;
    if let Some(wanted) = &options.target {
        ensure!(
            targets.contains(wanted),
            "no target {wanted}: there are {}",
            targets.join(", ")
        );
    }
    let program = program(workspace)?;
    let mut found = false;
    for target in &targets {
        if options
            .target
            .as_ref()
            .is_some_and(|wanted| wanted != target)
        {
            continue;
        }
        println!("{target}: {} s", options.seconds);
        let (figures, finding) = fuzz(workspace, &program, &seeds, target, options.seconds)?;
        let Figures {
            executions,
            edges,
            features,
            inputs,
        } = figures;
        println!(
            "{target}: {executions} executions, {edges} edges, {features} features, {inputs} inputs kept"
        );
        if let Some(finding) = finding {
            found = true;
            println!(
                "{target}: FAILED: the input is in {finding}; make it a seed once it is mended"
            );
        }
    }
    Ok(if found {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The targets, which have a folder of seeds each.
fn targets(seeds: &Path) -> Result<Vec<String>> {
    let entries =
        fs::read_dir(seeds).with_context(|| format!("cannot read {}", seeds.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn folder(workspace: &Workspace) -> PathBuf {
    workspace.target.join("fuzz")
}

fn program(workspace: &Workspace) -> Result<PathBuf> {
    let mut cargo = workspace.cargo();
    cargo
        .args([
            "build",
            "--locked",
            "--profile",
            "fuzz",
            "--package",
            PACKAGE,
        ])
        .args(["--features", "libfuzzer", "--bin", PROGRAM])
        // With a target named, build scripts and macros, which run in the compiler, are not instrumented.
        .args(["--target", &host(workspace)?])
        .arg("--target-dir")
        .arg(folder(workspace))
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join(FLAG_SEPARATOR));
    let made = build::programs(&mut cargo)
        .context("cannot build the fuzzer, which needs a C++ compiler")?;
    made.into_iter()
        .find(|program| program.name == PROGRAM)
        .map(|program| program.path)
        .with_context(|| format!("the build has made no program {PROGRAM}"))
}

/// The machine as cargo's target.
fn host(workspace: &Workspace) -> Result<String> {
    let version = command::stdout(workspace.cargo().args(["--version", "--verbose"]))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned)
        .context("cargo --version does not name the host")
}

/// Runs a target; returns the figures and, if something was found, where the input is.
fn fuzz(
    workspace: &Workspace,
    program: &Path,
    seeds: &Path,
    target: &str,
    seconds: u32,
) -> Result<(Figures, Option<String>)> {
    let inputs = folder(workspace).join("inputs").join(target);
    let findings = folder(workspace).join("findings");
    for folder in [&inputs, &findings] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut figures = Figures::default();
    let mut finding = None;
    let mut fuzzer = Command::new("sh");
    // libFuzzer speaks on standard error.
    fuzzer
        .args(["-c", r#"exec "$0" "$@" 2>&1"#])
        .arg(program)
        .arg(&inputs)
        .arg(seeds.join(target))
        .arg(format!("-artifact_prefix={}/{target}-", findings.display()))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={LONGEST}"))
        .arg(format!("-timeout={SLOW}"))
        .arg(format!("-rss_limit_mb={MEMORY}"))
        .args(["-print_final_stats=1", "-verbosity=1"])
        .env(TARGET_VARIABLE, target);
    let mut tail = Vec::new();
    let limit = Duration::from_secs(seconds.into()) + MARGIN;
    let status = command::lines(&mut fuzzer, limit, |line| {
        read(line, &mut figures);
        finding = finding.take().or_else(|| {
            let (_, path) = line.split_once("Test unit written to ")?;
            Some(path.to_owned())
        });
        if !line.starts_with('#') {
            tail.push(line.to_owned());
        }
    })?;
    if !status.success() {
        for line in &tail {
            println!("  {line}");
        }
        finding = finding.or_else(|| Some(format!("no file; it ended with {status}")));
    }
    Ok((figures, finding))
}

/// Takes what a line of libFuzzer says: `#4096 NEW cov: 312 ft: 901 corp: 44/1Kb …`, or the statistics at the end.
fn read(line: &str, figures: &mut Figures) {
    if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
        figures.executions = count.trim().parse().unwrap_or(figures.executions);
    }
    let mut words = line.split_whitespace();
    let Some(number) = words.next().and_then(|word| word.strip_prefix('#')) else {
        return;
    };
    figures.executions = number.parse().unwrap_or(figures.executions);
    while let Some(word) = words.next() {
        let field = match word {
            "cov:" => &mut figures.edges,
            "ft:" => &mut figures.features,
            "corp:" => &mut figures.inputs,
            _ => continue,
        };
        let number = words.next().and_then(|word| word.split('/').next());
        *field = number
            .and_then(|number| number.parse().ok())
            .unwrap_or(*field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_what_libfuzzer_prints() {
        let mut figures = Figures::default();
        for line in [
            "INFO: Running with entropic power schedule (0xFF, 100).",
            "#2\tINITED cov: 120 ft: 121 corp: 1/1b exec/s: 0 rss: 40Mb",
            "#4096\tNEW    cov: 312 ft: 901 corp: 44/1234b lim: 21 exec/s: 0 rss: 41Mb L: 7/21 MS: 1 CopyPart-",
            "stat::number_of_executed_units: 5000",
        ] {
            read(line, &mut figures);
        }
        assert_eq!(
            figures,
            Figures {
                executions: 5000,
                edges: 312,
                features: 901,
                inputs: 44
            }
        );
    }
}

//! `cargo xtask vm`: other kernels, booted in virtual machines, each with the tests of what differs between kernels.
//!
//! A machine's root file system is this machine's, read-only, with memory over it: the tests find the same tools there.
//! Every machine loads and attaches the programs as the agent does, runs them on single packets, and runs some clusters.
//! What a machine says of time is worth nothing: its processor is emulated.

mod boot;
mod image;
mod kernels;
mod report;
mod results;

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Mutex,
    thread,
    time::Instant,
};

use anyhow::{Context, Result};
use clap::Args;

use self::{image::Extent, report::Row, results::Results};
use crate::{
    build::{self, OBJECT_VARIABLE, Program},
    command,
    setup::{self, Scope},
    test::tally::{Skip, Tally},
    workspace::Workspace,
};

/// The package whose tests are run.
const PACKAGE: &str = "flannel-agent";

/// Kernels that `cargo xtask test` boots: the oldest that the fast path supports, and the newest that there is.
const TESTED: [(&str, Extent); 2] = [("5.10", Extent::Basic), (kernels::NEWEST, Extent::Full)];

/// Options of `cargo xtask vm`.
#[derive(Debug, Args)]
pub struct Options {
    /// A kernel: a version as far as you like, such as 6.1 or 6.18.12, or `newest`; can be given several times [default:
    /// 5.10, 6.1, 6.12 and newest]
    #[arg(long = "kernel", value_name = "V")]
    kernels: Vec<String>,
    /// How many run at a time [default: one per core]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
}

/// What machines run: they see it where it is.
#[derive(Debug)]
pub struct Programs {
    /// The agent.
    agent: PathBuf,
    /// The test program that runs BPF programs on single packets.
    bpf: PathBuf,
    /// The test program with the clusters.
    cluster: PathBuf,
    /// The BPF object.
    object: PathBuf,
    /// The tests' package.
    package: PathBuf,
}

impl Programs {
    /// Picks them from a build of all tests.
    pub fn of(built: &[Program], object: &Path) -> Result<Self> {
        let test = |name: &str| {
            built
                .iter()
                .find(|program| program.is_test && program.kind == "test" && program.name == name)
                .with_context(|| format!("the build has made no test program {name}"))
        };
        let cluster = test("cluster")?;
        Ok(Self {
            agent: build::find_agent(built)?,
            bpf: test("programs")?.path.clone(),
            cluster: cluster.path.clone(),
            object: object.to_owned(),
            package: cluster.package_folder().to_owned(),
        })
    }
}

/// Boots the kernels and prints the tables; says whether all is well.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let tools = setup::ensure(workspace, Scope::Vm)?;
    let objects = build::objects(workspace, &tools)?;
    let mut cargo = workspace.cargo();
    cargo
        .args(["test", "--no-run", "--package", PACKAGE, "--test", "*"])
        .env(OBJECT_VARIABLE, objects.hooks()?);
    let programs = Programs::of(&build::programs(&mut cargo)?, objects.hooks()?)?;
    let names = match &options.kernels[..] {
        [] => kernels::DEFAULT.to_vec(),
        names => names.iter().map(String::as_str).collect(),
    };
    let names: Vec<_> = names.into_iter().map(|name| (name, Extent::Full)).collect();
    let rows = boot_all(workspace, &programs, &names, options.jobs);
    command::check_interrupt()?;
    let tally = tally(&rows);
    print!("{}", outcome(&rows, &tally));
    Ok(if tally.failed.is_empty() && tally.executed() > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The suite of `cargo xtask test`: one old and one new kernel, both at once.
pub fn suite(workspace: &Workspace, programs: &Programs) -> Result<Tally> {
    if let Err(error) = setup::ensure_vm() {
        command::check_interrupt()?;
        println!("  skipped: {error:#}");
        return Ok(Tally {
            skipped: vec![Skip {
                test: "other kernels".into(),
                reason: format!("{error:#}"),
            }],
            ..Tally::default()
        });
    }
    let rows = boot_all(workspace, programs, &TESTED, Some(TESTED.len()));
    command::check_interrupt()?;
    let tally = tally(&rows);
    print!("{}", tables(&rows));
    Ok(tally)
}

/// Boots kernels, several at a time; the rows are in the order of the names.
fn boot_all(
    workspace: &Workspace,
    programs: &Programs,
    names: &[(&str, Extent)],
    jobs: Option<usize>,
) -> Vec<Row> {
    let folder = workspace.target.join("vm");
    let jobs = jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    // One after the other: downloads go no faster side by side.
    let found: Vec<_> = names
        .iter()
        .map(|(name, _)| kernels::find(&folder, name))
        .collect();
    let waiting = Mutex::new(
        names
            .iter()
            .zip(found)
            .enumerate()
            .rev()
            .collect::<Vec<_>>(),
    );
    let rows = Mutex::new(Vec::new());
    let lock = |poisoned: std::sync::PoisonError<_>| poisoned.into_inner();
    let work = || {
        loop {
            let next = waiting.lock().unwrap_or_else(lock).pop();
            let Some((number, ((name, extent), kernel))) = next else {
                break;
            };
            let start = Instant::now();
            let say =
                |news: &str| println!("  {name}: {news} ({:.0} s)", start.elapsed().as_secs_f64());
            let results = match kernel {
                Ok(kernel) => {
                    let folder = folder.join("machines").join(name);
                    Ok(boot::run(&kernel, programs, *extent, &folder, &say)
                        .unwrap_or_else(Results::failed))
                }
                Err(error) => {
                    let reason = format!("{error:#}");
                    println!("  {name}: SKIPPED: {reason}");
                    Err(reason)
                }
            };
            let row = Row {
                name: (*name).to_owned(),
                results,
                time: start.elapsed(),
            };
            rows.lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push((number, row));
        }
    };
    thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, names.len().max(1)) {
            scope.spawn(work);
        }
    });
    let mut rows = rows
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    rows.sort_by_key(|(number, _)| *number);
    rows.into_iter().map(|(_, row)| row).collect()
}

/// All tests of all kernels; a kernel that cannot be had is one skipped test.
fn tally(rows: &[Row]) -> Tally {
    let mut total = Tally::default();
    for row in rows {
        let mut tally = match &row.results {
            Ok(results) => results.tally.clone(),
            Err(reason) => Tally {
                skipped: vec![Skip {
                    test: "this kernel".into(),
                    reason: reason.clone(),
                }],
                ..Tally::default()
            },
        };
        for failed in &mut tally.failed {
            failed.test = format!("{}: {}", row.release(), failed.test);
        }
        for skip in &mut tally.skipped {
            skip.test = format!("{}: {}", row.release(), skip.test);
        }
        total.add(tally);
    }
    total
}

/// Both tables, and before them what failed runners have printed.
fn tables(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        if let Ok(results) = &row.results
            && !results.output.is_empty()
        {
            let _ = write!(text, "\n{}:\n{}", row.release(), results.output);
        }
    }
    text + "\n" + &report::kernels(rows) + "\n" + &report::programs(rows)
}

/// The tables, and below them each test that did not pass.
fn outcome(rows: &[Row], tally: &Tally) -> String {
    let mut text = tables(rows);
    text.push('\n');
    for skip in &tally.skipped {
        let _ = writeln!(text, "skipped: {}: {}", skip.test, skip.reason);
    }
    for failed in &tally.failed {
        let _ = writeln!(text, "failed: {failed}");
    }
    let _ = writeln!(
        text,
        "{} passed, {} failed, {} skipped",
        tally.passed,
        tally.failed.len(),
        tally.skipped.len()
    );
    text
}

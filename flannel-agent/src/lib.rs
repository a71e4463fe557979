//! A drop-in for flanneld: the same keys in etcd, the same kernel state, the same files, and a BPF fast path in front.
//!
//! Data flows one way:
//!
//! ```text
//!  store ──► lease ──────► backend ────► desired state ─┐
//!            (own, peers)  (pure plan)                  ├─► diff ──► kernel objects   (kernel::apply)
//!   netlink ► kernel::observe ─────────► actual state ──┘      └──► BPF maps, hooks  (fastpath)
//!              ▲
//!              └── kernel::events: only says where to look again
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`cmd`] | the command line: `run`, `status`, `cleanup` |
//! | [`family`] | what exists once per address family |
//! | [`netconf`] | the network config: defaults and rules |
//! | [`lease`] | leases, and the subnet managers that keep them: in etcd, in the Kubernetes API, in a file |
//! | [`iface`] | the choice of the interface between nodes |
//! | [`backend`] | vxlan, host-gw, udp, ipip: leases into desired objects; extension: nodes into commands; without side effects |
//! | [`kernel`] | reads and writes kernel objects; nothing else does |
//! | [`reconcile`] | the loop: what is out of date, compare, repair |
//! | [`fastpath`] | BPF; nothing else touches it |
//! | [`host`] | where the host's files are, seen from a container |
//! | [`subnet_file`], [`atomic_file`] | `subnet.env`; files that are never seen half written |
//! | [`cni`] | the CNI plugin `flannel`, a program of its own |
//! | [`udp`] | the udp backend's data path: a TUN device and a proxy |
//! | [`status`], [`board`], [`status_socket`], [`health`], [`metrics`], [`log`], [`notify`] | what an operator can see |

pub mod atomic_file;
pub mod backend;
pub mod board;
pub mod cmd;
pub mod cni;
pub mod family;
pub mod fastpath;
pub mod health;
pub mod host;
pub mod iface;
pub mod kernel;
pub mod lease;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod netconf;
pub mod notify;
pub mod reconcile;
pub mod status;
pub mod status_socket;
pub mod subnet_file;
pub mod udp;

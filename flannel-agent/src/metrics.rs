//! What is counted while the agent runs: one atomic addition each, read at scrape time by [`exposition`].
//!
//! Only counters of the process live here. What can be told from the status board or the kernel at scrape time is not
//! counted, and nothing here is kept per lease, per pod or per packet.

pub mod exposition;
mod page;
mod process;

use std::sync::atomic::{AtomicU64, Ordering};

pub use process::started;

use crate::status::FastPath;

/// A number that only grows.
#[derive(Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds one.
    pub fn count(&self) {
        self.add(1);
    }

    /// Adds `number`.
    pub fn add(&self, number: u64) {
        // Nothing else depends on the order.
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is asked of etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A connection, and with a user name the authentication on it.
    Connect,
    /// One key.
    Get,
    /// A page of leases.
    List,
    /// A key for a lease.
    Create,
    /// Another value for a lease.
    Update,
    /// A lease's end.
    Delete,
    /// An etcd lease.
    Grant,
    /// The end of an etcd lease.
    Revoke,
    /// A longer life for an etcd lease.
    KeepAlive,
    /// How long an etcd lease lives.
    TimeToLive,
    /// All changes from now on.
    Watch,
}

impl Request {
    /// All requests, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Connect,
        Self::Get,
        Self::List,
        Self::Create,
        Self::Update,
        Self::Delete,
        Self::Grant,
        Self::Revoke,
        Self::KeepAlive,
        Self::TimeToLive,
        Self::Watch,
    ];

    /// The name that messages and metrics use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Get => "get",
            Self::List => "list leases",
            Self::Create => "create lease",
            Self::Update => "update lease",
            Self::Delete => "delete lease",
            Self::Grant => "grant",
            Self::Revoke => "revoke",
            Self::KeepAlive => "keep alive",
            Self::TimeToLive => "time to live",
            Self::Watch => "watch",
        }
    }
}

/// What is asked of the Kubernetes API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KubeRequest {
    /// This agent's pod.
    Pod,
    /// This node's Node.
    Node,
    /// A page of Nodes.
    List,
    /// All changes from now on.
    Watch,
    /// A change of this node's Node.
    Patch,
}

impl KubeRequest {
    /// All requests, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Pod, Self::Node, Self::List, Self::Watch, Self::Patch];

    /// The name that messages and metrics use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "get pod",
            Self::Node => "get node",
            Self::List => "list nodes",
            Self::Watch => "watch",
            Self::Patch => "patch node",
        }
    }
}

/// Kinds of kernel objects, by the names that the status gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The device of a backend, and its addresses.
    Link,
    /// A neighbour entry.
    Neighbour,
    /// An entry of the VXLAN device's forwarding table.
    Fdb,
    /// A route.
    Route,
    /// The traffic rules, which are written as a whole.
    Rules,
}

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::Link,
        Self::Neighbour,
        Self::Fdb,
        Self::Route,
        Self::Rules,
    ];

    /// The name that status and metrics use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Neighbour => "neighbour",
            Self::Fdb => "fdb",
            Self::Route => "route",
            Self::Rules => "rules",
        }
    }
}

/// Changes of kernel objects of one kind.
#[derive(Debug)]
pub struct Changes {
    /// Those that the kernel took.
    pub done: Counter,
    /// Those that it refused.
    pub failed: Counter,
}

/// All counters of the process.
#[derive(Debug)]
pub struct Counters {
    etcd: [Changes; Request::ALL.len()],
    kube: [Changes; KubeRequest::ALL.len()],
    changes: [Changes; Kind::ALL.len()],
    /// Connections to etcd that were made.
    pub etcd_connections: Counter,
    /// Changes of leases that etcd reported.
    pub etcd_watch_events: Counter,
    /// Clients of the Kubernetes API that were made.
    pub kube_connections: Counter,
    /// What watches of the Kubernetes API told: changes of Nodes, of leases or not, and bookmarks.
    pub kube_watch_events: Counter,
    /// Node objects and lines of watches that were not understood.
    pub kube_unreadable: Counter,
    /// Passes of the reconciler.
    pub passes: Counter,
    /// Those after which something is not as it should be.
    pub incomplete_passes: Counter,
    /// Requests that netlink refused or did not carry.
    pub netlink_errors: Counter,
}

/// The counters.
pub static COUNTERS: Counters = Counters {
    etcd: [const { Changes::new() }; Request::ALL.len()],
    kube: [const { Changes::new() }; KubeRequest::ALL.len()],
    changes: [const { Changes::new() }; Kind::ALL.len()],
    etcd_connections: Counter::new(),
    etcd_watch_events: Counter::new(),
    kube_connections: Counter::new(),
    kube_watch_events: Counter::new(),
    kube_unreadable: Counter::new(),
    passes: Counter::new(),
    incomplete_passes: Counter::new(),
    netlink_errors: Counter::new(),
};

impl Changes {
    const fn new() -> Self {
        Self {
            done: Counter::new(),
            failed: Counter::new(),
        }
    }

    /// Counts what became of one.
    pub fn count<T, E>(&self, result: &Result<T, E>) {
        match result {
            Ok(_) => self.done.count(),
            Err(_) => self.failed.count(),
        }
    }
}

impl Counters {
    /// Requests to etcd: answered, and not.
    pub fn etcd(&self, request: Request) -> &Changes {
        &self.etcd[request as usize]
    }

    /// Requests to the Kubernetes API: answered, and not.
    pub fn kube(&self, request: KubeRequest) -> &Changes {
        &self.kube[request as usize]
    }

    /// Changes of kernel objects.
    pub fn changes(&self, kind: Kind) -> &Changes {
        &self.changes[kind as usize]
    }
}

/// What the reconciler measures for a scrape: counts, whatever the number of leases.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    /// Other nodes.
    pub peers: usize,
    /// Those that are not reached.
    pub unreached_peers: usize,
    /// Leases and keys that are not understood.
    pub skipped_leases: usize,
    /// Seconds until this node's lease expires unless it is renewed; absent for a reservation.
    pub lease_expires_s: Option<u64>,
    /// Kernel objects by kind.
    pub objects: Vec<Objects>,
    /// The fast path, with its counters.
    pub fast_path: FastPath,
}

/// Kernel objects of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Objects {
    /// The kind.
    pub kind: Kind,
    /// How many there should be.
    pub wanted: usize,
    /// How many of those are missing or differ.
    pub wrong: usize,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn numbers_are_places_and_names_differ() {
        for (number, request) in Request::ALL.into_iter().enumerate() {
            assert_eq!(request as usize, number);
        }
        for (number, request) in KubeRequest::ALL.into_iter().enumerate() {
            assert_eq!(request as usize, number);
        }
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
        }
        let names: BTreeSet<_> = Request::ALL.map(Request::name).into();
        assert_eq!(names.len(), Request::ALL.len());
        let names: BTreeSet<_> = KubeRequest::ALL.map(KubeRequest::name).into();
        assert_eq!(names.len(), KubeRequest::ALL.len());
        let names: BTreeSet<_> = Kind::ALL.map(Kind::name).into();
        assert_eq!(names.len(), Kind::ALL.len());
    }

    #[test]
    fn what_became_of_a_change_is_counted_once() {
        let changes = Changes::new();
        changes.count(&Ok::<_, ()>(1));
        changes.count(&Err::<(), _>("no"));
        changes.count(&Ok::<_, ()>(2));
        assert_eq!((changes.done.get(), changes.failed.get()), (2, 1));
    }
}

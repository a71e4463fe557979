//! The subnet manager against the lab's API server: no namespaces, no root.

mod faults;
mod own;
mod peers;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc as std_mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use lab::kube::mock::{self, ApiServer, Fault, Interrupt, Kind};
use serde_json::Value;

use super::*;
use crate::lease::{Entry, value::BackendData};

const HOST_GW: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;
const ALLOC: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"alloc"}}"#;
const MANAGED: &str = "flannel.alpha.coreos.com/kube-subnet-manager";
const PUBLIC_IP: &str = "flannel.alpha.coreos.com/public-ip";
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(30);

fn server() -> ApiServer {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = ApiServer::start(None, any, mock::Options::default()).unwrap();
    server.put_node(bare("n1", &["10.5.1.0/24"]));
    server
}

fn bare(name: &str, pod_cidrs: &[&str]) -> Value {
    mock::node(name, &[IpAddr::from([10, 0, 0, 1])], pod_cidrs)
}

/// Another node, which stock flannel has annotated for host-gw.
fn peer(name: &str, pod_cidr: &str, public: &str) -> Value {
    let mut node = bare(name, &[pod_cidr]);
    for (key, value) in [
        (MANAGED, "true"),
        ("flannel.alpha.coreos.com/backend-type", "host-gw"),
        ("flannel.alpha.coreos.com/backend-data", "null"),
        (PUBLIC_IP, public),
    ] {
        node["metadata"]["annotations"][key] = value.into();
    }
    node
}

fn attributes(public: [u8; 4]) -> Attributes {
    Attributes {
        addresses: PerFamily::v4(public.into()),
        backend: BackendData::HostGw,
    }
}

/// Files of a test, which go when its thread ends.
#[derive(Default)]
struct Files(Vec<PathBuf>);

impl Drop for Files {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

thread_local! {
    static FILES: RefCell<Files> = RefCell::default();
}

/// A file that only this test has.
fn file(name: &str, text: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!(
        "flannel-kube-{}-{count}-{name}",
        std::process::id()
    ));
    fs::write(&path, text).unwrap();
    FILES.with_borrow_mut(|files| files.0.push(path.clone()));
    path
}

/// A subnet manager on a thread of its own.
struct Running {
    events: mpsc::Receiver<Event>,
    publish: channel::Sender<Attributes>,
    board: Board,
    acquired: std_mpsc::Receiver<(OwnNode, OwnLease)>,
}

fn start_with(options: Options) -> Running {
    let (events_sender, events) = mpsc::channel(64);
    let (publish, to_publish) = channel::channel(attributes([10, 0, 0, 1]));
    let (acquired_sender, acquired) = std_mpsc::channel();
    let board = Board::default();
    let shown = board.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let mut kube = Kube::new(options);
            let config = kube.network_config(&shown).await;
            let node = kube.own_node(&shown).await;
            let request = Request {
                config,
                attributes: to_publish.borrow().clone(),
                previous: PerFamily::default(),
            };
            let own = kube.acquire(request, &shown).await;
            // Who only looks at the board is gone by then.
            let _ = acquired_sender.send((node, own));
            kube.run(events_sender, to_publish, shown).await;
        });
    });
    Running {
        events,
        publish,
        board,
        acquired,
    }
}

fn options(server: &ApiServer, config: &str) -> Options {
    Options {
        access: Access::new(std::path::Path::new(""), &server.url()).unwrap(),
        names: Names::new(DEFAULT_PREFIX).unwrap(),
        node: NodeName::Known("n1".into()),
        net_config: file("net-conf.json", config),
        set_network_unavailable: true,
    }
}

fn start(server: &ApiServer, config: &str) -> Running {
    start_with(options(server, config))
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

impl Running {
    fn acquired(&self) -> (OwnNode, OwnLease) {
        self.acquired.recv_timeout(LIMIT).unwrap()
    }

    fn event(&mut self) -> Event {
        let mut event = None;
        until("an event", || {
            event = self.events.try_recv().ok();
            event.is_some()
        });
        event.unwrap()
    }

    /// The next event as a snapshot.
    fn snapshot(&mut self) -> BTreeMap<String, Entry> {
        match self.event() {
            Event::Snapshot(entries) => entries,
            other => panic!("{other:?}"),
        }
    }

    /// The next event as a change, in short: what has come of which node.
    fn change(&mut self) -> String {
        match self.event() {
            Event::Put(name, Ok(lease)) => {
                format!(
                    "{name} {} {}",
                    lease.subnets.join(),
                    lease.attributes.addresses.join()
                )
            }
            Event::Put(name, Err(reason)) => format!("{name} error {reason}"),
            Event::Removed(name) => format!("{name} gone"),
            Event::Own(own) => format!("own {}", own.subnets.join()),
            Event::Snapshot(entries) => panic!("{entries:?}"),
        }
    }

    /// Until the watch is there that follows the first list.
    fn settled(&mut self, server: &ApiServer) -> BTreeMap<String, Entry> {
        let entries = self.snapshot();
        server.wait_watches(1).unwrap();
        entries
    }

    fn wait_problem(&self, parts: &[&str]) {
        let mut problems = Vec::new();
        until(&format!("a problem with {parts:?}"), || {
            problems = self.board.status().problems;
            problems
                .iter()
                .any(|problem| parts.iter().all(|part| problem.contains(part)))
        });
    }

    fn wait_well(&self) {
        until("no problem", || self.board.status().problems.is_empty());
    }
}

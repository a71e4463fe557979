//! The subnet manager against the lab's API server: no namespaces, no root.

use std::{
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

/// A file that only this test has.
fn file(name: &str, text: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!(
        "flannel-kube-{}-{count}-{name}",
        std::process::id()
    ));
    fs::write(&path, text).unwrap();
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

#[test]
fn a_restart_writes_nothing_and_asks_twice() {
    let server = server();
    server.put_node(peer("n2", "10.5.2.0/24", "10.0.0.2"));
    server.put_node(bare("n3", &["10.5.3.0/24"]));
    let mut first = start(&server, HOST_GW);
    let (node, own) = first.acquired();
    assert_eq!(node, OwnNode::default());
    assert_eq!(
        (own.subnets.join(), own.expires),
        ("10.5.1.0/24".to_owned(), None)
    );
    let entries = first.settled(&server);
    assert_eq!(entries.keys().collect::<Vec<_>>(), ["n2"]);
    assert_eq!(server.count(Kind::Patch), 1);
    let patch = server
        .requests()
        .into_iter()
        .find(|request| request.kind == Kind::Patch)
        .unwrap();
    assert_eq!(patch.content_type, "application/strategic-merge-patch+json");
    assert_eq!(patch.path, "/api/v1/nodes/n1/status");
    drop(first);
    server.wait_watches(0).unwrap();
    server.forget_requests();

    let mut second = start(&server, HOST_GW);
    let (node, _) = second.acquired();
    assert_eq!(node.published, Some(attributes([10, 0, 0, 1])));
    second.settled(&server);
    let asked: Vec<_> = server
        .requests()
        .iter()
        .map(|request| request.kind)
        .collect();
    assert_eq!(asked, [Kind::Get, Kind::Get, Kind::List, Kind::Watch]);
}

#[test]
fn peers_come_and_change_and_go() {
    let server = server();
    let mut kube = start(&server, HOST_GW);
    assert!(kube.settled(&server).is_empty());
    server.put_node(bare("n3", &["10.5.3.0/24"]));
    server.put_node(peer("n2", "10.5.2.0/24", "10.0.0.2"));
    assert_eq!(kube.change(), "n2 10.5.2.0/24 10.0.0.2");
    // What concerns no lease is no event: the next one is the address.
    server
        .change_node("n2", |node| node["status"]["capacity"]["pods"] = "7".into())
        .unwrap();
    server
        .annotate("n2", &[(PUBLIC_IP, Some("10.0.0.9"))])
        .unwrap();
    assert_eq!(kube.change(), "n2 10.5.2.0/24 10.0.0.9");
    server.set_pod_cidrs("n2", &["10.5.7.0/24"]).unwrap();
    assert_eq!(kube.change(), "n2 10.5.7.0/24 10.0.0.9");
    server.set_pod_cidrs("n2", &[]).unwrap();
    assert_eq!(kube.change(), "n2 error it has no podCIDR of IPv4");
    server.set_pod_cidrs("n2", &["10.5.7.0/24"]).unwrap();
    assert_eq!(kube.change(), "n2 10.5.7.0/24 10.0.0.9");
    server.annotate("n2", &[(MANAGED, None)]).unwrap();
    assert_eq!(kube.change(), "n2 gone");
    server
        .annotate("n3", &[(MANAGED, Some("true")), (PUBLIC_IP, Some("x"))])
        .unwrap();
    assert!(
        kube.change()
            .starts_with("n3 error annotation flannel.alpha.coreos.com/public-ip = x")
    );
    server.delete_node("n3");
    assert_eq!(kube.change(), "n3 gone");
    assert_eq!(
        (server.count(Kind::List), server.count(Kind::Watch)),
        (1, 1)
    );
}

#[test]
fn own_annotations_are_restored_once() {
    let server = server();
    let mut kube = start(&server, HOST_GW);
    kube.settled(&server);
    let public = || server.annotations("n1").get(PUBLIC_IP).cloned();
    server
        .annotate("n1", &[(PUBLIC_IP, Some("10.9.9.9"))])
        .unwrap();
    until("the address", || public().as_deref() == Some("10.0.0.1"));
    assert_eq!(server.count(Kind::Patch), 2);
    server
        .annotate(
            "n1",
            &[(
                "flannel.alpha.coreos.com/public-ip-overwrite",
                Some("192.0.2.7"),
            )],
        )
        .unwrap();
    until("the overwrite", || public().as_deref() == Some("192.0.2.7"));
    server
        .annotate(
            "n1",
            &[("flannel.alpha.coreos.com/public-ip-overwrite", None)],
        )
        .unwrap();
    until("the address", || public().as_deref() == Some("10.0.0.1"));
    kube.publish.send_replace(attributes([10, 0, 0, 5]));
    until("the new address", || {
        public().as_deref() == Some("10.0.0.5")
    });
    assert_eq!(server.count(Kind::Patch), 5);
    kube.wait_well();
}

#[test]
fn own_node_is_made_anew() {
    let server = server();
    let mut kube = start(&server, HOST_GW);
    kube.settled(&server);
    server.delete_node("n1");
    kube.wait_problem(&["there is no Node n1"]);
    server.put_node(bare("n1", &[]));
    kube.wait_problem(&["n1 has no IPv4 podCIDR"]);
    server.set_pod_cidrs("n1", &["10.5.1.0/24"]).unwrap();
    until("annotations", || {
        server.annotations("n1").contains_key(MANAGED)
    });
    kube.wait_well();
    server.delete_node("n1");
    server.put_node(bare("n1", &["10.5.8.0/24"]));
    assert_eq!(kube.change(), "own 10.5.8.0/24");
    until("annotations", || {
        server.annotations("n1").contains_key(MANAGED)
    });
    server.set_pod_cidrs("n1", &["10.6.8.0/24"]).unwrap();
    kube.wait_problem(&["10.6.8.0/24", "Network = 10.5.0.0/16"]);
}

#[test]
fn what_is_missing_at_the_start_is_waited_for() {
    let server = server();
    server.delete_node("n1");
    let mut options = options(&server, "{");
    options.node = NodeName::OfPod {
        namespace: "kube-flannel".into(),
        name: "p".into(),
    };
    let net_config = options.net_config.clone();
    let mut kube = start_with(options);
    kube.wait_problem(&["network config in", "not a JSON object"]);
    fs::remove_file(&net_config).unwrap();
    kube.wait_problem(&["--net-config-path = ", "No such file"]);
    fs::write(&net_config, HOST_GW).unwrap();
    kube.wait_problem(&["there is no pod kube-flannel/p"]);
    server.put_pod("kube-flannel", "p", "n1");
    kube.wait_problem(&["there is no Node n1"]);
    server.put_node(bare("n1", &[]));
    kube.wait_problem(&[
        "n1 has no IPv4 podCIDR",
        "--allocate-node-cidrs=true --cluster-cidr=10.5.0.0/16",
    ]);
    let input = "flannel.alpha.coreos.com/node-public-ip";
    server.set_pod_cidrs("n1", &["10.5.1.0/24"]).unwrap();
    assert_eq!(kube.acquired().1.subnets.join(), "10.5.1.0/24");
    kube.settled(&server);
    drop(kube);
    server.annotate("n1", &[(input, Some("here"))]).unwrap();
    let kube = start(&server, HOST_GW);
    kube.wait_problem(&[input, "= here: must be an IPv4 address"]);
    server.annotate("n1", &[(input, Some("10.0.0.3"))]).unwrap();
    assert_eq!(kube.acquired().0.public.join(), "10.0.0.3");
}

#[test]
fn a_watch_that_breaks_goes_on_where_it_was() {
    let server = server();
    let mut kube = start(&server, HOST_GW);
    kube.settled(&server);
    for (number, interrupt) in [
        Interrupt::End,
        Interrupt::Reset,
        Interrupt::Cut,
        Interrupt::Garbage,
    ]
    .into_iter()
    .enumerate()
    {
        server.interrupt_watches(interrupt);
        server.put_node(peer(
            &format!("p{number}"),
            &format!("10.5.{}.0/24", number + 10),
            "10.0.0.2",
        ));
        assert!(kube.change().starts_with(&format!("p{number} 10.5.")));
        server.wait_requests(Kind::Watch, number + 2).unwrap();
        server.wait_watches(1).unwrap();
    }
    assert_eq!(server.count(Kind::List), 1);
    kube.wait_well();
}

#[test]
fn a_version_that_is_forgotten_costs_one_list() {
    let server = server();
    let mut kube = start(&server, HOST_GW);
    kube.settled(&server);
    server.interrupt_watches(Interrupt::Bookmark);
    server.interrupt_watches(Interrupt::Expired);
    kube.settled(&server);
    assert_eq!(server.count(Kind::List), 2);

    server.stop_listening();
    kube.wait_problem(&["Kubernetes API at http://127.0.0.1:"]);
    server.put_node(peer("n2", "10.5.2.0/24", "10.0.0.2"));
    server.advance(10);
    server.compact();
    server.listen().unwrap();
    let entries = kube.settled(&server);
    assert_eq!(entries.keys().collect::<Vec<_>>(), ["n2"]);
    assert_eq!(server.count(Kind::List), 3);
    kube.wait_well();
}

#[test]
fn a_node_that_is_not_understood_harms_no_other() {
    let server = server();
    server.put_node(peer("n2", "10.5.2.0/24", "10.0.0.2"));
    let mut broken = peer("n3", "10.5.3.0/24", "10.0.0.3");
    broken["spec"]["podCIDRs"] = 7.into();
    server.put_node(broken);
    let mut kube = start(&server, HOST_GW);
    let entries = kube.settled(&server);
    assert!(
        entries["n2"].is_ok() && entries["n3"].is_err(),
        "{entries:?}"
    );
    server.put_node(peer("n3", "10.5.3.0/24", "10.0.0.3"));
    assert_eq!(kube.change(), "n3 10.5.3.0/24 10.0.0.3");
    server
        .change_node("n2", |node| {
            node["metadata"]["annotations"][PUBLIC_IP] = 7.into()
        })
        .unwrap();
    assert!(kube.change().starts_with("n2 error "));
    assert_eq!(
        (server.count(Kind::List), server.count(Kind::Watch)),
        (1, 1)
    );
}

#[test]
fn many_nodes_come_in_pages() {
    const NODES: usize = 1_100;
    let server = server();
    for number in 0..NODES {
        let subnet = format!("10.5.{}.{}/28", number / 16 + 10, number % 16 * 16);
        server.put_node(peer(&format!("p{number:04}"), &subnet, "10.0.0.2"));
    }
    // A page that has expired in between: the list begins anew.
    let fault = Fault::Status {
        code: 410,
        retry_after: None,
    };
    server.arm(Kind::Page, 1, fault);
    let mut kube = start(&server, HOST_GW);
    assert_eq!(kube.settled(&server).len(), NODES);
    assert_eq!((server.count(Kind::List), server.count(Kind::Page)), (2, 3));
}

#[test]
fn a_server_that_is_busy_is_left_alone_as_long_as_it_wants() {
    let server = server();
    let fault = Fault::Status {
        code: 429,
        retry_after: Some(2),
    };
    server.arm(Kind::List, 1, fault);
    let begun = Instant::now();
    let mut kube = start(&server, HOST_GW);
    kube.settled(&server);
    assert!(begun.elapsed() >= Duration::from_secs(2));
    assert_eq!(server.count(Kind::List), 2);
}

#[test]
fn what_is_forbidden_is_said_with_what_to_allow() {
    let server = server();
    server.deny("patch", "nodes/status");
    let mut kube = start(&server, HOST_GW);
    kube.wait_problem(&["403", "resources [nodes/status], verbs [patch]"]);
    server.allow("patch", "nodes/status");
    kube.settled(&server);
    kube.wait_well();
    // While it runs, the watch goes on, and the patch is tried again.
    server.deny("patch", "nodes/status");
    server.annotate("n1", &[(PUBLIC_IP, None)]).unwrap();
    kube.wait_problem(&["403", "resources [nodes/status], verbs [patch]"]);
    server.put_node(peer("n2", "10.5.2.0/24", "10.0.0.2"));
    assert_eq!(kube.change(), "n2 10.5.2.0/24 10.0.0.2");
    server.allow("patch", "nodes/status");
    until("the address", || {
        server.annotations("n1").contains_key(PUBLIC_IP)
    });
    kube.wait_well();
}

#[test]
fn the_condition_is_set_once_the_agent_is_ready() {
    let server = server();
    let mut kube = start(&server, HOST_GW);
    kube.settled(&server);
    let reason = || {
        let node = server.node("n1").unwrap_or_default();
        let conditions = node["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let condition = conditions
            .into_iter()
            .find(|condition| condition["type"] == "NetworkUnavailable");
        condition.map(|condition| format!("{}/{}", condition["status"], condition["reason"]))
    };
    let before = reason();
    assert_ne!(before.as_deref(), Some(r#""False"/"FlannelIsUp""#));
    kube.board.update(|status| status.ready = true);
    until("the condition", || {
        reason().as_deref() == Some(r#""False"/"FlannelIsUp""#)
    });
    assert_eq!(server.count(Kind::Patch), 2);
    // A new Node of that name is another one.
    server.delete_node("n1");
    server.put_node(bare("n1", &["10.5.1.0/24"]));
    until("the condition", || {
        reason().as_deref() == Some(r#""False"/"FlannelIsUp""#)
    });
}

#[test]
fn with_alloc_other_nodes_do_not_matter() {
    let server = server();
    server.put_node(peer("n2", "10.5.2.0/24", "10.0.0.2"));
    let mut kube = start(&server, ALLOC);
    assert!(kube.settled(&server).is_empty());
    for request in server.requests() {
        if matches!(request.kind, Kind::List | Kind::Watch) {
            assert_eq!(request.query["fieldSelector"], "metadata.name=n1");
        }
    }
}

#[test]
fn tokens_rotate() {
    let server = server();
    server.require_tokens(&["first"]);
    let token = file("token", "first");
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
         clusters: [{{name: k, cluster: {{server: \"{}\"}}}}]\nusers: [{{name: u, user: {{tokenFile: \"{}\"}}}}]\n",
        server.url(),
        token.display()
    );
    let mut options = options(&server, HOST_GW);
    options.access = Access::new(&file("kubeconfig", &kubeconfig), "").unwrap();
    let mut kube = start_with(options);
    kube.settled(&server);
    server.require_tokens(&["second"]);
    server.interrupt_watches(Interrupt::Reset);
    kube.wait_problem(&["401"]);
    fs::write(&token, "second").unwrap();
    server.wait_watches(1).unwrap();
    assert_eq!(server.count(Kind::List), 1);
    kube.wait_well();
}

#[test]
fn a_nodes_name_comes_from_variables() {
    let of = |variables: &[(&str, &str)]| {
        let variables: BTreeMap<String, String> = variables
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect();
        NodeName::from_variables(|name| variables.get(name).cloned())
    };
    let pod = [("POD_NAME", "p"), ("POD_NAMESPACE", "s")];
    assert_eq!(
        of(&[("NODE_NAME", "n1"), pod[0], pod[1]]),
        Ok(NodeName::Known("n1".into()))
    );
    let expected = NodeName::OfPod {
        namespace: "s".into(),
        name: "p".into(),
    };
    assert_eq!(of(&[("NODE_NAME", ""), pod[0], pod[1]]), Ok(expected));
    for incomplete in [&[][..], &pod[..1], &pod[1..]] {
        let error = of(incomplete).unwrap_err().to_string();
        assert!(
            error.contains("NODE_NAME") && error.contains("POD_NAMESPACE"),
            "{error}"
        );
    }
}

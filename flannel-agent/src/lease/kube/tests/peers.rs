//! Other nodes: how they become entries.

use super::*;

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

/// So many nodes that a list of them has three pages.
const MANY: usize = 1_100;

/// A server with many nodes, which refuses further pages with `code` for some `times`.
fn crowded(times: usize, code: u16) -> ApiServer {
    let server = server();
    for number in 0..MANY {
        let subnet = format!("10.5.{}.{}/28", number / 16 + 10, number % 16 * 16);
        server.put_node(peer(&format!("p{number:04}"), &subnet, "10.0.0.2"));
    }
    let fault = Fault::Status {
        code,
        retry_after: None,
    };
    server.arm(Kind::Page, times, fault);
    server
}

#[test]
fn many_nodes_come_in_pages() {
    // A page that has expired in between: the list begins anew.
    let server = crowded(1, 410);
    let mut kube = start(&server, HOST_GW);
    assert_eq!(kube.settled(&server).len(), MANY);
    assert_eq!((server.count(Kind::List), server.count(Kind::Page)), (2, 3));
}

#[test]
fn pages_that_always_expire_are_not_asked_for_in_a_loop() {
    let server = crowded(4, 410);
    let begun = Instant::now();
    let mut kube = start(&server, HOST_GW);
    kube.wait_problem(&["410"]);
    assert_eq!(kube.settled(&server).len(), MANY);
    assert_eq!((server.count(Kind::List), server.count(Kind::Page)), (5, 6));
    // After the first, at least half of 200, 400 and 800 ms.
    assert!(begun.elapsed() >= Duration::from_millis(700));
    kube.wait_well();
}

#[test]
fn a_page_that_fails_is_asked_for_again_and_no_other() {
    let server = crowded(3, 500);
    let mut kube = start(&server, HOST_GW);
    kube.wait_problem(&["500"]);
    assert_eq!(kube.settled(&server).len(), MANY);
    assert_eq!((server.count(Kind::List), server.count(Kind::Page)), (1, 5));
    kube.wait_well();
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

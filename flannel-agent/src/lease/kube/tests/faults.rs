//! What goes wrong on the way to the API server, and what comes of it.

use super::*;

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

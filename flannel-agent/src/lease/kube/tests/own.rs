//! This node: what is waited for, what is written, and when.

use super::*;

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

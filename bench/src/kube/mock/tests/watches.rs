//! Watches: replay, selection, bookmarks, ends.

use std::time::Duration;

use serde_json::json;

use super::client::{Client, Next};
use crate::kube::mock::{Interrupt, Kind, Options};

#[test]
fn replay_and_news() {
    let client = Client::with_nodes(1);
    let before = client.server.revision();
    client.add(2);
    client.server.annotate("n1", &[("a", Some("b"))]).unwrap();
    client.server.delete_node("n2");
    let mut watch = client.watch(&format!("resourceVersion={before}"));
    assert_eq!(watch.briefly(3), ["ADDED n2", "MODIFIED n1", "DELETED n2"]);
    assert!(watch.is_silent());

    client.server.annotate("n1", &[("a", Some("c"))]).unwrap();
    let Next::Line(line) = watch.next() else {
        panic!("no line");
    };
    let node = &line["object"];
    assert_eq!(
        (&line["type"], &node["kind"]),
        (&json!("MODIFIED"), &json!("Node"))
    );
    assert_eq!(node["metadata"]["annotations"]["a"], "c");
    let revision = client.server.revision().to_string();
    assert_eq!(node["metadata"]["resourceVersion"], revision);

    // What does not change a node is no news.
    client.server.annotate("n1", &[("a", Some("c"))]).unwrap();
    assert!(watch.is_silent());
    drop(watch);
    client.server.wait_watches(0).unwrap();
    assert_eq!(client.server.count(Kind::Watch), 1);
}

#[test]
fn a_deleted_node_is_told_with_the_deletions_revision() {
    let client = Client::with_nodes(1);
    let mut watch = client.watch(&format!("resourceVersion={}", client.server.revision()));
    client.server.delete_node("n1");
    let Next::Line(line) = watch.next() else {
        panic!("no line");
    };
    let revision = client.server.revision().to_string();
    assert_eq!(line["object"]["metadata"]["resourceVersion"], revision);
    client.add(1);
    assert_eq!(watch.briefly(1), ["ADDED n1"]);
}

#[test]
fn from_any_state_and_of_one_node() {
    let client = Client::with_nodes(3);
    let mut all = client.watch("");
    assert_eq!(all.briefly(3), ["ADDED n1", "ADDED n2", "ADDED n3"]);
    let mut one = client.watch("resourceVersion=0&fieldSelector=metadata.name%3Dn2");
    assert_eq!(one.briefly(1), ["ADDED n2"]);
    for name in ["n1", "n2"] {
        client.server.annotate(name, &[("a", Some("b"))]).unwrap();
    }
    assert_eq!(one.briefly(1), ["MODIFIED n2"]);
    assert!(one.is_silent());
    assert_eq!(client.server.open_watches(), 2);
}

#[test]
fn too_old() {
    let client = Client::with_nodes(1);
    let (old, first) = (client.server.revision(), client.server.revision() + 1);
    let mut open = client.watch(&format!("resourceVersion={old}"));
    client.server.wait_watches(1).unwrap();
    client.add(2);
    client.server.compact();
    assert_eq!(
        open.briefly(1),
        ["ADDED n2"],
        "an open watch misses nothing"
    );

    let mut late = client.watch(&format!("resourceVersion={old}"));
    let expected = json!({
        "type": "ERROR",
        "object": {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": format!("too old resource version: {old} ({first})"), "reason": "Expired", "code": 410,
        },
    });
    assert_eq!(late.next(), Next::Line(expected));
    assert_eq!(late.next(), Next::End);
}

#[test]
fn the_log_is_bounded() {
    let client = Client::with(Options {
        log_limit: 2,
        ..Options::default()
    });
    for number in 1..=4 {
        client.add(number);
    }
    let revision = client.server.revision();
    let mut known = client.watch(&format!("resourceVersion={}", revision - 2));
    assert_eq!(known.briefly(2), ["ADDED n3", "ADDED n4"]);
    let mut unknown = client.watch(&format!("resourceVersion={}", revision - 3));
    assert_eq!(unknown.briefly(1), ["ERROR"]);
}

#[test]
fn bookmarks() {
    let client = Client::with_nodes(1);
    let revision = client.server.revision();
    let mut with = client.watch(&format!(
        "resourceVersion={revision}&allowWatchBookmarks=true"
    ));
    let mut without = client.watch(&format!("resourceVersion={revision}"));
    client.server.wait_watches(2).unwrap();
    client.server.advance(7);
    client.server.interrupt_watches(Interrupt::Bookmark);
    let Next::Line(line) = with.next() else {
        panic!("no line");
    };
    assert_eq!(
        (
            &line["type"],
            &line["object"]["kind"],
            &line["object"]["metadata"]
        ),
        (
            &json!("BOOKMARK"),
            &json!("Node"),
            &json!({ "resourceVersion": (revision + 7).to_string(), "creationTimestamp": null })
        )
    );
    assert!(without.is_silent());
}

#[test]
fn bookmarks_come_by_themselves() {
    let client = Client::with(Options {
        bookmarks: Duration::from_millis(20),
        ..Options::default()
    });
    let mut watch = client.watch("allowWatchBookmarks=1");
    assert_eq!(watch.briefly(2), ["BOOKMARK", "BOOKMARK"]);
}

#[test]
fn time_is_up() {
    let client = Client::with_nodes(1);
    let mut watch = client.watch("timeoutSeconds=1");
    assert_eq!(watch.briefly(2), ["ADDED n1", "End"]);
}

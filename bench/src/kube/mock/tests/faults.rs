//! Every fault is what it says, once for each time that it was armed.

use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{Client, MERGE, Next};
use crate::kube::mock::{Fault, Interrupt, Kind};

const NODES: &str = "/api/v1/nodes";

#[test]
fn refusals() {
    let client = Client::with_nodes(1);
    for (code, retry_after, reason) in [
        (500, None, "InternalError"),
        (503, Some(1), "ServiceUnavailable"),
        (410, Some(2), "Expired"),
        (409, None, "Conflict"),
    ] {
        client
            .server
            .arm(Kind::List, 2, Fault::Status { code, retry_after });
        for _ in 0..2 {
            let answer = client.get(NODES);
            assert_eq!(
                (answer.code, &answer.body["reason"]),
                (code, &json!(reason))
            );
            assert_eq!(
                answer.retry_after,
                retry_after.map(|seconds| seconds.to_string())
            );
        }
        assert_eq!(client.get(NODES).code, 200);
    }
    let busy = Fault::Status {
        code: 429,
        retry_after: Some(3),
    };
    client.server.arm(Kind::List, 1, busy);
    let answer = client.get(NODES);
    assert_eq!((answer.code, answer.body), (429, json!(null)), "plain text");
    assert_eq!(answer.retry_after.as_deref(), Some("3"));
    let armed = Fault::Status {
        code: 410,
        retry_after: None,
    };
    client.server.arm(Kind::Watch, 1, armed.clone());
    assert_eq!(
        client.get("/api/v1/nodes?watch=1&resourceVersion=1").code,
        410
    );
    client.server.arm(Kind::Get, 3, armed);
    assert_eq!(
        (client.get(NODES).code, client.server.armed()),
        (200, 3),
        "kinds are apart"
    );
    client.server.disarm();
    assert_eq!(client.get("/api/v1/nodes/n1").code, 200);
}

#[test]
fn answers_that_do_not_come_whole() {
    let client = Client::with_nodes(1);
    client.server.arm(Kind::List, 1, Fault::Reset);
    let error = client.try_get(NODES).err().unwrap();
    assert!(error.contains("reset"), "{error}");
    client.server.arm(Kind::List, 1, Fault::Cut);
    let error = client.try_get(NODES).err().unwrap();
    assert!(!error.contains("elapsed"), "{error}");
    client.server.arm(Kind::List, 1, Fault::Garbage);
    let answer = client.get(NODES);
    assert_eq!((answer.code, answer.body), (200, json!(null)));
    assert_eq!(client.get(NODES).code, 200);
}

#[test]
fn a_patch_may_be_done_although_its_answer_is_lost() {
    let client = Client::with_nodes(1);
    let path = "/api/v1/nodes/n1/status";
    let patch = |value: &str| json!({ "metadata": { "annotations": { "a": value } } });
    client.server.arm(Kind::Patch, 1, Fault::Garbage);
    client.patch(path, MERGE, &patch("1"));
    assert_eq!(client.server.annotations("n1")["a"], "1");
    let fault = Fault::Status {
        code: 500,
        retry_after: None,
    };
    client.server.arm(Kind::Patch, 1, fault);
    assert_eq!(client.patch(path, MERGE, &patch("2")).code, 500);
    assert_eq!(client.server.annotations("n1")["a"], "1");
}

#[test]
fn slow_and_silent() {
    let client = Client::with_nodes(1);
    let time = Duration::from_millis(150);
    client.server.arm(Kind::Get, 1, Fault::Slow(time));
    let start = Instant::now();
    assert_eq!(client.get("/api/v1/nodes/n1").code, 200);
    assert!(start.elapsed() >= time);

    client.server.arm(Kind::Watch, 1, Fault::Stall);
    let mut watch = client.watch("");
    assert!(watch.is_silent());
    client.server.interrupt_watches(Interrupt::End);
    assert_eq!(watch.next(), Next::End);
}

#[test]
fn watches_with_a_bad_beginning() {
    let client = Client::with_nodes(1);
    client.server.arm(Kind::Watch, 1, Fault::Cut);
    let mut watch = client.watch("");
    assert_eq!(watch.next(), Next::Broken);
    let start = String::from_utf8_lossy(watch.unfinished()).into_owned();
    assert!(
        start.starts_with(r#"{"type":"ADDED","object":{"kind":"Node""#),
        "{start}"
    );
    client.server.arm(Kind::Watch, 1, Fault::Garbage);
    let mut watch = client.watch("");
    assert!(matches!(watch.next(), Next::NoJson(_)));
    assert_eq!(watch.briefly(1), ["ADDED n1"]);
}

#[test]
fn interrupted_watches() {
    let client = Client::with_nodes(1);
    for (interrupt, expected) in [
        (Interrupt::End, "End"),
        (Interrupt::Reset, "Broken"),
        (Interrupt::Cut, "Broken"),
        (Interrupt::Expired, "ERROR"),
    ] {
        let mut watches = [client.watch(""), client.watch("")];
        client.server.wait_watches(2).unwrap();
        client.server.interrupt_watches(interrupt);
        for watch in &mut watches {
            assert_eq!(watch.briefly(2), ["ADDED n1", expected], "{interrupt:?}");
        }
        client.server.wait_watches(0).unwrap();
    }
    let mut watch = client.watch("");
    client.server.wait_watches(1).unwrap();
    client.server.interrupt_watches(Interrupt::Garbage);
    assert_eq!(watch.briefly(1), ["ADDED n1"]);
    assert!(matches!(watch.next(), Next::NoJson(_)));
    client.add(2);
    assert_eq!(watch.briefly(1), ["ADDED n2"], "it goes on");
    client.server.interrupt_watches(Interrupt::Stall);
    assert!(watch.is_silent());
    client.add(3);
    assert!(watch.is_silent());
    assert_eq!(client.server.open_watches(), 1);
}

#[test]
fn away_and_back() {
    let client = Client::with_nodes(1);
    let mut watch = client.watch("");
    assert_eq!(watch.briefly(1), ["ADDED n1"]);
    client.server.stop_listening();
    assert_eq!(watch.next(), Next::Broken);
    let error = client.try_get(NODES).err().unwrap();
    assert!(error.contains("refused"), "{error}");
    client.add(2);
    client.server.listen().unwrap();
    assert_eq!(client.get(NODES).body["items"].as_array().unwrap().len(), 2);

    let address = client.server.address;
    drop(watch);
    drop(client);
    std::net::TcpListener::bind(address).expect("the port is free again");
}

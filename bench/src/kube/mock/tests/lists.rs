//! Lists, pages, single objects, and who may read them.

use serde_json::{Value, json};

use super::client::{Answer, Client};
use crate::kube::mock::Kind;

fn names(answer: &Answer) -> Vec<&str> {
    let items = answer.body["items"].as_array().expect("a list has items");
    items
        .iter()
        .map(|node| node["metadata"]["name"].as_str().unwrap())
        .collect()
}

fn token(answer: &Answer) -> &str {
    answer.body["metadata"]["continue"].as_str().unwrap()
}

#[test]
fn whole_lists() {
    let client = Client::with_nodes(3);
    let answer = client.get("/api/v1/nodes");
    assert_eq!(names(&answer), ["n1", "n2", "n3"]);
    let revision = client.server.revision().to_string();
    assert_eq!(
        (
            &answer.body["kind"],
            &answer.body["apiVersion"],
            &answer.body["metadata"]
        ),
        (
            &json!("NodeList"),
            &json!("v1"),
            &json!({ "resourceVersion": revision })
        )
    );
    let node = &answer.body["items"][1];
    assert_eq!(node["spec"]["podCIDRs"], json!(["10.5.2.0/24"]));
    assert_eq!(node["status"]["addresses"][0]["address"], "192.0.2.2");
    assert_eq!(node.get("kind"), None, "a list's items have no kind");
    let size = node.to_string().len();
    assert!((10_000..15_000).contains(&size), "{size} bytes");
}

#[test]
fn pages_are_of_one_revision() {
    let client = Client::with_nodes(5);
    let first = client.get("/api/v1/nodes?limit=2");
    assert_eq!(names(&first), ["n1", "n2"]);
    assert_eq!(first.body["metadata"]["remainingItemCount"], 3);
    client.server.delete_node("n3");
    client.server.annotate("n4", &[("a", Some("b"))]).unwrap();
    client.add(6);

    let second = client.get(&format!("/api/v1/nodes?limit=2&continue={}", token(&first)));
    assert_eq!(names(&second), ["n3", "n4"], "as they were");
    assert_eq!(
        second.body["items"][1]["metadata"]["annotations"]["a"],
        Value::Null
    );
    let third = client.get(&format!(
        "/api/v1/nodes?limit=2&continue={}",
        token(&second)
    ));
    assert_eq!(names(&third), ["n5"]);
    let metadata = &third.body["metadata"];
    assert_eq!(
        metadata,
        &json!({ "resourceVersion": first.body["metadata"]["resourceVersion"] })
    );

    let now = client.get("/api/v1/nodes?limit=100");
    assert_eq!(names(&now), ["n1", "n2", "n4", "n5", "n6"]);
    let [lists, pages] = [Kind::List, Kind::Page].map(|kind| client.server.count(kind));
    assert_eq!((lists, pages), (2, 2));
}

#[test]
fn an_expired_token_may_go_on_with_what_is_there() {
    let client = Client::with_nodes(4);
    let first = client.get("/api/v1/nodes?limit=2");
    client.server.delete_node("n3");
    client.server.compact();
    let expired = client.get(&format!("/api/v1/nodes?limit=2&continue={}", token(&first)));
    assert_eq!(
        (expired.code, &expired.body["reason"]),
        (410, &json!("Expired"))
    );
    assert_eq!(expired.body["kind"], "Status");
    let rest = client.get(&format!(
        "/api/v1/nodes?limit=2&continue={}",
        token(&expired)
    ));
    assert_eq!(names(&rest), ["n4"]);
}

#[test]
fn revisions_of_lists() {
    let client = Client::with_nodes(3);
    let revision = client.server.revision();
    client.server.delete_node("n1");
    let exact = client.get(&format!(
        "/api/v1/nodes?resourceVersion={revision}&limit=10"
    ));
    assert_eq!(names(&exact), ["n1", "n2", "n3"]);
    let newer = client.get(&format!("/api/v1/nodes?resourceVersion={revision}"));
    assert_eq!(names(&newer), ["n2", "n3"]);
    let cached = client.get("/api/v1/nodes?resourceVersion=0&limit=1");
    assert_eq!(names(&cached), ["n2", "n3"], "the cache knows no pages");
    client.server.compact();
    let old = client.get(&format!(
        "/api/v1/nodes?resourceVersion={revision}&limit=10"
    ));
    assert_eq!((old.code, &old.body["reason"]), (410, &json!("Expired")));
    let future = client.get(&format!("/api/v1/nodes?resourceVersion={}", revision + 100));
    assert_eq!(
        (future.code, &future.body["reason"]),
        (504, &json!("Timeout"))
    );
    let both = format!("/api/v1/nodes?resourceVersion={revision}&continue=x");
    assert_eq!(client.get(&both).code, 400);
    assert_eq!(client.get("/api/v1/nodes?continue=x").code, 400);
}

#[test]
fn one_by_a_selector() {
    let client = Client::with_nodes(3);
    let one = client.get("/api/v1/nodes?fieldSelector=metadata.name%3Dn2");
    assert_eq!(names(&one), ["n2"]);
    assert_eq!(
        client.get("/api/v1/nodes?fieldSelector=spec.x%3Dn2").code,
        400
    );
    assert_eq!(client.get("/api/v1/nodes?labelSelector=a").code, 400);
}

#[test]
fn objects() {
    let client = Client::with_nodes(1);
    client.server.put_pod("kube-flannel", "flannel-abcde", "n1");
    let node = client.get("/api/v1/nodes/n1").body;
    assert_eq!(
        (&node["kind"], &node["apiVersion"]),
        (&json!("Node"), &json!("v1"))
    );
    let pod = client.get("/api/v1/namespaces/kube-flannel/pods/flannel-abcde");
    assert_eq!(pod.body["spec"]["nodeName"], "n1");
    let missing = client.get("/api/v1/nodes/n9");
    assert_eq!(
        (missing.code, missing.body),
        (
            404,
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "nodes \"n9\" not found", "reason": "NotFound",
                "details": { "name": "n9", "kind": "nodes" }, "code": 404,
            })
        )
    );
    for path in [
        "/api/v1/namespaces/default/pods/flannel-abcde",
        "/api/v1/configmaps",
    ] {
        assert_eq!(client.get(path).code, 404, "{path}");
    }
}

#[test]
fn access() {
    let mut client = Client::with_nodes(1);
    client.server.require_tokens(&["right"]);
    for token in [None, Some("wrong")] {
        client.token = token.map(str::to_owned);
        let answer = client.get("/api/v1/nodes");
        assert_eq!(
            (answer.code, &answer.body["reason"]),
            (401, &json!("Unauthorized"))
        );
    }
    client.token = Some("right".to_owned());
    assert_eq!(client.get("/api/v1/nodes").code, 200);
    client.server.deny("list", "nodes");
    client.server.deny("get", "pods");
    let answer = client.get("/api/v1/nodes");
    assert_eq!(
        (answer.code, answer.body["message"].as_str().unwrap()),
        (
            403,
            r#"nodes is forbidden: User "system:serviceaccount:kube-flannel:flannel" cannot list resource "nodes" in API group "" at the cluster scope"#
        )
    );
    let answer = client.get("/api/v1/namespaces/a/pods/b");
    assert_eq!(
        (
            answer.body["message"].as_str().unwrap(),
            &answer.body["details"]
        ),
        (
            r#"pods "b" is forbidden: User "system:serviceaccount:kube-flannel:flannel" cannot get resource "pods" in API group "" in the namespace "a""#,
            &json!({ "name": "b", "kind": "pods" })
        )
    );
    assert_eq!(client.get("/api/v1/nodes/n1").code, 200);
    client.server.allow("list", "nodes");
    assert_eq!(client.get("/api/v1/nodes").code, 200);
    let tokens = client.server.requests();
    assert_eq!(tokens[1].token.as_deref(), Some("wrong"));
}

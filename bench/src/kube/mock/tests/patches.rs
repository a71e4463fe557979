//! Patches in both forms, their conflicts and what they do not change.

use serde_json::{Value, json};

use super::client::{Client, MERGE, STRATEGIC};
use crate::kube::mock::Kind;

const STATUS: &str = "/api/v1/nodes/n1/status";

fn condition<'a>(node: &'a Value, kind: &str) -> &'a Value {
    let conditions = node["status"]["conditions"].as_array().unwrap();
    let found = conditions
        .iter()
        .find(|condition| condition["type"] == kind);
    found.unwrap_or(&Value::Null)
}

#[test]
fn annotations_come_change_and_go() {
    let client = Client::with_nodes(1);
    for (form, key) in [(STRATEGIC, "a"), (MERGE, "b")] {
        let patch = json!({ "metadata": { "annotations": { key: "1", "other": "2" } } });
        let answer = client.patch(STATUS, form, &patch);
        assert_eq!((answer.code, &answer.body["kind"]), (200, &json!("Node")));
        let annotations = client.server.annotations("n1");
        assert_eq!(annotations[key], "1");
        assert_eq!(
            annotations["node.alpha.kubernetes.io/ttl"], "0",
            "others stay"
        );
        let patch = json!({ "metadata": { "annotations": { key: null } } });
        client.patch(STATUS, form, &patch);
        assert!(!client.server.annotations("n1").contains_key(key));
        assert_eq!(client.server.annotations("n1")["other"], "2");
    }
    let request = &client.server.requests()[0];
    assert_eq!((request.kind, request.path.as_str()), (Kind::Patch, STATUS));
    assert_eq!(request.content_type, STRATEGIC);
    assert_eq!(request.body["metadata"]["annotations"]["a"], "1");
}

#[test]
fn conditions_are_merged_by_type_in_the_strategic_form_alone() {
    let client = Client::with_nodes(1);
    let unavailable = |status: &str| json!({ "status": { "conditions": [{ "type": "NetworkUnavailable", "status": status }] } });
    client.patch(STATUS, STRATEGIC, &unavailable("True"));
    let answer = client.patch(STATUS, STRATEGIC, &unavailable("False"));
    assert_eq!(
        answer.body["status"]["conditions"]
            .as_array()
            .unwrap()
            .len(),
        5
    );
    assert_eq!(
        condition(&answer.body, "NetworkUnavailable")["status"],
        "False"
    );
    assert_eq!(condition(&answer.body, "Ready")["reason"], "KubeletReady");
    let deletion = json!({ "status": {
        "$setElementOrder/conditions": [{ "type": "Ready" }],
        "conditions": [{ "$patch": "delete", "type": "NetworkUnavailable" }],
    } });
    let answer = client.patch(STATUS, STRATEGIC, &deletion);
    assert_eq!(condition(&answer.body, "NetworkUnavailable"), &Value::Null);
    assert_eq!(condition(&answer.body, "Ready")["status"], "True");
    assert_eq!(
        answer.body["status"].get("$setElementOrder/conditions"),
        None
    );

    let answer = client.patch(STATUS, MERGE, &unavailable("True"));
    let conditions = answer.body["status"]["conditions"].as_array().unwrap();
    assert_eq!(conditions.len(), 1, "a merge patch replaces lists");
}

#[test]
fn status_and_spec_are_changed_apart() {
    let client = Client::with_nodes(1);
    let patch = json!({
        "metadata": { "labels": { "a": "b" } }, "spec": { "unschedulable": true }, "status": { "phase": "Running" },
    });
    let node = client.patch(STATUS, MERGE, &patch).body;
    assert_eq!(
        (&node["spec"]["unschedulable"], &node["status"]["phase"]),
        (&Value::Null, &json!("Running"))
    );
    assert_eq!(node["metadata"]["labels"]["a"], "b");
    let client = Client::with_nodes(1);
    let node = client.patch("/api/v1/nodes/n1", MERGE, &patch).body;
    assert_eq!(
        (&node["spec"]["unschedulable"], &node["status"]["phase"]),
        (&json!(true), &Value::Null)
    );
}

#[test]
fn revisions_of_patches() {
    let client = Client::with_nodes(1);
    let read = client.get("/api/v1/nodes/n1").body;
    let patch = |value: &str| {
        json!({ "metadata": {
            "resourceVersion": read["metadata"]["resourceVersion"], "annotations": { "a": value },
        } })
    };
    let before = client.server.revision();
    assert_eq!(client.patch(STATUS, MERGE, &patch("1")).code, 200);
    assert_eq!(client.server.revision(), before + 1);
    let conflict = client.patch(STATUS, MERGE, &patch("2"));
    assert_eq!(
        (conflict.code, conflict.body),
        (
            409,
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "Operation cannot be fulfilled on nodes \"n1\": the object has been modified; please apply your changes to the latest version and try again",
                "reason": "Conflict", "details": { "name": "n1", "kind": "nodes" }, "code": 409,
            })
        )
    );
    assert_eq!(client.server.annotations("n1")["a"], "1");
    // Nothing changes: no revision.
    let same = json!({ "metadata": { "annotations": { "a": "1" } } });
    assert_eq!(client.patch(STATUS, MERGE, &same).code, 200);
    assert_eq!(client.server.revision(), before + 1);
}

#[test]
fn what_is_refused() {
    let client = Client::with_nodes(1);
    let number = json!({ "metadata": { "annotations": { "a": 1 } } });
    assert_eq!(client.patch(STATUS, MERGE, &number).code, 422);
    assert_eq!(client.patch(STATUS, MERGE, &json!([])).code, 422);
    assert_eq!(
        client
            .patch(STATUS, MERGE, &json!({ "metadata": { "name": "n2" } }))
            .code,
        400
    );
    assert_eq!(
        client
            .patch(STATUS, "application/json-patch+json", &json!([]))
            .code,
        415
    );
    assert_eq!(
        client
            .patch("/api/v1/nodes/n9/status", MERGE, &json!({}))
            .code,
        404
    );
    client.server.deny("patch", "nodes/status");
    let answer = client.patch(STATUS, MERGE, &json!({}));
    assert_eq!(
        (answer.code, &answer.body["details"]),
        (403, &json!({ "name": "n1", "kind": "nodes" }))
    );
    let message = answer.body["message"].as_str().unwrap();
    assert!(
        message.contains(r#"cannot patch resource "nodes/status""#),
        "{message}"
    );
    assert_eq!(
        client.patch("/api/v1/nodes/n1", MERGE, &json!({})).code,
        200
    );
}

//! What a real API server was asked: its audit log, with policy and parser.
//!
//! The log is the server's own word on who has asked what, and on what it has answered.

use serde::Deserialize;

use crate::error::{Error, Result};

/// Logs each request of a service account, without bodies, when it comes and when its answer ends: that of a watch, after
/// minutes.
pub(super) const POLICY: &str = r#"{
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["ResponseStarted"],
    "rules": [
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
        {"level": "None"}
    ]
}"#;

/// A request by a service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `get`, `list`, `watch`, `patch`.
    pub verb: String,
    /// Path and query.
    pub uri: String,
    /// The user, such as `system:serviceaccount:kube-flannel:flannel`.
    pub user: String,
    /// HTTP status; none while the answer is not complete.
    pub status: Option<u16>,
}

/// A line of the log (audit.k8s.io/v1).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    #[serde(rename = "auditID")]
    id: String,
    verb: String,
    #[serde(rename = "requestURI")]
    uri: String,
    user: User,
    response_status: Option<ResponseStatus>,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize)]
struct ResponseStatus {
    code: u16,
}

/// All requests in a log, each once, in the order in which they came.
pub(super) fn parse(log: &str) -> Result<Vec<Request>> {
    let mut ids = Vec::new();
    let mut requests = Vec::<Request>::new();
    // A line that is being written has no end yet.
    for line in log
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
    {
        let event: Event = serde_json::from_str(line).map_err(|error| Error::Parse {
            what: "line of the audit log".to_owned(),
            reason: error.to_string(),
            text: line.to_owned(),
        })?;
        let status = event.response_status.map(|status| status.code);
        if let Some(known) = ids.iter().position(|id| *id == event.id) {
            requests[known].status = status;
            continue;
        }
        ids.push(event.id);
        requests.push(Request {
            verb: event.verb,
            uri: event.uri,
            user: event.user.username,
            status,
        });
    }
    Ok(requests)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: u32, verb: &str, status: Option<u16>) -> String {
        let mut event = serde_json::json!({
            "auditID": id.to_string(), "verb": verb, "requestURI": "/api/v1/nodes?limit=500",
            "user": {"username": "system:serviceaccount:kube-flannel:flannel", "groups": []},
        });
        if let Some(code) = status {
            event["responseStatus"] = serde_json::json!({"metadata": {}, "code": code});
        }
        format!("{event}\n")
    }

    #[test]
    fn a_request_is_one_however_far_it_has_come() {
        let log = line(1, "list", None)
            + &line(2, "watch", None)
            + &line(1, "list", Some(200))
            + &line(3, "watch", None)
            + &line(3, "watch", Some(403))
            + "{\"auditID\":\"4\"";
        let requests = parse(&log).unwrap();
        let seen: Vec<_> = requests
            .iter()
            .map(|request| (request.verb.as_str(), request.status))
            .collect();
        assert_eq!(
            seen,
            [("list", Some(200)), ("watch", None), ("watch", Some(403))]
        );
        assert_eq!(requests[0].uri, "/api/v1/nodes?limit=500");
        assert!(parse("nothing\n").is_err());
    }
}

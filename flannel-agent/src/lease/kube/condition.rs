//! The condition `NetworkUnavailable` of a Node, which keeps pods away from it until its network is up.

use std::time::SystemTime;

/// The condition's type.
pub const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";
/// Its status on a node whose network is up.
const FALSE: &str = "False";
/// Upstream's reason.
const REASON: &str = "FlannelIsUp";
/// Upstream's message.
const MESSAGE: &str = "Flannel is running on this node";

/// What a node's condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Why, in one word.
    pub reason: String,
}

/// The patch after which a node with the condition `current` says that its network is up; none if it says so. The time
/// of the last transition only changes with the status (API conventions, "typical status properties").
pub fn patch(current: Option<&Condition>, now: SystemTime) -> Option<String> {
    let unchanged = current.is_some_and(|condition| condition.status == FALSE);
    if unchanged && current.is_some_and(|condition| condition.reason == REASON) {
        return None;
    }
    let now = humantime::format_rfc3339_seconds(now).to_string();
    let mut condition = serde_json::json!({
        "type": NETWORK_UNAVAILABLE,
        "status": FALSE,
        "reason": REASON,
        "message": MESSAGE,
        "lastHeartbeatTime": now,
    });
    if !unchanged {
        condition["lastTransitionTime"] = now.into();
    }
    Some(serde_json::json!({"status": {"conditions": [condition]}}).to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn patched(status: &str, reason: &str) -> Option<serde_json::Value> {
        let current = Condition {
            status: status.into(),
            reason: reason.into(),
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_308_428_700);
        patch(Some(&current), now).map(|text| serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn what_is_said_already_is_not_said_again() {
        assert_eq!(patched("False", "FlannelIsUp"), None);
        assert!(patch(None, SystemTime::now()).is_some());
    }

    #[test]
    fn the_condition_is_upstreams() {
        let condition = serde_json::json!({
            "type": "NetworkUnavailable", "status": "False", "reason": "FlannelIsUp",
            "message": "Flannel is running on this node",
            "lastHeartbeatTime": "2026-11-22T00:47:08Z", "lastTransitionTime": "2026-11-22T00:47:08Z",
        });
        let patch = patched("True", "NoRouteCreated").unwrap();
        assert_eq!(
            patch,
            serde_json::json!({"status": {"conditions": [condition]}})
        );
    }

    #[test]
    fn another_reason_is_no_transition() {
        let patch = patched("False", "RouteCreated").unwrap();
        let condition = &patch["status"]["conditions"][0];
        assert_eq!(condition["reason"], "FlannelIsUp");
        assert!(condition.get("lastTransitionTime").is_none());
    }
}

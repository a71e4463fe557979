//! `Status` bodies, as a Kubernetes API server writes them for whatever it refuses.
//!
//! `tests/refusals.json` holds what kube-apiserver 1.20.2 has written; the rest is after
//! `k8s.io/apimachinery/pkg/api/errors`.

use hyper::StatusCode;
use serde_json::{Value, json};

/// An answer that is no success: the body, and a time to wait if the server names one.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) code: StatusCode,
    /// Seconds; the header `Retry-After`.
    pub(super) retry_after: Option<u32>,
    /// A `Status`, or plain text.
    pub(super) body: Value,
}

impl Refusal {
    fn new(code: StatusCode, reason: &str, message: &str) -> Self {
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code.as_u16(),
        });
        Self {
            code,
            retry_after: None,
            body,
        }
    }

    fn with_details(mut self, details: Value) -> Self {
        self.body["details"] = details;
        self
    }

    fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self.body["details"]["retryAfterSeconds"] = seconds.into();
        self
    }

    /// No credentials, or wrong ones.
    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// A verb that the user may not use. `name` is empty for collections.
    pub(super) fn forbidden(
        user: &str,
        verb: &str,
        resource: &str,
        name: &str,
        namespace: Option<&str>,
    ) -> Self {
        let kind = resource.split('/').next().unwrap_or(resource);
        let (object, details) = if name.is_empty() {
            (kind.to_owned(), json!({ "kind": kind }))
        } else {
            (
                format!("{kind} {name:?}"),
                json!({ "name": name, "kind": kind }),
            )
        };
        let scope = namespace.map_or("at the cluster scope".to_owned(), |namespace| {
            format!("in the namespace {namespace:?}")
        });
        let message = format!(
            "{object} is forbidden: User {user:?} cannot {verb} resource {resource:?} in API group \"\" {scope}"
        );
        Self::new(StatusCode::FORBIDDEN, "Forbidden", &message).with_details(details)
    }

    /// No such object.
    pub(super) fn not_found(kind: &str, name: &str) -> Self {
        let message = format!("{kind} {name:?} not found");
        Self::new(StatusCode::NOT_FOUND, "NotFound", &message)
            .with_details(json!({ "name": name, "kind": kind }))
    }

    /// No such path.
    pub(super) fn no_such_path() -> Self {
        let message = "the server could not find the requested resource";
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).with_details(json!({}))
    }

    /// A verb that the path does not have.
    pub(super) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
            .with_details(json!({}))
    }

    /// The patch was made for another revision of the object.
    pub(super) fn conflict(kind: &str, name: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {kind} {name:?}: the object has been modified; \
             please apply your changes to the latest version and try again"
        );
        Self::new(StatusCode::CONFLICT, "Conflict", &message)
            .with_details(json!({ "name": name, "kind": kind }))
    }

    /// A request that makes no sense.
    pub(super) fn bad_request(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// A patch whose result would be no node; a patch is shown as Go prints it.
    pub(super) fn invalid_patch(patch: &Value, reason: &str) -> Self {
        let value = format!("Invalid value: \"{}\": {reason}", shown(patch));
        let message = format!(" \"\" is invalid: patch: {value}");
        let cause = json!({ "reason": "FieldValueInvalid", "message": value, "field": "patch" });
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", &message)
            .with_details(json!({ "causes": [cause] }))
    }

    /// A patch in a form that is not known.
    pub(super) fn unsupported_media_type() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            "415: Unsupported Media Type",
        )
        .with_details(json!({}))
    }

    /// What the request refers to is no longer kept.
    pub(super) fn expired(message: &str) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// A continue token whose revision is compacted away; `next` goes on from the same place on the newest state.
    pub(super) fn expired_continue(next: &str) -> Self {
        let mut refusal = Self::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list \
             without the continue parameter, or use the continue token in this response to retrieve the remainder of \
             the results. Continuing with the provided token results in an inconsistent list - objects that were \
             created, modified, or deleted between the time the first chunk was returned and now may show up in the \
             list.",
        );
        refusal.body["metadata"]["continue"] = next.into();
        refusal
    }

    /// A watch from a revision that is compacted away; `oldest` is the first that could be had.
    pub(super) fn too_old(revision: u64, oldest: u64) -> Self {
        Self::expired(&format!("too old resource version: {revision} ({oldest})"))
    }

    /// A list of a revision that is yet to come.
    pub(super) fn too_large(revision: u64, current: u64) -> Self {
        let message =
            format!("Timeout: Too large resource version: {revision}, current: {current}");
        let cause =
            json!({ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" });
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", &message)
            .with_details(json!({ "causes": [cause] }))
            .retry_after(1)
    }

    /// What a fault asks for, by its code.
    pub(super) fn with_code(code: u16, retry_after: Option<u32>) -> Self {
        let refusal = match code {
            401 => Self::unauthorized(),
            409 => Self::conflict("nodes", "unknown"),
            410 => Self::expired("The resourceVersion for the provided watch is too old."),
            // Written by a filter that knows no Status.
            429 => Self {
                code: StatusCode::TOO_MANY_REQUESTS,
                retry_after,
                body: "Too many requests, please try again later.".into(),
            },
            500 => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalError",
                "Internal error occurred: etcdserver: leader changed",
            )
            .with_details(json!({ "causes": [{ "message": "etcdserver: leader changed" }] })),
            503 => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "ServiceUnavailable",
                "the server is currently unable to handle the request",
            )
            .with_details(json!({})),
            504 => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "Timeout",
                "Timeout: request did not complete within the allotted timeout",
            )
            .with_details(json!({})),
            other => Self::new(
                StatusCode::from_u16(other).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
                "",
                "unknown",
            ),
        };
        match retry_after.filter(|_| refusal.body.is_object()) {
            Some(seconds) => refusal.retry_after(seconds),
            None => refusal,
        }
    }
}

/// A value as Go's `%v` prints it.
fn shown(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(name, value)| format!("{name}:{}", shown(value)));
            format!("map[{}]", fields.collect::<Vec<_>>().join(" "))
        }
        Value::Array(values) => {
            let values = values.iter().map(shown);
            format!("[{}]", values.collect::<Vec<_>>().join(" "))
        }
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

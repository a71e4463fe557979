//! Why the Kubernetes API could not be asked, in one line that an operator can act on.

use std::time::Duration;

use serde::Deserialize;

use super::{access, watch::Garbled};
use crate::metrics::KubeRequest as Request;

/// HTTP status of a request without a valid token.
const UNAUTHORIZED: u16 = 401;
/// HTTP status of a request that RBAC does not allow.
const FORBIDDEN: u16 = 403;
/// HTTP status of an object that is not there.
const NOT_FOUND: u16 = 404;
/// HTTP status of a version that the server has forgotten.
const GONE: u16 = 410;
/// How much of an answer that is no `Status` an error repeats, in characters.
const SHOWN: usize = 200;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client's configuration cannot be used.
    #[error(transparent)]
    Access(#[from] access::Error),
    /// The way to the server is broken.
    #[error("{}: {reason}", request.name())]
    Transport {
        /// What was asked.
        request: Request,
        /// The client's error.
        reason: String,
    },
    /// No answer in time.
    #[error("{}: no answer within {} s", request.name(), limit.as_secs())]
    Timeout {
        /// What was asked.
        request: Request,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The server refused.
    #[error("{}: {refusal}{}", request.name(), remedy(*request, refusal.code))]
    Refused {
        /// What was asked.
        request: Request,
        /// What it said.
        refusal: Refusal,
    },
    /// The answer is not what was asked for.
    #[error("{}: the answer is not understood: {source}", request.name())]
    Answer {
        /// What was asked.
        request: Request,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A line of a watch is none.
    #[error(transparent)]
    Garbled(#[from] Garbled),
    /// A watch that has outlived what was asked for: the connection is dead.
    #[error("watch: silent for {} s", .0.as_secs())]
    Silent(Duration),
}

impl Error {
    /// What the server wants to be waited for.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { refusal, .. } => refusal.retry_after,
            _ => None,
        }
    }

    /// Whether the version that was asked for is too old to continue from.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Refused { refusal, .. } if refusal.code == GONE)
    }

    /// Whether what was asked for is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { refusal, .. } if refusal.code == NOT_FOUND)
    }

    /// Whether a connection made anew, with the files as they are now, may do better.
    pub fn is_of_the_connection(&self) -> bool {
        match self {
            Self::Refused { refusal, .. } => refusal.code == UNAUTHORIZED,
            _ => true,
        }
    }
}

/// What to do about a status.
fn remedy(request: Request, code: u16) -> String {
    match code {
        UNAUTHORIZED => "; give a token or certificate that the API server knows: the service account's in a pod, \
                         that of --kubeconfig-file outside"
            .into(),
        FORBIDDEN => format!(
            "; allow the agent's user in a ClusterRole: {}",
            match request {
                Request::Pod => "resources [pods], verbs [get]",
                Request::Node | Request::List | Request::Watch => "resources [nodes], verbs [get, list, watch]",
                Request::Patch => "resources [nodes/status], verbs [patch]",
            }
        ),
        _ => String::new(),
    }
}

/// What a server says with a status that is no success, `Status` of `meta/v1`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub code: u16,
    /// What it says.
    pub message: String,
    /// How long it wants to be left alone.
    pub retry_after: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
    #[serde(default)]
    details: Option<Details>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    #[serde(default)]
    retry_after_seconds: u64,
}

impl Refusal {
    /// From an answer's body, which need not be a `Status`.
    pub fn read(body: &[u8]) -> Self {
        match serde_json::from_slice::<Status>(body) {
            Ok(status) => Self {
                code: status.code,
                message: status.message,
                retry_after: status
                    .details
                    .map(|details| details.retry_after_seconds)
                    .filter(|seconds| *seconds > 0)
                    .map(Duration::from_secs),
            },
            Err(_) => Self {
                message: String::from_utf8_lossy(body.trim_ascii())
                    .chars()
                    .take(SHOWN)
                    .collect(),
                ..Self::default()
            },
        }
    }

    /// Adds what the answer's head says: its status, and its `Retry-After` in seconds.
    #[must_use]
    pub fn with_head(mut self, code: u16, retry_after: Option<&str>) -> Self {
        self.code = code;
        let header = retry_after.and_then(|text| text.trim().parse().ok());
        self.retry_after = header.map(Duration::from_secs).or(self.retry_after);
        self
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "status {}", self.code)?;
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_how_long_to_wait() {
        let body = br#"{"kind":"Status","code":429,"message":"too many","details":{"retryAfterSeconds":3}}"#;
        let refusal = Refusal::read(body);
        assert_eq!(
            (refusal.code, refusal.retry_after),
            (429, Some(Duration::from_secs(3)))
        );
        // Priority and fairness answers with plain text and a header.
        let refusal = Refusal::read(b"Too many requests, please try again later.\n")
            .with_head(429, Some("1"));
        assert_eq!(refusal.retry_after, Some(Duration::from_secs(1)));
        assert_eq!(
            refusal.to_string(),
            "status 429: Too many requests, please try again later."
        );
        // A date, which API servers do not send.
        let dated = Refusal::default().with_head(503, Some("Fri, 31 Dec 1999 23:59:59 GMT"));
        assert_eq!(dated.retry_after, None);
    }

    #[test]
    fn an_error_comes_with_its_remedy() {
        let shown = |request, code| {
            let refusal = Refusal {
                code,
                ..Refusal::default()
            };
            Error::Refused { request, refusal }.to_string()
        };
        assert!(shown(Request::Patch, 403).contains("[nodes/status], verbs [patch]"));
        assert!(shown(Request::Watch, 403).contains("[nodes], verbs [get, list, watch]"));
        assert!(shown(Request::Pod, 403).contains("[pods], verbs [get]"));
        assert!(shown(Request::List, 401).contains("--kubeconfig-file"));
        assert_eq!(shown(Request::List, 500), "list nodes: status 500");
    }
}

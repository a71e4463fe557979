//! Why etcd could not be asked, in one line that an operator can act on.

use std::error::Error as _;

use super::{store::REQUEST_TIMEOUT, tls};
use crate::metrics::{COUNTERS, Request};

/// Why a request to etcd failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The files of TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// etcd, or the way to it, refused.
    #[error("{}: {}", request.name(), brief(.source))]
    Refused {
        /// What was asked.
        request: Request,
        /// The client's error.
        source: Box<etcd_client::Error>,
    },
    /// No answer in time.
    #[error("{}: no answer from {endpoint} within {} s", request.name(), REQUEST_TIMEOUT.as_secs())]
    Timeout {
        /// What was asked.
        request: Request,
        /// Who was asked.
        endpoint: String,
    },
    /// etcd does not tell changes any more.
    #[error("watch: ended by etcd: {0}")]
    Cancelled(String),
}

impl Error {
    /// A watch that broke.
    pub fn watch(source: etcd_client::Error) -> Self {
        COUNTERS.etcd(Request::Watch).failed.count();
        Self::Refused {
            request: Request::Watch,
            source: Box::new(source),
        }
    }

    /// Whether another member may do better: this one was not reached, or is cut off from the others.
    pub(super) fn is_of_the_member(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::Refused { source, .. } => match &**source {
                etcd_client::Error::GRpcStatus(status) => {
                    OF_THE_MEMBER.contains(&i32::from(status.code()))
                }
                etcd_client::Error::TransportError(_) | etcd_client::Error::IoError(_) => true,
                _ => false,
            },
            Self::Tls(_) | Self::Cancelled(_) => false,
        }
    }
}

/// Codes of gRPC that say nothing about the request: CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE.
const OF_THE_MEMBER: [i32; 5] = [1, 2, 4, 13, 14];

/// A failure in one line, with what an operator can do about it.
fn brief(error: &etcd_client::Error) -> String {
    let text = match error {
        etcd_client::Error::GRpcStatus(status) => with_root(status.message(), status.source()),
        etcd_client::Error::TransportError(error) => with_root("transport error", error.source()),
        other => other.to_string(),
    };
    let remedy = REMEDIES.iter().find(|(part, _)| text.contains(part));
    match remedy {
        Some((_, remedy)) => format!("{text}; {remedy}"),
        None => text,
    }
}

/// What is part of an error's text, and what to do then.
const REMEDIES: [(&str, &str); 9] = [
    (
        "UnknownIssuer",
        "give the authority that signed etcd's certificate by --etcd-cafile",
    ),
    (
        "not valid for name",
        "use a name or address in --etcd-endpoints that etcd's certificate holds",
    ),
    (
        "CertificateRequired",
        "etcd wants a certificate: give --etcd-certfile and --etcd-keyfile",
    ),
    (
        // What is left of an attempt without TLS where etcd wants it.
        "broken pipe",
        "if etcd speaks TLS, give its endpoints with https://",
    ),
    (
        // What Go sends to a client without a certificate, and to one with a wrong certificate.
        "BadCertificate",
        "etcd refuses the agent's certificate, or the lack of one: check --etcd-certfile and --etcd-keyfile",
    ),
    (
        // The same, when the connection is gone before its alert is read.
        "connection closed",
        "etcd may want a certificate: check --etcd-certfile and --etcd-keyfile",
    ),
    (
        "authentication failed",
        "check --etcd-username and --etcd-password",
    ),
    (
        "user name is empty",
        "etcd wants a user: give --etcd-username and --etcd-password",
    ),
    (
        "permission denied",
        "let etcd's user read and write below --etcd-prefix",
    ),
];

/// What a transport error hides, such as "connection refused", is at the end of the chain.
fn with_root(text: &str, mut source: Option<&(dyn std::error::Error + 'static)>) -> String {
    let mut root = None;
    while let Some(error) = source {
        root = Some(error.to_string());
        source = error.source();
    }
    match root {
        Some(root) if !text.contains(&root) => format!("{text}: {root}"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_said_once() {
        let root = std::io::Error::other("connection refused");
        assert_eq!(
            with_root("transport error", Some(&root)),
            "transport error: connection refused"
        );
        assert_eq!(
            with_root("is connection refused", Some(&root)),
            "is connection refused"
        );
        assert_eq!(with_root("alone", None), "alone");
    }

    #[test]
    fn an_error_comes_with_its_remedy() {
        let shown = |text: &str| brief(&etcd_client::Error::Internal(text.to_owned()));
        for (text, option) in [
            ("invalid peer certificate: UnknownIssuer", "--etcd-cafile"),
            ("certificate not valid for name \"a\"", "--etcd-endpoints"),
            (
                "authentication failed, invalid user ID or password",
                "--etcd-password",
            ),
            ("etcdserver: permission denied", "--etcd-prefix"),
        ] {
            let line = shown(text);
            assert!(line.contains(text) && line.contains(option), "{line}");
        }
        assert!(!shown("something else").contains("--"));
    }

    #[test]
    fn another_member_is_asked_when_this_one_is_at_fault() {
        let refused = |source| Error::Refused {
            request: Request::Get,
            source: Box::new(source),
        };
        let io = etcd_client::Error::IoError(std::io::Error::other("reset"));
        assert!(refused(io).is_of_the_member());
        let timeout = Error::Timeout {
            request: Request::Get,
            endpoint: "a".to_owned(),
        };
        assert!(timeout.is_of_the_member());
        let answer = etcd_client::Error::LeaseKeepAliveError("lease not found".to_owned());
        assert!(!refused(answer).is_of_the_member());
        assert!(!Error::Cancelled("compacted".to_owned()).is_of_the_member());
    }
}

//! Requests: what they ask for, and the record of all that came.

use std::collections::BTreeMap;

use serde_json::Value;

/// What a request asks for. Faults are armed and requests are counted by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A list of nodes from the beginning: all of it, or its first page.
    List,
    /// A further page of a list.
    Page,
    /// A watch on nodes.
    Watch,
    /// One node.
    Get,
    /// A change of a node or its status.
    Patch,
    /// One pod.
    Pod,
    /// Anything else.
    Other,
}

/// A request as it came in, whatever the answer was.
#[derive(Clone, Debug)]
pub struct Request {
    /// What it asks for.
    pub kind: Kind,
    /// `GET`, `PATCH`.
    pub method: String,
    /// The path, as `/api/v1/nodes`.
    pub path: String,
    /// The parameters.
    pub query: BTreeMap<String, String>,
    /// The bearer token.
    pub token: Option<String>,
    /// `Content-Type`; empty without.
    pub content_type: String,
    /// The body; null if there is none, or if it is not JSON.
    pub body: Value,
}

impl Request {
    /// A parameter; empty if it is absent, which means the same to an API server.
    pub(super) fn parameter(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    /// A parameter that is true or false.
    pub(super) fn is_set(&self, name: &str) -> bool {
        matches!(self.parameter(name), "true" | "1")
    }
}

/// A request's subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target<'a> {
    Nodes,
    Node { name: &'a str, status: bool },
    Pod { namespace: &'a str, name: &'a str },
    Version,
    Health,
    Unknown,
}

impl<'a> Target<'a> {
    pub(super) fn of(path: &'a str) -> Self {
        let parts = path.trim_matches('/').split('/').collect::<Vec<_>>();
        match parts.as_slice() {
            ["api", "v1", "nodes"] => Self::Nodes,
            ["api", "v1", "nodes", name] => Self::Node {
                name,
                status: false,
            },
            ["api", "v1", "nodes", name, "status"] => Self::Node { name, status: true },
            ["api", "v1", "namespaces", namespace, "pods", name] => Self::Pod { namespace, name },
            ["version"] => Self::Version,
            ["healthz" | "livez" | "readyz"] => Self::Health,
            _ => Self::Unknown,
        }
    }

    pub(super) fn kind(self, method: &str, query: &BTreeMap<String, String>) -> Kind {
        let parameter = |name: &str| query.get(name).map_or("", String::as_str);
        match (self, method) {
            (Self::Nodes, "GET") if matches!(parameter("watch"), "true" | "1") => Kind::Watch,
            (Self::Nodes, "GET") if !parameter("continue").is_empty() => Kind::Page,
            (Self::Nodes, "GET") => Kind::List,
            (Self::Node { .. }, "GET") => Kind::Get,
            (Self::Node { .. }, "PATCH") => Kind::Patch,
            (Self::Pod { .. }, "GET") => Kind::Pod,
            _ => Kind::Other,
        }
    }

    /// The verb, resource, name and namespace that access is decided by; none for what everybody may read.
    pub(super) fn access(self, kind: Kind) -> Option<Access<'a>> {
        let verb = match kind {
            Kind::List | Kind::Page => "list",
            Kind::Watch => "watch",
            Kind::Get | Kind::Pod => "get",
            Kind::Patch => "patch",
            Kind::Other => return None,
        };
        let (resource, name, namespace) = match self {
            Self::Nodes => ("nodes", "", None),
            Self::Node {
                name,
                status: false,
            } => ("nodes", name, None),
            Self::Node { name, status: true } => ("nodes/status", name, None),
            Self::Pod { namespace, name } => ("pods", name, Some(namespace)),
            Self::Version | Self::Health | Self::Unknown => return None,
        };
        Some(Access {
            verb,
            resource,
            name,
            namespace,
        })
    }
}

/// What a request needs the right to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access<'a> {
    pub(super) verb: &'static str,
    pub(super) resource: &'static str,
    pub(super) name: &'a str,
    pub(super) namespace: Option<&'a str>,
}

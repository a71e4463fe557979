//! Lists of nodes: all at once or in pages of one revision.
//!
//! What `limit`, `continue`, `resourceVersion` and `resourceVersionMatch` mean together is in the table of "Kubernetes
//! API Concepts", Resource versions; the forms of tokens in `k8s.io/apiserver/pkg/storage/continue.go`.

use std::ops::Bound;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    request::Request,
    status::Refusal,
    store::{Nodes, Store},
};

/// The revision of a token that goes on with whatever is there now.
const NEWEST: i64 = -1;
const TOKEN_VERSION: &str = "meta.k8s.io/v1";

/// A continue token.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Token {
    v: String,
    rv: i64,
    /// The last name of the page before, and a zero byte: the first key that is greater.
    start: String,
}

impl Token {
    fn new(revision: i64, last: &str) -> Self {
        Self {
            v: TOKEN_VERSION.to_owned(),
            rv: revision,
            start: format!("{last}\0"),
        }
    }

    fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).expect("strings and a number are JSON"))
    }

    fn parse(text: &str) -> Result<Self, Refusal> {
        let bad = |reason: &str| {
            let message = format!("invalid continue token: continue key is not valid: {reason}");
            Refusal::bad_request(&message)
        };
        let json = URL_SAFE_NO_PAD.decode(text);
        let json = json.map_err(|_| bad("illegal base64 data at input byte 0"))?;
        let token: Self = serde_json::from_slice(&json).map_err(|error| bad(&error.to_string()))?;
        if token.v != TOKEN_VERSION {
            let reason = format!(
                "server does not recognize this encoded version {:?}",
                token.v
            );
            return Err(bad(&reason));
        }
        Ok(token)
    }
}

/// Answers a list.
pub(super) fn answer(store: &Store, request: &Request) -> Result<Bytes, Refusal> {
    let limit = number(request, "limit")?;
    let token = request.parameter("continue");
    let revision = request.parameter("resourceVersion");
    if !token.is_empty() {
        if !matches!(revision, "" | "0") {
            let reason = "specifying resource version is not allowed when using continue";
            return Err(Refusal::bad_request(reason));
        }
        let token = Token::parse(token)?;
        return further_page(store, request, &token, limit);
    }
    match revision {
        // From the server's cache, which does not know pages.
        "0" => page(request, store.nodes(), None, None, store.revision()),
        _ => {
            let asked = number(request, "resourceVersion")?;
            let exact = match request.parameter("resourceVersionMatch") {
                "Exact" => true,
                "" => limit.is_some(),
                _ => false,
            };
            match asked {
                Some(asked) if asked > store.revision() => {
                    Err(Refusal::too_large(asked, store.revision()))
                }
                Some(asked) if exact => {
                    let nodes = store.nodes_at(asked).map_err(|_| {
                        Refusal::expired("The resourceVersion for the provided list is too old.")
                    })?;
                    page(request, &nodes, None, limit, asked)
                }
                _ => page(request, store.nodes(), None, limit, store.revision()),
            }
        }
    }
}

fn further_page(
    store: &Store,
    request: &Request,
    token: &Token,
    limit: Option<u64>,
) -> Result<Bytes, Refusal> {
    let start = Some(token.start.as_str());
    let Ok(revision) = u64::try_from(token.rv) else {
        return page(request, store.nodes(), start, limit, store.revision());
    };
    let nodes = store.nodes_at(revision).map_err(|_| {
        let last = token.start.trim_end_matches('\0');
        Refusal::expired_continue(&Token::new(NEWEST, last).text())
    })?;
    page(request, &nodes, start, limit, revision)
}

fn page(
    request: &Request,
    nodes: &Nodes,
    start: Option<&str>,
    limit: Option<u64>,
    revision: u64,
) -> Result<Bytes, Refusal> {
    let only = name_of(request)?;
    let first = start.map_or(Bound::Unbounded, Bound::Included);
    let mut rest = nodes
        .range::<str, _>((first, Bound::Unbounded))
        .filter(|(name, _)| only.is_none_or(|only| only == *name));
    let limit = limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    });
    let items = rest.by_ref().take(limit).collect::<Vec<_>>();
    let remaining = rest.count();

    let mut metadata = Map::from_iter([(
        "resourceVersion".to_owned(),
        Value::from(revision.to_string()),
    )]);
    if let Some((last, _)) = items.last().filter(|_| remaining > 0) {
        let revision = i64::try_from(revision).unwrap_or(i64::MAX);
        metadata.insert(
            "continue".to_owned(),
            Token::new(revision, last).text().into(),
        );
        // With a selector the real one does not count either.
        if only.is_none() {
            metadata.insert("remainingItemCount".to_owned(), remaining.into());
        }
    }
    let mut text = json!({ "kind": "NodeList", "apiVersion": "v1", "metadata": metadata })
        .to_string()
        .into_bytes();
    text.pop(); // the closing brace
    text.extend_from_slice(br#","items":["#);
    for (index, (_, node)) in items.iter().enumerate() {
        if index > 0 {
            text.push(b',');
        }
        text.extend_from_slice(node);
    }
    text.extend_from_slice(b"]}\n");
    Ok(text.into())
}

/// The node that a field selector names, the only one that the server of the lab knows.
pub(super) fn name_of(request: &Request) -> Result<Option<&str>, Refusal> {
    if !request.parameter("labelSelector").is_empty() {
        return Err(Refusal::bad_request(
            "the lab's server knows no labelSelector",
        ));
    }
    let selector = request.parameter("fieldSelector");
    match selector.split_once('=') {
        None if selector.is_empty() => Ok(None),
        Some(("metadata.name", name)) => Ok(Some(name.trim_start_matches('='))),
        _ => {
            let label = selector.split('=').next().unwrap_or_default();
            let reason = format!("field label not supported: {label}");
            Err(Refusal::bad_request(&reason))
        }
    }
}

/// A number from the parameters; none if it is absent or zero.
pub(super) fn number(request: &Request, name: &str) -> Result<Option<u64>, Refusal> {
    match request.parameter(name) {
        "" => Ok(None),
        text => match text.parse::<u64>() {
            Ok(number) => Ok((number > 0).then_some(number)),
            Err(_) => {
                let reason = format!("strconv.ParseInt: parsing {text:?}: invalid syntax");
                Err(Refusal::bad_request(&reason))
            }
        },
    }
}

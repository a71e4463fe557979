//! From a request to its answer.

use std::sync::Arc;

use hyper::{
    Response, StatusCode,
    body::Bytes,
    header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};
use serde_json::{Value, json};

use super::{
    Shared, State,
    body::Content,
    fault::Fault,
    list, patch,
    request::{Kind, Request, Target},
    server::Connection,
    status::Refusal,
    store::with_kind,
    watch::Watch,
};

/// The user that tokens belong to, as flannel's manifests name it.
const USER: &str = "system:serviceaccount:kube-flannel:flannel";

/// The connection is to be reset, with nothing answered.
#[derive(Debug, thiserror::Error)]
#[error("the connection is reset on purpose")]
pub(super) struct Reset;

/// What is done for a request.
enum Done {
    Whole(Bytes),
    Watch(Watch),
}

/// Records a request, does what it asks for, and answers as the fault that waits for it demands.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    connection: &Connection,
    request: Request,
) -> Result<Response<Content>, Reset> {
    let fault = {
        let mut state = shared.state();
        state.requests.push(request.clone());
        state.faults.take(request.kind)
    };
    match fault {
        Some(Fault::Reset) => {
            connection.reset_when_closed();
            return Err(Reset);
        }
        Some(Fault::Status { code, retry_after }) => {
            return Ok(refuse(&Refusal::with_code(code, retry_after)));
        }
        Some(Fault::Slow(time)) => tokio::time::sleep(time).await,
        _ => {}
    }
    let done = perform(&mut shared.state(), &request);
    if request.kind == Kind::Patch {
        shared.announce();
    }
    Ok(match done {
        Ok(Done::Watch(watch)) => respond(StatusCode::OK, watch.start(shared, connection, fault)),
        Ok(Done::Whole(text)) => respond(StatusCode::OK, spoiled(text, fault)),
        Err(refusal) => refuse(&refusal),
    })
}

/// The body that a fault leaves of an answer.
fn spoiled(text: Bytes, fault: Option<Fault>) -> Content {
    match fault {
        Some(Fault::Cut) => Content::half(&text),
        Some(Fault::Garbage) => Content::Whole(Some(Bytes::from_static(
            b"<html><title>Welcome</title></html>",
        ))),
        Some(Fault::Stall) => {
            let (sender, content) = Content::stream();
            tokio::spawn(async move { sender.closed().await });
            content
        }
        _ => Content::Whole(Some(text)),
    }
}

fn respond(code: StatusCode, content: Content) -> Response<Content> {
    let mut response = Response::new(content);
    *response.status_mut() = code;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

fn refuse(refusal: &Refusal) -> Response<Content> {
    let text = refusal.body.as_str();
    let body = text.map_or_else(|| refusal.body.to_string(), str::to_owned) + "\n";
    let mut response = respond(refusal.code, Content::Whole(Some(body.into())));
    if text.is_some() {
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, plain);
    }
    if let Some(seconds) = refusal.retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn perform(state: &mut State, request: &Request) -> Result<Done, Refusal> {
    let target = Target::of(&request.path);
    check_access(state, request, target)?;
    let whole = |value: Value| Ok(Done::Whole(format!("{value}\n").into()));
    match (target, request.kind) {
        (Target::Nodes, Kind::Watch) => Watch::new(&state.store, request).map(Done::Watch),
        (Target::Nodes, Kind::List | Kind::Page) => {
            list::answer(&state.store, request).map(Done::Whole)
        }
        (Target::Node { name, .. }, Kind::Get) => {
            let node = state.store.nodes().get(name);
            let node = node.ok_or_else(|| Refusal::not_found("nodes", name))?;
            Ok(Done::Whole(with_kind(node)))
        }
        (Target::Node { name, status }, Kind::Patch) => {
            patch_node(state, request, name, status).map(Done::Whole)
        }
        (Target::Pod { namespace, name }, Kind::Pod) => {
            let pod = state.pods.get(&(namespace.to_owned(), name.to_owned()));
            whole(pod.ok_or_else(|| Refusal::not_found("pods", name))?.clone())
        }
        (Target::Version, _) => {
            whole(json!({ "major": "1", "minor": "34", "gitVersion": "v1.34.2" }))
        }
        (Target::Health, _) => Ok(Done::Whole(Bytes::from_static(b"ok"))),
        (Target::Unknown, _) => Err(Refusal::no_such_path()),
        _ => Err(Refusal::method_not_allowed()),
    }
}

fn check_access(state: &State, request: &Request, target: Target<'_>) -> Result<(), Refusal> {
    if let Some(tokens) = &state.tokens {
        let known = request
            .token
            .as_ref()
            .is_some_and(|token| tokens.contains(token));
        if !known {
            return Err(Refusal::unauthorized());
        }
    }
    let Some(access) = target.access(request.kind) else {
        return Ok(());
    };
    let is_denied =
        |(verb, resource): &(String, String)| verb == access.verb && resource == access.resource;
    if state.denied.iter().any(is_denied) {
        return Err(Refusal::forbidden(
            USER,
            access.verb,
            access.resource,
            access.name,
            access.namespace,
        ));
    }
    Ok(())
}

/// Changes a node. Its status is changed through `status` only, its spec only without; its metadata by both.
fn patch_node(
    state: &mut State,
    request: &Request,
    name: &str,
    status: bool,
) -> Result<Bytes, Refusal> {
    let form = patch::Form::of(&request.content_type);
    let form = form.ok_or_else(Refusal::unsupported_media_type)?;
    if !request.body.is_object() {
        let reason = "couldn't get version/kind; json parse error";
        return Err(Refusal::invalid_patch(&request.body, reason));
    }
    let before = state.store.node(name);
    let before = before.ok_or_else(|| Refusal::not_found("nodes", name))?;
    let mut after = before.clone();
    form.apply(&mut after, &request.body);
    let metadata = &after["metadata"];
    if metadata["resourceVersion"] != before["metadata"]["resourceVersion"] {
        return Err(Refusal::conflict("nodes", name));
    }
    if metadata["name"] != name {
        let reason = format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            metadata["name"].as_str().unwrap_or_default()
        );
        return Err(Refusal::bad_request(&reason));
    }
    for texts in ["annotations", "labels"] {
        let mut values = metadata[texts]
            .as_object()
            .into_iter()
            .flat_map(serde_json::Map::values);
        if let Some(value) = values.find(|value| !value.is_string()) {
            let kind = match value {
                Value::Number(number) if number.is_i64() => "int64",
                Value::Number(_) => "float64",
                Value::Bool(_) => "bool",
                _ => "map[string]interface {}",
            };
            let reason = format!("cannot convert {kind} to string");
            return Err(Refusal::invalid_patch(&request.body, &reason));
        }
    }
    let kept = if status { "spec" } else { "status" };
    after[kept] = before[kept].clone();
    state.store.put(after);
    Ok(with_kind(&state.store.nodes()[name]))
}

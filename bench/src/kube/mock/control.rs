//! What tests do to a server: the rest of the cluster, a look at the requests, and faults.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use super::{ApiServer, Fault, Interrupt, Kind, Request, node, patch::Form};
use crate::{
    error::{Error, Result},
    wait,
};

/// How long waits last at most.
const LIMIT: Duration = Duration::from_secs(20);

/// The cluster that the server speaks for.
impl ApiServer {
    /// Makes the node that `metadata.name` names, or replaces its content; see [`node`]. Returns the revision.
    pub fn put_node(&self, node: Value) -> u64 {
        let revision = self.shared.state().store.put(node);
        self.shared.announce();
        revision
    }

    /// Changes a node.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn change_node(&self, name: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        {
            let mut state = self.shared.state();
            let mut node = state.store.node(name).ok_or_else(|| no_node(name))?;
            change(&mut node);
            state.store.put(node);
        }
        self.shared.announce();
        Ok(())
    }

    /// Gives a node these pod CIDRs, or none.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn set_pod_cidrs(&self, name: &str, pod_cidrs: &[&str]) -> Result<()> {
        self.change_node(name, |node| node::set_pod_cidrs(node, pod_cidrs))
    }

    /// Sets annotations, or takes those away that have no value.
    ///
    /// # Errors
    /// If there is no node of this name.
    pub fn annotate(&self, name: &str, annotations: &[(&str, Option<&str>)]) -> Result<()> {
        let annotations: Value = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(value)))
            .collect();
        let patch = json!({ "metadata": { "annotations": annotations } });
        self.change_node(name, |node| Form::Merge.apply(node, &patch))
    }

    /// Deletes a node, and says whether there was one.
    pub fn delete_node(&self, name: &str) -> bool {
        let was_there = self.shared.state().store.delete(name);
        self.shared.announce();
        was_there
    }

    /// A node as it is now, without `kind` and `apiVersion`.
    pub fn node(&self, name: &str) -> Option<Value> {
        self.shared.state().store.node(name)
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> Vec<Value> {
        let state = self.shared.state();
        let nodes = state.store.nodes();
        nodes
            .keys()
            .filter_map(|name| state.store.node(name))
            .collect()
    }

    /// The annotations of a node; none if there is no such node.
    pub fn annotations(&self, name: &str) -> BTreeMap<String, String> {
        let node = self.node(name).unwrap_or_default();
        serde_json::from_value(node["metadata"]["annotations"].clone()).unwrap_or_default()
    }

    /// Waits until a node fulfils a condition, and returns it.
    ///
    /// # Errors
    /// If it does not within 20 s; with the node.
    pub fn wait_node(
        &self,
        what: &str,
        name: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        wait::until(&format!("{what} of node {name}"), LIMIT, || {
            let node = self.node(name).unwrap_or_default();
            Ok(if condition(&node) {
                Ok(node)
            } else {
                Err(json!({
                    "annotations": node["metadata"]["annotations"], "spec": node["spec"],
                    "conditions": node["status"]["conditions"],
                })
                .to_string())
            })
        })
    }

    /// Makes a pod that runs on a node.
    pub fn put_pod(&self, namespace: &str, name: &str, node: &str) {
        let pod = json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": { "name": name, "namespace": namespace, "resourceVersion": self.revision().to_string() },
            "spec": { "nodeName": node, "containers": [{ "name": "kube-flannel", "image": "flannel" }] },
            "status": { "phase": "Running" },
        });
        let key = (namespace.to_owned(), name.to_owned());
        self.shared.state().pods.insert(key, pod);
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.shared.state().store.revision()
    }

    /// Counts revisions that concern no node, as changes of other objects do. Only bookmarks tell clients of them.
    pub fn advance(&self, revisions: u64) {
        self.shared.state().store.advance(revisions);
    }
}

/// What clients ask for.
impl ApiServer {
    /// All requests since the start, or since [`ApiServer::forget_requests`], in order.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.clone()
    }

    /// How many of them were of this kind.
    pub fn count(&self, kind: Kind) -> usize {
        let state = self.shared.state();
        state
            .requests
            .iter()
            .filter(|request| request.kind == kind)
            .count()
    }

    /// Begins to count anew.
    pub fn forget_requests(&self) {
        self.shared.state().requests.clear();
    }

    /// Waits until at least this many requests of a kind have come.
    ///
    /// # Errors
    /// If they do not within 20 s.
    pub fn wait_requests(&self, kind: Kind, count: usize) -> Result<()> {
        wait::until(&format!("{count} requests {kind:?}"), LIMIT, || {
            let seen = self.count(kind);
            Ok((seen >= count).then_some(()).ok_or(format!("{seen}")))
        })
    }

    /// How many watches are open now.
    pub fn open_watches(&self) -> usize {
        self.shared.state().open_watches
    }

    /// Waits until exactly this many watches are open.
    ///
    /// # Errors
    /// If they are not within 20 s.
    pub fn wait_watches(&self, count: usize) -> Result<()> {
        wait::until(&format!("{count} open watches"), LIMIT, || {
            let open = self.open_watches();
            Ok((open == count).then_some(()).ok_or(format!("{open}")))
        })
    }
}

/// Faults.
impl ApiServer {
    /// Spoils the next `times` requests of a kind, after those that are to be spoiled already.
    pub fn arm(&self, kind: Kind, times: usize, fault: Fault) {
        self.shared.state().faults.arm(kind, times, fault);
    }

    /// Takes all faults away that have not come true yet.
    pub fn disarm(&self) {
        self.shared.state().faults.disarm();
    }

    /// How many armed faults have not come true yet.
    pub fn armed(&self) -> usize {
        self.shared.state().faults.armed()
    }

    /// Does something to all watches that are open, after what has happened until now.
    pub fn interrupt_watches(&self, interrupt: Interrupt) {
        // An error means that no watch is open.
        self.shared.interrupts.send(interrupt).ok();
    }

    /// Forgets the past: lists and watches of revisions before now are answered with 410. Open watches go on.
    pub fn compact(&self) {
        self.shared.state().store.compact();
    }

    /// From now on lets in only who has one of these bearer tokens; others get 401.
    pub fn require_tokens(&self, tokens: &[&str]) {
        let tokens = tokens.iter().map(|token| (*token).to_owned()).collect();
        self.shared.state().tokens = Some(tokens);
    }

    /// Lets in one more bearer token; from now on one is needed.
    pub fn let_in(&self, token: &str) {
        let tokens = &mut self.shared.state().tokens;
        tokens.get_or_insert_default().insert(token.to_owned());
    }

    /// Refuses a verb on a resource from now on, such as `patch` on `nodes/status`, with 403.
    pub fn deny(&self, verb: &str, resource: &str) {
        let denied = (verb.to_owned(), resource.to_owned());
        self.shared.state().denied.insert(denied);
    }

    /// Allows it again.
    pub fn allow(&self, verb: &str, resource: &str) {
        let denied = (verb.to_owned(), resource.to_owned());
        self.shared.state().denied.remove(&denied);
    }
}

fn no_node(name: &str) -> Error {
    Error::Unsupported(format!("the API server has no node {name:?}"))
}

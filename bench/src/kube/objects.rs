//! What is asked of a real API server: manifests, Node objects, tokens.

use serde_json::{Value, json};

use super::apiserver::ApiServer;
use crate::error::{Error, Result};

impl ApiServer {
    /// Applies manifests, YAML or JSON, which the server validates.
    ///
    /// # Errors
    /// What kubectl and the server find wrong.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.kubectl_with_input(&["apply", "-f", "-"], manifests)
    }

    /// Makes a node object as a kubelet and the controller manager would leave it: with subnets for its pods, one or one
    /// of each family.
    ///
    /// # Errors
    /// If it exists, or the server refuses it.
    pub fn create_node(&self, name: &str, subnets: &[&str]) -> Result<()> {
        let mut node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
            "spec": {}
        });
        if let Some(first) = subnets.first() {
            node["spec"] = json!({"podCIDR": first, "podCIDRs": subnets});
        }
        self.kubectl_with_input(&["create", "-f", "-"], &node.to_string())
            .map(drop)
    }

    /// A node object.
    ///
    /// # Errors
    /// If there is none.
    pub fn node(&self, name: &str) -> Result<Value> {
        let text = self.kubectl(&["get", "node", name, "-o", "json"])?;
        parse(&format!("node {name}"), &text)
    }

    /// A token of a service account, which the server signs as for a pod's volume (TokenRequest).
    ///
    /// # Errors
    /// If there is no such account.
    pub fn token(&self, namespace: &str, account: &str) -> Result<String> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"expirationSeconds": 24 * 3600}
        });
        let answer =
            self.kubectl_with_input(&["create", "--raw", &path, "-f", "-"], &request.to_string())?;
        let answer = parse("token request", &answer)?;
        answer["status"]["token"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| Error::Parse {
                what: "answer to a token request".to_owned(),
                reason: "it has no status.token".to_owned(),
                text: answer.to_string(),
            })
    }
}

fn parse(what: &str, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| Error::Parse {
        what: what.to_owned(),
        reason: error.to_string(),
        text: text.to_owned(),
    })
}

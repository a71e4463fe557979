//! YAML documents as values, found by kind, and their check against the types of Kubernetes' API.
//!
//! The types are those of the API's own description. They ignore fields that they do not know, and so does a client of the
//! API server; here such a field is an error, found by writing the typed object out again.

use anyhow::{Context as _, anyhow, bail, ensure};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    batch::v1::Job,
    core::v1::{ConfigMap, Namespace, Pod, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::Outcome;

/// The documents of one file or one rendering.
#[derive(Clone, Debug)]
pub(crate) struct Documents(pub(crate) Vec<Value>);

impl Documents {
    /// Reads YAML; documents without content are left out.
    pub(crate) fn parse(yaml: &str) -> anyhow::Result<Self> {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(yaml).map_err(|error| anyhow!("not YAML: {error}"))?;
        let documents: Vec<Value> = documents
            .into_iter()
            .filter(|document| !document.is_null())
            .collect();
        ensure!(!documents.is_empty(), "no documents");
        Ok(Self(documents))
    }

    /// The only document of a kind.
    pub(crate) fn one(&self, kind: &str) -> anyhow::Result<&Value> {
        let mut of_kind = self.0.iter().filter(|document| document["kind"] == kind);
        match (of_kind.next(), of_kind.next()) {
            (Some(document), None) => Ok(document),
            (None, _) => bail!("no {kind}"),
            (Some(_), Some(_)) => bail!("more than one {kind}"),
        }
    }

    /// In an order that does not depend on who rendered them.
    pub(crate) fn sorted(mut self) -> Vec<Value> {
        self.0.sort_by_key(name);
        self.0
    }

    /// Each is an object of Kubernetes' API, whose fields all are the API's and of its types, and none is there twice.
    /// Whether one is missing, and what values are allowed, only an API server tells.
    pub(crate) fn are_typed(&self) -> Outcome {
        let mut names: Vec<String> = self.0.iter().map(name).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        ensure!(names.len() == count, "a document is there twice: {names:?}");
        for document in &self.0 {
            typed(document).with_context(|| name(document))?;
        }
        Ok(())
    }
}

/// Kind, namespace and name.
fn name(document: &Value) -> String {
    let metadata = &document["metadata"];
    format!(
        "{} {}/{}",
        document["kind"], metadata["namespace"], metadata["name"]
    )
}

fn typed(document: &Value) -> Outcome {
    let text = |field: &str| document[field].as_str().unwrap_or_default();
    let check = match (text("apiVersion"), text("kind")) {
        ("v1", "Namespace") => round_trip::<Namespace>,
        ("v1", "Pod") => round_trip::<Pod>,
        ("v1", "ServiceAccount") => round_trip::<ServiceAccount>,
        ("v1", "ConfigMap") => round_trip::<ConfigMap>,
        ("v1", "Service") => round_trip::<Service>,
        ("apps/v1", "DaemonSet") => round_trip::<DaemonSet>,
        ("apps/v1", "Deployment") => round_trip::<Deployment>,
        ("batch/v1", "Job") => round_trip::<Job>,
        ("networking.k8s.io/v1", "NetworkPolicy") => round_trip::<NetworkPolicy>,
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => round_trip::<ClusterRole>,
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => round_trip::<ClusterRoleBinding>,
        (version, kind) => bail!("no type for {version} {kind}: add it here"),
    };
    check(document)
}

fn round_trip<T: Serialize + DeserializeOwned>(document: &Value) -> Outcome {
    let object: T = serde_json::from_value(document.clone())?;
    let mut lost = Vec::new();
    compare(
        document,
        &serde_json::to_value(object)?,
        &mut String::new(),
        &mut lost,
    );
    ensure!(lost.is_empty(), "unknown fields: {}", lost.join(", "));
    Ok(())
}

/// Notes the paths of what is in `written` and not in `read`. Null is as good as absent.
fn compare(written: &Value, read: &Value, path: &mut String, lost: &mut Vec<String>) {
    let mut inner = |step: String, written: &Value, read: Option<&Value>| {
        let length = path.len();
        path.push_str(&step);
        match read {
            Some(read) => compare(written, read, path, lost),
            None if written.is_null() || *written == Value::Array(Vec::new()) => {}
            None => lost.push(path.clone()),
        }
        path.truncate(length);
    };
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (field, value) in written {
                inner(format!(".{field}"), value, read.get(field));
            }
        }
        (Value::Array(written), Value::Array(read)) => {
            for (index, value) in written.iter().enumerate() {
                inner(format!("[{index}]"), value, read.get(index));
            }
        }
        (written, read) if written == read => {}
        _ => lost.push(path.clone()),
    }
}

/// The check fails for what it is to find.
pub(crate) fn mistakes_are_found() -> Outcome {
    let good = crate::MANIFEST;
    for (right, wrong, complaint) in [
        (
            "hostNetwork: true",
            "hostNetwrok: true",
            ".spec.template.spec.hostNetwrok",
        ),
        ("periodSeconds: 30", "periodSeconds: often", "invalid type"),
        ("mountPropagation:", "mountPropogation:", "mountPropogation"),
        ("kind: ServiceAccount", "kind: ServiceAcount", "no type for"),
        ("verbs: [patch]", "verb: [patch]", ".rules[1].verb"),
        (
            "name: kube-flannel-cfg\n  namespace",
            "nmae: x\n  namespace",
            "metadata.nmae",
        ),
    ] {
        ensure!(good.contains(right), "the manifest has no {right:?}");
        let error = match Documents::parse(&good.replacen(right, wrong, 1))?.are_typed() {
            Ok(()) => bail!("{wrong:?} is not noticed"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(error.contains(complaint), "{wrong:?}: {error}");
    }
    Ok(())
}

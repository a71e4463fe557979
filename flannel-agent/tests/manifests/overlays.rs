//! Overlays: rendered, typed, and different from the manifest only where they are meant to be.

use anyhow::ensure;
use serde_json::Value;

use crate::{MANIFEST, Outcome, agent, documents::Documents, render};

/// Overlays, and what each changes: paths below a document's kind, a bracket for each index of a list.
const OVERLAYS: &[(&str, &[&str])] = &[
    ("overlays/vxlan", &[]),
    ("overlays/host-gw", &["ConfigMap.data.net-conf.json"]),
    ("overlays/dual-stack", &["ConfigMap.data.net-conf.json"]),
    (
        "overlays/privileged",
        &[
            "DaemonSet.spec.template.spec.containers[0].securityContext.allowPrivilegeEscalation",
            "DaemonSet.spec.template.spec.containers[0].securityContext.capabilities",
            "DaemonSet.spec.template.spec.containers[0].securityContext.privileged",
        ],
    ),
    (
        "overlays/kernel-before-5.11",
        &["DaemonSet.spec.template.spec.containers[0].securityContext.capabilities.add"],
    ),
    (
        "overlays/kernel-before-5.8",
        &["DaemonSet.spec.template.spec.containers[0].securityContext.capabilities.add"],
    ),
    (
        "overlays/seccomp-unconfined",
        &["DaemonSet.spec.template.spec.securityContext.seccompProfile.type"],
    ),
];

/// `kubectl apply -k base` and `kubectl apply -f kube-flannel.yml` are the same.
pub(crate) fn base_is_the_manifest() -> Outcome {
    let base = render::kustomize("base")?.sorted();
    ensure!(base == Documents::parse(MANIFEST)?.sorted());
    Ok(())
}

/// Each overlay is in the list, and is as it says.
pub(crate) fn differences() -> Outcome {
    let mut present = Vec::new();
    for entry in std::fs::read_dir(render::deploy().join("kustomize/overlays"))? {
        present.push(format!("overlays/{}", entry?.file_name().to_string_lossy()));
    }
    present.sort();
    let mut listed: Vec<&str> = OVERLAYS.iter().map(|(name, _)| *name).collect();
    listed.sort_unstable();
    ensure!(present == listed, "there are {present:?}");
    let base = Documents::parse(MANIFEST)?.sorted();
    for (name, expected) in OVERLAYS {
        let overlay = render::kustomize(name)?;
        overlay.are_typed()?;
        agent::runs_from(&overlay)?;
        let overlay = overlay.sorted();
        ensure!(overlay.len() == base.len(), "{name}: documents");
        let mut found = Vec::new();
        for (old, new) in base.iter().zip(&overlay) {
            let kind = old["kind"].as_str().unwrap_or_default();
            changed(old, new, kind, &mut found);
        }
        ensure!(found == *expected, "{name} changes {found:?}");
    }
    Ok(())
}

/// The paths at which two values differ. Lists of plain values differ as a whole.
fn changed(old: &Value, new: &Value, path: &str, found: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let mut fields: Vec<&String> = old.keys().chain(new.keys()).collect();
            fields.sort();
            fields.dedup();
            for field in fields {
                let [old, new] = [old, new].map(|side| side.get(field).unwrap_or(&Value::Null));
                changed(old, new, &format!("{path}.{field}"), found);
            }
        }
        (Value::Array(old), Value::Array(new))
            if old.len() == new.len() && old.iter().all(Value::is_object) =>
        {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                changed(old, new, &format!("{path}[{index}]"), found);
            }
        }
        _ if old == new => {}
        _ => found.push(path.to_owned()),
    }
}

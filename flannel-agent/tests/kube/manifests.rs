//! Manifest, overlays and chart, as the server reads them: kubectl finds no unknown field in any, and the server no wrong
//! value.

use anyhow::{Context as _, ensure};
use lab::kube::apiserver::Programs;
use serde_json::json;

use crate::MANIFEST;
use crate::documents::Documents;
use crate::render;
use crate::world::{Families, NAMESPACE, Outcome, World, with_world};

/// The comparison of kernel path and fast path.
const BENCH: &str = include_str!("../../deploy/bench.yml");

/// Each manifest is applied twice: the second time changes nothing.
pub(crate) fn accepted(programs: &Programs) -> Outcome {
    with_world(programs, 0, Families::One, |world| {
        for manifest in [MANIFEST, BENCH] {
            world.server.apply(manifest)?;
            let again = world.server.apply(manifest)?;
            let changed = again.lines().find(|line| !line.ends_with(" unchanged"));
            ensure!(changed.is_none(), "{again}");
        }
        Ok(())
    })
}

/// Overlays over the manifest.
pub(crate) fn overlays(programs: &Programs) -> Outcome {
    with_world(programs, 0, Families::One, |world| {
        for entry in std::fs::read_dir(render::deploy().join("kustomize/overlays"))? {
            let name = format!("overlays/{}", entry?.file_name().to_string_lossy());
            would_apply(world, &render::kustomize(&name)?).with_context(|| name.clone())?;
        }
        Ok(())
    })
}

/// The chart with its defaults, and with what changes most.
pub(crate) fn chart(programs: &Programs) -> Outcome {
    with_world(programs, 0, Families::One, |world| {
        let all = json!({
            "podCidrv6": "fd00:10:244::/48",
            "flannel": {"backend": "host-gw", "enableNFTables": true}
        });
        for values in [json!({}), all] {
            let documents = render::chart(&values)?;
            would_apply(world, &documents).with_context(|| values.to_string())?;
        }
        Ok(())
    })
}

/// Lets the server check documents, and whether it would change what is there.
fn would_apply(world: &World, documents: &Documents) -> Outcome {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": documents.0});
    let arguments = ["apply", "--dry-run=server", "-n", NAMESPACE, "-f", "-"];
    let answer = world
        .server
        .kubectl_with_input(&arguments, &list.to_string())?;
    ensure!(answer.lines().count() == documents.0.len(), "{answer}");
    Ok(())
}

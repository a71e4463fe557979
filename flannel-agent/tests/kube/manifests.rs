//! Our manifests, as the server reads them.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use lab::kube::apiserver::Programs;

use crate::world::{Families, Outcome, with_world};

/// Where they are.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");

/// kubectl finds no unknown field in any of them, and the server no wrong value. Each is applied twice: the second time
/// changes nothing.
pub(crate) fn accepted(programs: &Programs) -> Outcome {
    with_world(programs, 0, Families::One, |world| {
        let mut applied = 0;
        for file in manifests(Path::new(FOLDER))? {
            let text = fs::read_to_string(&file)?;
            let apply = || {
                world
                    .server
                    .apply(&text)
                    .with_context(|| file.display().to_string())
            };
            apply()?;
            let again = apply()?;
            let changed = again.lines().find(|line| !line.ends_with(" unchanged"));
            ensure!(changed.is_none(), "{}: {again}", file.display());
            applied += 1;
        }
        ensure!(applied >= 2, "{applied} manifests in {FOLDER}");
        Ok(())
    })
}

/// All files of whole objects in the folder itself.
fn manifests(folder: &Path) -> anyhow::Result<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() && path.extension().is_some_and(|extension| extension == "yml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

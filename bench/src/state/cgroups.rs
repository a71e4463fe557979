//! Removal of control groups, of version 1 and 2. Which ones, the caller says by name.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::error::{Error, Result};

/// Where control groups are: of version 1 below a folder for each controller.
const DIRECTORY: &str = "/sys/fs/cgroup";
/// How long the kernel may take to be done with the processes of a control group.
const LIMIT: Duration = Duration::from_secs(5);
/// Pause before it is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// Removes the control groups whose names are `wanted`, with those in them, of every controller. Their processes must
/// have been killed; the kernel may still be busy with them.
///
/// # Errors
/// [`Error::Timeout`] if one stays.
pub(crate) fn remove(wanted: impl Fn(&str) -> bool) -> Result<()> {
    let start = Instant::now();
    loop {
        find(&wanted).iter().for_each(|group| remove_group(group));
        let left = find(&wanted);
        let Some(group) = left.first() else {
            return Ok(());
        };
        if start.elapsed() > LIMIT {
            return Err(Error::Timeout {
                what: format!("the removal of control group {}", group.display()),
                waited: start.elapsed(),
                last: "it is there".into(),
            });
        }
        thread::sleep(PAUSE);
    }
}

fn find(wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let root = Path::new(DIRECTORY);
    let is_wanted = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(&wanted)
    };
    let controllers = folders(root);
    let groups = controllers
        .iter()
        .flat_map(|controller| folders(controller));
    groups.chain(folders(root)).filter(is_wanted).collect()
}

/// Removes a control group with those in it, as far as that goes.
fn remove_group(group: &Path) {
    folders(group)
        .iter()
        .for_each(|inside| remove_group(inside));
    fs::remove_dir(group).ok();
}

/// The folders in a folder; links to others are none.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

//! Files that others read at any time: replaced by a rename, so that nobody sees one half written, and synced, so that a
//! power cut leaves the old one or the new one. What is in them is decided elsewhere.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// Mode of a directory that has to be made.
const DIRECTORY_MODE: u32 = 0o755;

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}: {source}", path.display())]
pub struct Error {
    /// What was tried.
    operation: &'static str,
    /// The file or directory.
    path: PathBuf,
    /// What the system said.
    source: io::Error,
}

/// Writes `contents` to `path`, with `mode` whatever the umask says, unless the file holds them already; says whether it
/// wrote. Directories that are missing are made.
///
/// # Errors
/// When a directory or file cannot be made, written or renamed; an existing file is then as it was.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> Result<bool, Error> {
    if fs::read(path).is_ok_and(|present| present == contents) {
        return Ok(false);
    }
    let directory = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let step = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| Error {
            operation,
            path,
            source,
        }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(directory)
        .map_err(step("create directory", directory))?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = write_synced(&temporary, contents, mode)
        .map_err(step("write", &temporary))
        .and_then(|()| fs::rename(&temporary, path).map_err(step("replace", path)));
    if written.is_err() {
        // The error that matters is the one above.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    // The rename itself must survive a power cut, too.
    File::open(directory)
        .and_then(|handle| handle.sync_all())
        .map_err(step("sync directory", directory))?;
    Ok(true)
}

fn write_synced(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(contents)?;
    file.sync_all()
}

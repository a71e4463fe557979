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
/// The permissions in a file's mode, beside its type.
const PERMISSIONS: u32 = 0o7777;

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

/// Writes `contents` to `path`, with `mode` whatever the umask says, unless the file is so already; says whether it
/// changed anything. Where the contents are the same, only the mode is set. Directories that are missing are made.
///
/// # Errors
/// When a directory or file cannot be made, written or renamed; an existing file is then as it was.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> Result<bool, Error> {
    let step = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| Error {
            operation,
            path,
            source,
        }
    };
    if fs::read(path).is_ok_and(|present| present == contents) {
        let metadata = fs::metadata(path).map_err(step("stat", path))?;
        if metadata.permissions().mode() & PERMISSIONS == mode & PERMISSIONS {
            return Ok(false);
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(step("set the mode of", path))?;
        return Ok(true);
    }
    let directory = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gets_its_mode_even_where_its_contents_are_right() {
        let directory =
            std::env::temp_dir().join(format!("flannel-atomic-file-{}", std::process::id()));
        let path = directory.join("file");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & PERMISSIONS;
        assert!(replace(&path, b"program", 0o755).unwrap());
        assert!(!replace(&path, b"program", 0o755).unwrap());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(replace(&path, b"program", 0o755).unwrap());
        assert_eq!(mode(), 0o755);
        assert_eq!(fs::read(&path).unwrap(), b"program");
        assert!(replace(&path, b"text", 0o644).unwrap());
        assert_eq!(mode(), 0o644);
        fs::remove_dir_all(&directory).unwrap();
    }
}

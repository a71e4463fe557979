//! The agent called as `cp` or `install-conf`: what upstream's manifests call in their init containers, for those who put
//! our image, which has no shell and no other `cp`, into one. It copies one file and knows no option but `-f`. What is
//! installed on purpose, and spares the configs of others, is in [`super::install_cni`].

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use crate::atomic_file;

/// The names, which are links to the agent in the image.
const NAMES: [&str; 2] = ["cp", "install-conf"];

/// To replace a file that is there, as always.
const FORCE: &str = "-f";

/// The bits of a file's mode that are copied.
const MODE: u32 = 0o777;

/// Whether the agent is called by one of the names.
pub fn is_called(program: &OsStr) -> bool {
    let name = Path::new(program).file_name();
    NAMES.iter().any(|known| name == Some(OsStr::new(known)))
}

/// Copies the file that the arguments name, with its mode. It appears at its destination whole.
///
/// # Errors
/// When there are not exactly two names, or one cannot be read or written.
pub fn run(arguments: &[OsString]) -> anyhow::Result<()> {
    let names: Vec<&OsString> = arguments.iter().filter(|name| *name != FORCE).collect();
    let [source, destination] = names[..] else {
        bail!("usage: cp [-f] SOURCE DESTINATION, one file each");
    };
    let (source, mut destination) = (Path::new(source), PathBuf::from(destination));
    if destination.is_dir() {
        destination.push(source.file_name().unwrap_or_default());
    }
    let read = || -> std::io::Result<_> {
        let mode = source.metadata()?.permissions().mode() & MODE;
        Ok((fs::read(source)?, mode))
    };
    let (contents, mode) = read().with_context(|| format!("read {}", source.display()))?;
    atomic_file::replace(&destination, &contents, mode)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(arguments: &[&OsStr]) -> anyhow::Result<()> {
        run(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_names_are_those_of_upstreams_manifests() {
        for (program, expected) in [
            ("cp", true),
            ("/usr/bin/cp", true),
            ("/opt/bin/install-conf", true),
            ("/opt/bin/flanneld", false),
            ("", false),
        ] {
            assert_eq!(is_called(OsStr::new(program)), expected, "{program}");
        }
    }

    #[test]
    fn a_file_is_copied_with_its_mode_to_a_file_or_into_a_folder() {
        let folder = std::env::temp_dir().join(format!("flannel-copy-{}", std::process::id()));
        let inside = folder.join("inside");
        fs::create_dir_all(&inside).unwrap();
        let (source, target) = (folder.join("flannel"), inside.join("other"));
        fs::write(&source, "plugin").unwrap();
        fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(&target, "old").unwrap();
        copy(&["-f".as_ref(), source.as_ref(), target.as_ref()]).unwrap();
        copy(&[source.as_ref(), inside.as_ref()]).unwrap();
        for copied in [target, inside.join("flannel")] {
            assert_eq!(fs::read(&copied).unwrap(), b"plugin");
            assert_eq!(
                copied.metadata().unwrap().permissions().mode() & MODE,
                0o755
            );
        }
        let missing = copy(&[folder.join("none").as_ref(), source.as_ref()]).unwrap_err();
        assert!(missing.to_string().contains("none"), "{missing}");
        assert!(copy(&[source.as_ref()]).is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}

//! One command at a time for a container.
//!
//! The lock is a file beside the state files, `.<container>.lock`, that exists while it is held. The delegate inherits
//! it: when this plugin is killed, its delegate goes on, and the DEL that the runtime sends next must not run beside
//! that. A container's identifier begins with a letter or a digit, so no state file has such a name.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::io::{FdFlags, fcntl_setfd};

use super::error::Error;

/// How long to wait for another command: runtimes give up after some minutes.
const LIMIT: Duration = Duration::from_secs(60);
/// How long to wait between two tries.
const PAUSE: Duration = Duration::from_millis(10);
/// Mode of the file.
const FILE_MODE: u32 = 0o600;
/// Name of the file, before and after the container's.
const AFFIXES: (&str, &str) = (".", ".lock");

/// A lock that is held.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    // Unlocked when the last process closes it.
    _file: File,
}

impl Lock {
    /// Waits for other commands for the container to end.
    ///
    /// # Errors
    /// After 60 s, or if the file cannot be made or locked.
    pub fn take(directory: &Path, container: &str) -> Result<Self, Error> {
        let path = file(directory, container);
        let begin = Instant::now();
        loop {
            if let Some(lock) = Self::try_take(&path).map_err(|source| Error::State {
                operation: "lock",
                path: path.clone(),
                source,
            })? {
                return Ok(lock);
            }
            if begin.elapsed() > LIMIT {
                return Err(Error::Busy {
                    container: container.to_owned(),
                    seconds: LIMIT.as_secs(),
                });
            }
            thread::sleep(PAUSE);
        }
    }

    /// The lock, unless somebody holds it.
    fn try_take(path: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Who held it before has removed it, and somebody else may have made it anew.
        let current = match fs::metadata(path) {
            Ok(current) => current.ino() == file.metadata()?.ino(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if !current {
            return Ok(None);
        }
        fcntl_setfd(&file, FdFlags::empty())?;
        Ok(Some(Self {
            path: path.to_owned(),
            _file: file,
        }))
    }

    /// Removes what a killed command has left, if nobody holds it.
    ///
    /// # Errors
    /// If the file cannot be locked.
    pub fn clean(path: &Path) -> io::Result<()> {
        Self::try_take(path).map(drop)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // One that stays is taken over by the next command, or removed by GC.
        let _ = fs::remove_file(&self.path);
    }
}

/// The file that is locked for a container.
fn file(directory: &Path, container: &str) -> PathBuf {
    directory.join(format!("{}{container}{}", AFFIXES.0, AFFIXES.1))
}

/// The container that a file of this name is the lock for, if it is one.
pub fn container_of(name: &str) -> Option<&str> {
    name.strip_prefix(AFFIXES.0)?.strip_suffix(AFFIXES.1)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn one_holds_it_at_a_time_and_nothing_is_left() {
        const THREADS: u32 = 8;
        const TURNS: u32 = 25;
        let directory = std::env::temp_dir().join(format!("flannel-lock-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let inside = AtomicU32::new(0);
        let turns = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..TURNS {
                        let lock = Lock::take(&directory, "c").unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        turns.fetch_add(1, Ordering::SeqCst);
                        assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                        drop(lock);
                    }
                });
            }
        });
        assert_eq!(turns.into_inner(), THREADS * TURNS);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_lock_is_cleaned_only_if_nobody_holds_it() {
        let directory = std::env::temp_dir().join(format!("flannel-clean-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = file(&directory, "c");
        let lock = Lock::take(&directory, "c").unwrap();
        Lock::clean(&path).unwrap();
        assert!(path.exists(), "it is held");
        drop(lock);
        fs::write(&path, "").unwrap();
        Lock::clean(&path).unwrap();
        assert!(!path.exists());
        assert_eq!(container_of(".a.b.lock"), Some("a.b"));
        assert_eq!(container_of("a.lock"), None);
        fs::remove_dir_all(directory).unwrap();
    }
}

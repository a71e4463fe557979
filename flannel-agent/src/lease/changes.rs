//! Hears that files have changed, by looking at them: what they hold is for others to read.
//!
//! Looked at by name and behind links, because a mounted secret or ConfigMap is changed by another link, and an editor
//! puts a new file in the place of the old one.

use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf, time::Duration};

use tokio::{sync::watch, time::sleep};

/// How often the files are looked at. A change counts when two looks agree, so that half of one is not taken for it.
const INTERVAL: Duration = Duration::from_secs(1);

/// What tells a file from its successor; none for a file that is not there.
type Stamp = Vec<Option<(u64, u64, i64, i64, u64)>>;

fn stamp(files: &[PathBuf]) -> Stamp {
    let stamp = |path: &PathBuf| {
        let file = fs::metadata(path).ok()?;
        let (device, inode, length) = (file.dev(), file.ino(), file.len());
        Some((device, inode, file.mtime(), file.mtime_nsec(), length))
    };
    files.iter().map(stamp).collect()
}

/// Tells when files have changed.
pub struct Changes {
    receiver: watch::Receiver<()>,
    /// Keeps the receiver waiting where there is nothing to look at.
    _never: Option<watch::Sender<()>>,
}

impl Changes {
    /// Says so whenever the files have changed since this call, and are not being changed any more. Must be called
    /// where tasks can be started; without files, it is never said.
    pub fn of(files: Vec<PathBuf>) -> Self {
        Self::by_looking_each(INTERVAL, files)
    }

    /// As [`Changes::of`], with another interval.
    pub(super) fn by_looking_each(interval: Duration, files: Vec<PathBuf>) -> Self {
        let (changed, receiver) = watch::channel(());
        if files.is_empty() {
            return Self {
                receiver,
                _never: Some(changed),
            };
        }
        let mut settled = stamp(&files);
        tokio::spawn(async move {
            let mut last = settled.clone();
            while !changed.is_closed() {
                sleep(interval).await;
                let now = stamp(&files);
                if now == last && now != settled {
                    settled = now.clone();
                    changed.send_replace(());
                }
                last = now;
            }
        });
        Self {
            receiver,
            _never: None,
        }
    }

    /// Changes up to now count as seen.
    pub fn seen(&mut self) {
        self.receiver.mark_unchanged();
    }

    /// A handle that shows what this one has not seen yet.
    pub fn receiver(&self) -> watch::Receiver<()> {
        self.receiver.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_counts_once_and_when_it_is_over() {
        const LOOK: Duration = Duration::from_millis(20);
        let path = std::env::temp_dir().join(format!("flannel-change-{}", std::process::id()));
        fs::write(&path, "1").unwrap();
        let mut changes = Changes::by_looking_each(LOOK, vec![path.clone()]);
        let mut receiver = changes.receiver();
        fs::write(&path, "12").unwrap();
        let waited = tokio::time::timeout(LOOK * 50, receiver.changed()).await;
        let again = tokio::time::timeout(LOOK * 50, receiver.changed()).await;
        // The first handle has not seen it yet.
        let unseen = changes.receiver().has_changed().unwrap();
        changes.seen();
        let seen = changes.receiver().has_changed().unwrap();
        fs::remove_file(&path).unwrap();
        assert!(waited.is_ok() && again.is_err());
        assert_eq!((unseen, seen), (true, false));
    }

    #[tokio::test]
    async fn nothing_to_look_at_never_changes() {
        let changes = Changes::of(Vec::new());
        let mut receiver = changes.receiver();
        let waited = tokio::time::timeout(Duration::from_millis(20), receiver.changed()).await;
        assert!(waited.is_err(), "{waited:?}");
    }
}

//! State files: ours, upstream's, and what is left of either.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::cni::{request::Attachment, state::Store};

const CONFIG: &[u8] = br#"{"name":"n","type":"bridge"}"#;
const SECOND: &[u8] = br#"{"name":"n","type":"ptp"}"#;

/// A directory that goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("flannel-cni-state-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        Store::new(&path).create_directory().unwrap();
        Self(path)
    }

    fn store(&self) -> Store {
        Store::new(&self.0)
    }

    fn files(&self) -> Vec<String> {
        let mut names = self.store().names().unwrap();
        names.sort();
        names
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // A failed test has said more than this could.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn attachment(interface: &str) -> Attachment {
    Attachment {
        container: "c".into(),
        interface: interface.into(),
    }
}

/// The plugin's name in what is remembered of an interface.
fn plugin(store: &Store, interface: &str) -> Option<String> {
    let saved = store.find(&attachment(interface), "n").unwrap();
    saved.map(|saved| {
        saved
            .delegate(None)
            .map_or("damaged".into(), |(plugin, _)| plugin)
    })
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_first_interface_has_upstreams_file() {
    let directory = Directory::new();
    let store = directory.store();
    store.save(&attachment("net7"), CONFIG).unwrap();
    assert_eq!(fs::read(directory.0.join("c")).unwrap(), CONFIG);
    assert_eq!(
        (mode(&directory.0), mode(&directory.0.join("c"))),
        (0o700, 0o600)
    );
    assert_eq!(plugin(&store, "net7").as_deref(), Some("bridge"));
    store.forget(&attachment("net7"), true);
    assert_eq!(directory.files(), [""; 0]);
    assert_eq!(plugin(&store, "net7"), None);
}

#[test]
fn two_interfaces_of_a_container_do_not_meet() {
    for order in [["eth0", "eth1"], ["eth1", "eth0"]] {
        let directory = Directory::new();
        let store = directory.store();
        store.save(&attachment("eth0"), CONFIG).unwrap();
        store.save(&attachment("eth1"), SECOND).unwrap();
        // A repeated ADD writes over its own.
        store.save(&attachment("eth0"), CONFIG).unwrap();
        assert_eq!(directory.files(), ["c", "c:eth0", "c:eth1"]);
        let kinds = [("eth0", "bridge"), ("eth1", "ptp")];
        for interface in order {
            let kind = kinds.iter().find(|(name, _)| *name == interface).unwrap().1;
            assert_eq!(
                plugin(&store, interface).as_deref(),
                Some(kind),
                "{order:?}"
            );
            store.forget(&attachment(interface), true);
            // A repeated DEL finds nothing, and takes nothing.
            assert_eq!(plugin(&store, interface), None, "{order:?}");
            store.forget(&attachment(interface), false);
        }
        assert_eq!(directory.files(), [""; 0], "{order:?}");
    }
}

#[test]
fn an_interface_that_comes_later_does_not_inherit() {
    let directory = Directory::new();
    let store = directory.store();
    store.save(&attachment("eth0"), CONFIG).unwrap();
    store.save(&attachment("eth1"), SECOND).unwrap();
    // Upstream's plugin detaches eth0.
    fs::remove_file(directory.0.join("c")).unwrap();
    store.save(&attachment("eth2"), SECOND).unwrap();
    assert_eq!(plugin(&store, "eth0"), None);
    assert_eq!(plugin(&store, "eth2").as_deref(), Some("ptp"));
}

#[test]
fn upstreams_file_belongs_to_who_asks_for_its_network() {
    let directory = Directory::new();
    let store = directory.store();
    fs::write(directory.0.join("c"), CONFIG).unwrap();
    assert!(store.find(&attachment("eth0"), "other").unwrap().is_none());
    assert_eq!(plugin(&store, "eth0").as_deref(), Some("bridge"));
    // One more interface, while upstream's is there.
    store.save(&attachment("eth1"), SECOND).unwrap();
    assert_eq!(plugin(&store, "eth1").as_deref(), Some("ptp"));
    assert_eq!(plugin(&store, "eth0").as_deref(), Some("bridge"));
    store.forget(&attachment("eth0"), true);
    store.forget(&attachment("eth1"), true);
    assert_eq!(directory.files(), [""; 0]);
}

#[test]
fn damaged_files_are_told_from_good_ones() {
    let directory = Directory::new();
    let store = directory.store();
    for damage in ["", "{", "[]", "null", r#"{"name":"n"}"#, r#"{"type":1}"#] {
        fs::write(directory.0.join("c"), damage).unwrap();
        assert_eq!(
            plugin(&store, "eth0").as_deref(),
            Some("damaged"),
            "{damage}"
        );
    }
    // Killed between link and file.
    fs::remove_file(directory.0.join("c")).unwrap();
    symlink("c", directory.0.join("c:eth0")).unwrap();
    assert_eq!(plugin(&store, "eth0"), None);
    store.forget(&attachment("eth0"), false);
    assert_eq!(directory.files(), [""; 0]);
}

#[test]
fn entries_are_one_for_each_attachment() {
    let directory = Directory::new();
    let store = directory.store();
    store.save(&attachment("eth0"), CONFIG).unwrap();
    store.save(&attachment("eth1"), SECOND).unwrap();
    fs::write(directory.0.join("d"), CONFIG).unwrap();
    symlink("e", directory.0.join("e:eth0")).unwrap();
    fs::write(directory.0.join(".c.lock"), "").unwrap();
    let entries = store.entries().unwrap();
    let found: Vec<_> = entries
        .iter()
        .map(|entry| {
            let known = store.read(entry).unwrap().is_some();
            (entry.container.as_str(), entry.interface.as_deref(), known)
        })
        .collect();
    assert_eq!(
        found,
        [
            ("c", Some("eth0"), true),
            ("c", Some("eth1"), true),
            ("d", None, true),
            ("e", Some("eth0"), false),
        ]
    );
    let absent = Store::new(&directory.0.join("absent"));
    assert!(absent.entries().unwrap().is_empty());
}

//! The files of an image: what is in which place, and how that becomes a layer or a folder. Where files come from is in
//! `packages` and `programs`.
//!
//! All is root's, and of the same time, so that equal files are equal bytes.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use tar::{Builder, EntryType, Header};

/// Rights of a folder that nothing else is said of.
const FOLDER_MODE: u32 = 0o755;
/// Rights of a file to read.
pub const FILE_MODE: u32 = 0o644;
/// Rights of a program.
pub const PROGRAM_MODE: u32 = 0o755;
/// The time of all files, in seconds since 1970.
pub const TIME: u64 = 0;

/// What is in a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A folder, with its rights.
    Folder(u32),
    /// A file, with its rights and content.
    File(u32, Vec<u8>),
    /// A symbolic link, to what.
    Link(String),
}

/// Places, as paths from the root without a slash at the front, in the order of a layer: each folder is before what is
/// in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree(BTreeMap<String, Node>);

impl Tree {
    /// Puts something in a place, and makes the folders above it.
    ///
    /// # Errors
    /// When something else is there.
    pub fn add(&mut self, path: impl Into<String>, node: Node) -> Result<()> {
        let path = path.into();
        for (slash, _) in path.match_indices('/') {
            let above = self
                .0
                .entry(path[..slash].to_owned())
                .or_insert(Node::Folder(FOLDER_MODE));
            ensure!(
                matches!(above, Node::Folder(_)),
                "{path} is below {}, which is no folder",
                &path[..slash]
            );
        }
        let there = self.0.entry(path.clone()).or_insert_with(|| node.clone());
        ensure!(*there == node, "{path} comes from two places, and differs");
        Ok(())
    }

    /// Puts what is at `from`, file or link, in a place.
    pub fn copy(&mut self, from: &Path, path: impl Into<String>) -> Result<()> {
        let read = || -> std::io::Result<Node> {
            let metadata = from.symlink_metadata()?;
            if metadata.is_symlink() {
                let to = from.read_link()?;
                return Ok(Node::Link(to.to_string_lossy().into_owned()));
            }
            let mode = if metadata.permissions().mode() & 0o100 == 0 {
                FILE_MODE
            } else {
                PROGRAM_MODE
            };
            Ok(Node::File(mode, fs::read(from)?))
        };
        let node = read().with_context(|| format!("cannot read {}", from.display()))?;
        self.add(path, node)
    }

    /// All places, in their order.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.0.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// The size of all files, in bytes.
    pub fn size(&self) -> usize {
        self.0
            .values()
            .map(|node| match node {
                Node::File(_, content) => content.len(),
                Node::Folder(_) | Node::Link(_) => 0,
            })
            .sum()
    }

    /// The layer, not compressed: a tar archive (OCI image specification, layer.md).
    pub fn layer(&self) -> Result<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        for (path, node) in self.nodes() {
            let mut header = Header::new_ustar();
            header.set_mtime(TIME);
            header.set_uid(0);
            header.set_gid(0);
            let mut append = |kind, mode, content: &[u8]| {
                header.set_entry_type(kind);
                header.set_mode(mode);
                header.set_size(content.len() as u64);
                match node {
                    Node::Link(to) => archive.append_link(&mut header, path, to),
                    _ => archive.append_data(&mut header, path, content),
                }
            };
            match node {
                Node::Folder(mode) => append(EntryType::Directory, *mode, &[]),
                Node::File(mode, content) => append(EntryType::Regular, *mode, content),
                Node::Link(_) => append(EntryType::Symlink, 0o777, &[]),
            }
            .with_context(|| format!("{path} does not fit into an archive"))?;
        }
        archive.into_inner().context("cannot end an archive")
    }

    /// Writes all into a folder.
    pub fn write(&self, to: &Path) -> Result<()> {
        for (path, node) in self.nodes() {
            let at = to.join(path);
            let write = || -> std::io::Result<()> {
                let mode = match node {
                    Node::Folder(mode) => {
                        fs::create_dir_all(&at)?;
                        *mode
                    }
                    Node::File(mode, content) => {
                        fs::write(&at, content)?;
                        *mode
                    }
                    Node::Link(to) => return symlink(to, &at),
                };
                fs::set_permissions(&at, fs::Permissions::from_mode(mode))
            };
            write().with_context(|| format!("cannot write {}", at.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.add("usr/sbin/nft", Node::File(PROGRAM_MODE, b"x".into()))
            .unwrap();
        tree.add("sbin", Node::Link("usr/sbin".into())).unwrap();
        tree.add("tmp", Node::Folder(0o1777)).unwrap();
        tree
    }

    #[test]
    fn folders_come_before_what_is_in_them() {
        let tree = tree();
        let paths: Vec<_> = tree.nodes().map(|(path, _)| path).collect();
        assert_eq!(paths, ["sbin", "tmp", "usr", "usr/sbin", "usr/sbin/nft"]);
        assert_eq!(tree.size(), 1);
    }

    #[test]
    fn a_place_holds_one_thing() {
        let mut tree = tree();
        assert!(tree.add("usr", Node::Folder(FOLDER_MODE)).is_ok());
        assert!(tree.add("sbin", Node::Link("elsewhere".into())).is_err());
        assert!(tree.add("sbin/nft", Node::Folder(FOLDER_MODE)).is_err());
    }

    #[test]
    fn a_layer_says_nothing_of_the_machine_that_made_it() {
        let layer = tree().layer().unwrap();
        let mut archive = tar::Archive::new(layer.as_slice());
        let entries: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                assert_eq!(
                    (
                        header.uid().unwrap(),
                        header.gid().unwrap(),
                        header.mtime().unwrap()
                    ),
                    (0, 0, TIME)
                );
                let path = entry.path().unwrap().display().to_string();
                (path, header.mode().unwrap(), header.entry_type())
            })
            .collect();
        assert_eq!(entries[0], ("sbin".into(), 0o777, EntryType::Symlink));
        assert_eq!(entries[1], ("tmp".into(), 0o1777, EntryType::Directory));
        assert_eq!(
            entries[4],
            ("usr/sbin/nft".into(), PROGRAM_MODE, EntryType::Regular)
        );
    }
}

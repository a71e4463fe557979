//! The proof that no library is missing in the image.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

use super::tree::{Node, Tree};
use crate::{command, debian};

/// How programs and libraries begin (elf(5)).
const ELF_MAGIC: &[u8] = b"\x7fELF";

/// Where the dynamic linker looks, besides the folder of the architecture below it.
const FOLDER: &str = "usr/lib/";

/// Fails if a program or a library of the tree asks for a library that is not in it. The tree is written to `folder`,
/// where readelf can read it.
pub fn check(tree: &Tree, folder: &Path) -> Result<()> {
    debian::make_anew(folder)?;
    tree.write(folder)?;
    let programs: Vec<PathBuf> = tree
        .nodes()
        .filter(
            |(_, node)| matches!(node, Node::File(_, content) if content.starts_with(ELF_MAGIC)),
        )
        .map(|(path, _)| folder.join(path))
        .collect();
    let listed = command::stdout(Command::new("readelf").arg("-dW").args(&programs))?;
    let missing: Vec<&str> = needed(&listed)
        .into_iter()
        .filter(|library| !has(tree, library))
        .collect();
    ensure!(
        missing.is_empty(),
        "programs of the image ask for {}, which is not in it: see xtask/src/image/packages.rs",
        missing.join(", ")
    );
    Ok(())
}

/// The libraries that `readelf -d` shows as needed, each once.
fn needed(listed: &str) -> Vec<&str> {
    let mut names: Vec<&str> = listed
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| line.split_once('[')?.1.split_once(']'))
        .map(|(name, _)| name)
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn has(tree: &Tree, library: &str) -> bool {
    tree.nodes().any(|(path, _)| {
        path.strip_prefix(FOLDER)
            .and_then(|path| path.rsplit_once('/'))
            .is_some_and(|(folder, name)| !folder.contains('/') && name == library)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_libraries_are_read_from_readelf_and_looked_for_in_the_tree() {
        let listed = "File: nft\n 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]\n\
            \x200x0000000000000001 (NEEDED)             Shared library: [libmnl.so.0]\n\
            \x200x000000000000000e (SONAME)             Library soname: [libx.so.1]\n\
            File: b\n 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]\n";
        assert_eq!(needed(listed), ["libc.so.6", "libmnl.so.0"]);
        let mut tree = Tree::default();
        let library = |name: &str| format!("{FOLDER}x86_64-linux-gnu/{name}");
        tree.add(library("libc.so.6"), Node::File(0o644, Vec::new()))
            .unwrap();
        tree.add(
            library("xtables/libmnl.so.0"),
            Node::File(0o644, Vec::new()),
        )
        .unwrap();
        assert!(has(&tree, "libc.so.6"));
        assert!(!has(&tree, "libmnl.so.0"));
    }
}

//! What is remembered of each attachment: the config that its delegate got, so that DEL can undo what ADD did, whatever
//! the network config and `subnet.env` say by then.
//!
//! A container's first interface has the file `<container>`, as upstream's plugin writes and finds it, so a node can
//! change between the two. The symbolic link `<container>:<interface>` to it says whose it is. Further interfaces have a
//! file `<container>:<interface>` of their own; upstream's plugin writes over the first's. Neither part of the name has a
//! colon in it. A file `<container>` without a link was written by upstream's plugin, and belongs to whoever asks.
//!
//! A file is written whole before the delegate runs. So one that is damaged, by a kill or a power cut, stands for
//! nothing that has been attached, or can be made again from `subnet.env`.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::{error::Error, go_json, request::Attachment};

/// Mode of the directory, upstream's.
const DIRECTORY_MODE: u32 = 0o700;
/// Mode of a file, upstream's.
const FILE_MODE: u32 = 0o600;
/// Between container and interface in a file's name.
const SEPARATOR: char = ':';

/// The directory of state files.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

/// What a state file holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    text: Vec<u8>,
    /// The text as an object with a plugin's name in `type`, unless the file is damaged.
    fields: Option<(String, Map<String, Value>)>,
}

impl Saved {
    fn parse(text: Vec<u8>) -> Self {
        let fields = serde_json::from_slice::<Map<String, Value>>(&text).ok();
        let fields = fields.and_then(|fields| {
            let plugin = fields.get("type")?.as_str()?.to_owned();
            Some((plugin, fields))
        });
        Self { text, fields }
    }

    /// The network's name, unless the file is damaged.
    pub fn network(&self) -> Option<&str> {
        self.fields.as_ref()?.1.get("name")?.as_str()
    }

    /// The delegate and its config as it was, or with the result of ADD; none if the file is damaged.
    pub fn delegate(self, previous_result: Option<&Value>) -> Option<(String, Vec<u8>)> {
        let (plugin, mut fields) = self.fields?;
        let text = match previous_result {
            None => self.text,
            Some(result) => {
                fields.insert("prevResult".into(), result.clone());
                go_json::to_vec(&fields)
            }
        };
        Some((plugin, text))
    }
}

/// A file in the directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its container.
    pub container: String,
    /// Its interface, if that is known.
    pub interface: Option<String>,
    /// The file with the state.
    pub path: PathBuf,
}

impl Store {
    /// The one in this directory, which need not exist.
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// Makes the directory if it is not there.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn create_directory(&self) -> Result<(), Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(&self.directory)
            .map_err(failed("create directory", &self.directory))
    }

    /// Remembers the config of an attachment; it is on the disk when this returns.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, attachment: &Attachment, config: &[u8]) -> Result<(), Error> {
        let first = self.first(&attachment.container);
        let own = self.own(attachment);
        let path = match link_target(&own)? {
            Named::Link => first,
            Named::File => own,
            Named::Nothing if first.exists() || self.is_claimed(&attachment.container)? => own,
            Named::Nothing => {
                // Before the file: whose it is must be known as soon as it is there.
                symlink(&attachment.container, &own).map_err(failed("link", &own))?;
                first
            }
        };
        write_synced(&path, config)
            .and_then(|()| File::open(&self.directory)?.sync_all())
            .map_err(failed("write", &path))
    }

    /// What is remembered of an attachment to a network.
    ///
    /// # Errors
    /// If a file is there and cannot be read.
    pub fn find(&self, attachment: &Attachment, network: &str) -> Result<Option<Saved>, Error> {
        let own = self.own(attachment);
        let unclaimed = matches!(link_target(&own)?, Named::Nothing);
        if !unclaimed {
            return read(&own);
        }
        if self.is_claimed(&attachment.container)? {
            return Ok(None);
        }
        let saved = read(&self.first(&attachment.container))?;
        Ok(saved.filter(|saved| saved.network().is_none_or(|name| name == network)))
    }

    /// Forgets an attachment of which [`Store::find`] has found `saved`, or nothing. A file that cannot be removed is
    /// told on standard error: DEL has done its work by then.
    pub fn forget(&self, attachment: &Attachment, saved: bool) {
        let own = self.own(attachment);
        let is_first = match link_target(&own) {
            Ok(Named::Link) => true,
            Ok(Named::Nothing) => saved,
            Ok(Named::File) | Err(_) => false,
        };
        if is_first {
            remove(&self.first(&attachment.container));
        }
        remove(&own);
    }

    /// All state files, and links whose file is gone. An absent directory has none.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn entries(&self) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        let mut names = self.names()?;
        names.sort_unstable();
        for name in &names {
            let path = self.directory.join(name);
            match name.split_once(SEPARATOR) {
                // A link's file is the container's own, unless that is gone.
                Some((container, interface)) => entries.push(Entry {
                    container: container.to_owned(),
                    interface: Some(interface.to_owned()),
                    path,
                }),
                None => {
                    let claimed = names.iter().any(|other| self.claims(other, name));
                    entries.extend((!claimed).then(|| Entry {
                        container: name.clone(),
                        interface: None,
                        path,
                    }));
                }
            }
        }
        entries.retain(|entry| super::request::is_plain_name(&entry.container));
        Ok(entries)
    }

    /// What an entry holds; none for a link whose file is gone.
    ///
    /// # Errors
    /// If it is there and cannot be read.
    pub fn read(&self, entry: &Entry) -> Result<Option<Saved>, Error> {
        read(&entry.path)
    }

    /// Names of all files in the directory; none if there is no directory.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn names(&self) -> Result<Vec<String>, Error> {
        let directory = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            directory => directory.map_err(failed("read directory", &self.directory))?,
        };
        let names = directory.map(|entry| {
            let entry = entry.map_err(failed("read directory", &self.directory))?;
            Ok(entry.file_name().to_string_lossy().into_owned())
        });
        names.collect()
    }

    /// Whether a link says whose the container's first file is, or was.
    fn is_claimed(&self, container: &str) -> Result<bool, Error> {
        Ok(self
            .names()?
            .iter()
            .any(|name| self.claims(name, container)))
    }

    /// Whether the file `name` is a link to the container's first.
    fn claims(&self, name: &str, container: &str) -> bool {
        let of_container = name
            .split_once(SEPARATOR)
            .is_some_and(|(prefix, _)| prefix == container);
        of_container && self.directory.join(name).is_symlink()
    }

    fn first(&self, container: &str) -> PathBuf {
        self.directory.join(container)
    }

    fn own(&self, attachment: &Attachment) -> PathBuf {
        let Attachment {
            container,
            interface,
        } = attachment;
        self.directory
            .join(format!("{container}{SEPARATOR}{interface}"))
    }
}

/// What bears a name.
enum Named {
    Nothing,
    File,
    Link,
}

fn link_target(path: &Path) -> Result<Named, Error> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => Ok(Named::Link),
        Ok(_) => Ok(Named::File),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Named::Nothing),
        Err(error) => Err(failed("look up", path)(error)),
    }
}

fn read(path: &Path) -> Result<Option<Saved>, Error> {
    match fs::read(path) {
        Ok(text) => Ok(Some(Saved::parse(text))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

fn write_synced(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(path)?;
    file.write_all(text)?;
    file.sync_all()
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            eprintln!("cannot remove {}: {error}", path.display());
        }
        _ => {}
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::State {
        operation,
        path,
        source,
    }
}

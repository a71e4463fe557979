//! What a watch tells: one JSON document a line, each an event with an object.
//!
//! Pure: bytes become lines, lines become changes. What is garbage is said to be, and is never taken for a change.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    annotations::Names,
    error::Refusal,
    node::{Identity, Node},
};

/// The longest line, in bytes: objects in etcd are at most 1.5 MiB, and each byte may be escaped.
const LINE_MAX: usize = 16 << 20;
/// How much of a line an error repeats, in characters.
const SHOWN: usize = 120;

/// A change of a Node.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// A Node is new, or another than before.
    Put(Box<Node>),
    /// One is gone.
    Removed {
        /// Its name.
        name: String,
        /// The version that the watch has come to.
        version: String,
    },
    /// One is new or another, but cannot be understood.
    Unreadable {
        /// Its name; empty if not even that is known.
        name: String,
        /// The version that the watch has come to; empty if it is not known.
        version: String,
        /// Why.
        reason: String,
    },
    /// Nothing has changed up to this version.
    Bookmark(String),
    /// The watch is over.
    Ended(Refusal),
}

/// A line that is no event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the API server sent no event of a watch: {line}: {reason}")]
pub struct Garbled {
    line: String,
    reason: String,
}

impl Garbled {
    fn new(line: &[u8], reason: impl ToString) -> Self {
        Self {
            line: String::from_utf8_lossy(line).chars().take(SHOWN).collect(),
            reason: reason.to_string(),
        }
    }
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// Reads one line.
///
/// # Errors
/// When it is no event.
pub fn read(line: &[u8], names: &Names) -> Result<Change, Garbled> {
    let wrong = |reason: serde_json::Error| Garbled::new(line, reason);
    let event: Event<'_> = serde_json::from_slice(line).map_err(wrong)?;
    let json = event.object.get();
    let identity = || serde_json::from_str::<Identity>(json).map(|identity| identity.metadata);
    match &*event.kind {
        "ADDED" | "MODIFIED" => Ok(match Node::read(json, names) {
            Ok(node) => Change::Put(Box::new(node)),
            Err(error) => {
                let (name, version) = identity()
                    .map(|known| (known.name, known.resource_version))
                    .unwrap_or_default();
                Change::Unreadable {
                    name,
                    version,
                    reason: error.to_string(),
                }
            }
        }),
        "DELETED" => {
            let known = identity().map_err(wrong)?;
            Ok(Change::Removed {
                name: known.name,
                version: known.resource_version,
            })
        }
        "BOOKMARK" => Ok(Change::Bookmark(
            identity().map_err(wrong)?.resource_version,
        )),
        "ERROR" => Ok(Change::Ended(Refusal::read(json.as_bytes()))),
        other => Err(Garbled::new(line, format!("unknown type {other}"))),
    }
}

/// Bytes as they come, cut into lines.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
    /// Where the first line begins.
    start: usize,
    /// How far there is no end of that line.
    searched: usize,
}

impl Lines {
    /// Takes bytes.
    ///
    /// # Errors
    /// When a line does not end.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Garbled> {
        self.bytes.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        if self.bytes.is_empty() {
            // One large object must not be paid for as long as the watch lives.
            self.bytes = Vec::new();
        }
        self.bytes.extend_from_slice(bytes);
        if self.searched > LINE_MAX {
            return Err(Garbled::new(
                &self.bytes[..SHOWN],
                format!("longer than {LINE_MAX} bytes"),
            ));
        }
        Ok(())
    }

    /// The next line that is whole and not empty, without its end.
    pub fn next_line(&mut self) -> Option<&[u8]> {
        loop {
            let Some(length) = self.bytes[self.searched..]
                .iter()
                .position(|byte| *byte == b'\n')
            else {
                self.searched = self.bytes.len();
                return None;
            };
            let (start, end) = (self.start, self.searched + length);
            self.start = end + 1;
            self.searched = self.start;
            if !self.bytes[start..end].trim_ascii().is_empty() {
                return Some(&self.bytes[start..end]);
            }
        }
    }
}

#[cfg(test)]
mod tests;

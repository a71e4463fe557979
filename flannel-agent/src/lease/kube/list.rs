//! A page of a list of Nodes, read as it comes: each Node by itself as soon as it is whole, so that no page is ever held.
//!
//! Pure: bytes go in, Nodes come out, and at the end what is left, the list without its items.

use serde::{Deserialize, de::Error as _};

use super::{
    annotations::Names,
    node::{Identity, Node},
};

/// How deep inside a list an array of its own is that holds items: `{"items":[`.
const ITEMS: usize = 2;
/// How deep inside it an item is.
const ITEM: usize = ITEMS + 1;
/// The longest item, in bytes, and the most that may be beside items: objects in etcd are at most 1.5 MiB, and each byte
/// may be escaped.
const PART_MAX: usize = 16 << 20;

/// A Node of a list, or the name of one and why it cannot be understood.
pub type Listed = Result<Node, (String, String)>;

/// What a page says beside its Nodes.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    /// The version that the whole list shows.
    pub version: String,
    /// What the next page is asked for with; empty for the last one.
    pub next: String,
}

#[derive(Deserialize)]
struct List {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
    #[serde(default, rename = "continue")]
    next: Option<String>,
}

/// Reads one page.
#[derive(Debug)]
pub struct Reader<'a> {
    names: &'a Names,
    /// What is not inside an item.
    head: Vec<u8>,
    /// The beginning of an item that has not come to its end.
    item: Vec<u8>,
    /// How many objects and arrays are open.
    depth: usize,
    /// Whether one of them holds items.
    in_items: bool,
    in_string: bool,
    /// Whether the next character of the string is to be taken as it is.
    escaped: bool,
}

impl<'a> Reader<'a> {
    /// A reader of Nodes with these annotations.
    pub fn new(names: &'a Names) -> Self {
        Self {
            names,
            head: Vec::new(),
            item: Vec::new(),
            depth: 0,
            in_items: false,
            in_string: false,
            escaped: false,
        }
    }

    /// Takes bytes, and gives `take` the Nodes that they complete.
    ///
    /// # Errors
    /// When an item is no JSON, or too long.
    pub fn push(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(Listed),
    ) -> Result<(), serde_json::Error> {
        // Where that begins which is not taken care of yet.
        let mut start = 0;
        for (at, byte) in bytes.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => {
                    self.depth += 1;
                    if self.depth == ITEMS && *byte == b'[' {
                        self.in_items = true;
                        self.head.extend_from_slice(&bytes[start..=at]);
                    } else if self.depth == ITEM && self.in_items {
                        start = at; // commas and spaces between items are nobody's
                    }
                }
                b'}' | b']' => {
                    if self.in_items && self.depth == ITEM {
                        take(self.listed(&bytes[start..=at])?);
                    } else if self.in_items && self.depth == ITEMS {
                        self.in_items = false;
                        start = at;
                    }
                    self.depth = self.depth.saturating_sub(1);
                }
                _ => {}
            }
        }
        let part = match (self.in_items, self.depth) {
            (true, ITEMS) => return Ok(()),
            (true, _) => &mut self.item,
            (false, _) => &mut self.head,
        };
        part.extend_from_slice(&bytes[start..]);
        if part.len() > PART_MAX {
            let reason = format!("an object of a list is longer than {PART_MAX} bytes");
            return Err(serde_json::Error::custom(reason));
        }
        Ok(())
    }

    /// What the page says beside its Nodes.
    ///
    /// # Errors
    /// When it is no list, or not all of one.
    pub fn end(self) -> Result<Page, serde_json::Error> {
        let list: List = serde_json::from_slice(&self.head)?;
        Ok(Page {
            version: list.metadata.resource_version,
            next: list.metadata.next.unwrap_or_default(),
        })
    }

    /// The item that `end` is the end of.
    fn listed(&mut self, end: &[u8]) -> Result<Listed, serde_json::Error> {
        if self.item.is_empty() {
            return self.read(end);
        }
        self.item.extend_from_slice(end);
        let listed = self.read(&self.item);
        self.item.clear();
        listed
    }

    fn read(&self, item: &[u8]) -> Result<Listed, serde_json::Error> {
        let json = std::str::from_utf8(item).map_err(serde_json::Error::custom)?;
        match Node::read(json, self.names) {
            Ok(node) => Ok(Ok(node)),
            Err(error) if error.is_data() => {
                let known = serde_json::from_str::<Identity>(json);
                let name = known.map(|known| known.metadata.name).unwrap_or_default();
                Ok(Err((name, error.to_string())))
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn names() -> Names {
        Names::new("flannel.alpha.coreos.com").unwrap()
    }

    /// Reads a page that comes in parts of so many bytes.
    fn read(text: &str, part: usize) -> Result<(Vec<Listed>, Page), String> {
        let names = names();
        let mut reader = Reader::new(&names);
        let mut nodes = Vec::new();
        for bytes in text.as_bytes().chunks(part) {
            let pushed = reader.push(bytes, |listed| nodes.push(listed));
            pushed.map_err(|error| error.to_string())?;
        }
        let page = reader.end().map_err(|error| error.to_string())?;
        Ok((nodes, page))
    }

    fn node(name: &str) -> Value {
        json!({
            "metadata": {
                "name": name,
                "annotations": {
                    "flannel.alpha.coreos.com/backend-type": "host-gw",
                    "other": "brackets ]}[{ and a quote \" and its end \\",
                },
                "managedFields": [{ "fieldsV1": { "f:a": { ".": {} } } }, []],
            },
            "spec": { "podCIDRs": ["10.5.1.0/24"] },
        })
    }

    #[test]
    fn nodes_are_read_however_the_bytes_are_cut() {
        let page = json!({
            "kind": "NodeList",
            "metadata": { "resourceVersion": "7", "continue": "n\"]}", "remainingItemCount": 1 },
            "items": [node("a"), { "metadata": { "name": 3 } }, node("ü"), { "metadata": { "name": "b", "uid": [] } }],
        });
        for text in [
            page.to_string(),
            serde_json::to_string_pretty(&page).unwrap(),
        ] {
            let whole = read(&text, text.len()).unwrap();
            let (nodes, rest) = &whole;
            assert_eq!((rest.version.as_str(), rest.next.as_str()), ("7", "n\"]}"));
            let named: Vec<_> = nodes
                .iter()
                .map(|listed| match listed {
                    Ok(node) => (true, node.name.as_str()),
                    Err((name, _)) => (false, name.as_str()),
                })
                .collect();
            assert_eq!(named, [(true, "a"), (false, ""), (true, "ü"), (false, "b")]);
            assert_eq!(nodes[0].as_ref().unwrap().pod_cidrs, ["10.5.1.0/24"]);
            for part in 1..200 {
                assert_eq!(read(&text, part).as_ref(), Ok(&whole), "{part}");
            }
        }
    }

    #[test]
    fn empty_pages_are_pages() {
        for items in ["[]", "[ ]", "null"] {
            let text = format!(r#"{{"items":{items},"metadata":{{"resourceVersion":"9"}}}}"#);
            let (nodes, page) = read(&text, 3).unwrap();
            assert!(nodes.is_empty());
            assert_eq!((page.version.as_str(), page.next.as_str()), ("9", ""));
        }
    }

    #[test]
    fn what_is_no_list_or_not_all_of_one_is_refused() {
        let page =
            json!({ "metadata": { "resourceVersion": "7" }, "items": [node("a")] }).to_string();
        for end in 0..page.len() {
            assert!(read(&page[..end], 50).is_err(), "{end}");
        }
        for text in [
            "<html><title>Welcome</title></html>",
            "[{}]",
            r#"{"items":[{"metadata":{"name":"a"}}]}"#,
            r#"{"metadata":{},"items":[]}"#,
            r#"{"metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":}}]}"#,
            r#"{"metadata":{"resourceVersion":"7"},"items":[{]]}"#,
            r#"{"metadata":{"resourceVersion":"7"},"items":[]}}"#,
        ] {
            assert!(read(text, 7).is_err(), "{text}");
        }
    }

    #[test]
    fn no_item_is_held_without_end() {
        let names = names();
        let mut reader = Reader::new(&names);
        reader.push(br#"{"items":[{"a":""#, drop).unwrap();
        let part = vec![b'x'; PART_MAX / 4];
        let mut pushed = (0..5).map(|_| reader.push(&part, drop));
        assert!(pushed.any(|result| result.is_err()));
    }
}
